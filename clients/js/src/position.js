/**
 * Whether position `a` is after `b`: `epoch:LSN-minor`, the LSN in hexadecimal. Of different epochs: yes.
 *
 * At the same place their marks say it, `~mark~over` in base 36: what a stream had held back meanwhile; without one
 * nothing is held back any more. A star, rows of a snapshot are to come, can come and go at one place.
 */
export function after(a, b) {
  if (!b) return true;
  const [x, y] = [a, b].map((text) => text.match(/^([^:]*):([0-9A-F]+)-(\d+)(\*?)(?:~(\w+))?(?:~(\w+))?$/i));
  if (!x || !y || x[1] !== y[1]) return a !== b;
  const [m, n] = [x, y].map(numbers);
  const differs = m.findIndex((number, i) => number !== n[i]);
  return differs >= 0 ? m[differs] > n[differs] : x[4] !== y[4];
}

const numbers = ([, , lsn, minor, , mark, over]) => [
  BigInt("0x" + lsn),
  BigInt(minor),
  mark ? parseInt(mark, 36) : Infinity,
  over ? parseInt(over, 36) : 0,
];
