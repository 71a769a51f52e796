/** Whether position `a` is after `b`: `epoch:LSN-minor`, the LSN in hexadecimal. Of different epochs: yes. */
export function after(a, b) {
  if (!b) return true;
  const [x, y] = [a, b].map((text) => text.match(/^([^:]*):([0-9A-F]+)-(\d+)/i));
  if (!x || !y || x[1] !== y[1]) return a !== b;
  const [m, n] = [BigInt("0x" + x[2]), BigInt("0x" + y[2])];
  return m > n || (m === n && BigInt(x[3]) > BigInt(y[3]));
}
