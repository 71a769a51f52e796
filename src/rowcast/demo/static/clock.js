// The wall clock with a resolution below the millisecond, and the commit's time on it.
//
// Date.now() is cut to whole milliseconds; performance.now() is finer but starts anywhere and drifts from the
// system's clock. Date.now() − performance.now() is never above the true distance of the two and often just
// below it, so its maximum over the last seconds is the distance.

const WINDOW = 20; // seconds
let samples = [];

function calibrate() {
  let best = -Infinity;
  for (let n = 0; n < 200; n++) best = Math.max(best, Date.now() - performance.now());
  samples.push(best);
  if (samples.length > WINDOW) samples.shift();
}
calibrate();
setInterval(calibrate, 1000);

/** Milliseconds since the Unix epoch, with fractions. */
export const now = () => performance.now() + Math.max(...samples);

/** A timestamp with microseconds ("2026-03-01T10:00:00.123456Z" or with an offset) in the same measure. */
export function parse(timestamp) {
  const match = /^(.*?)(\.\d+)?(Z|[+-]\d\d(?::?\d\d)?)$/.exec(timestamp);
  return Date.parse(match[1] + match[3]) + Number(match[2] ?? 0) * 1000;
}
