/** Quantities as people read them: seconds, bytes, times of day. */

/** @param {number} seconds */
export function secondsText(seconds) {
  if (seconds === 0) {
    return "0 s";
  }
  if (seconds < 0.0995) {
    return `${Math.round(seconds * 1000)} ms`;
  }
  return seconds < 99.5 ? `${Number(seconds.toPrecision(2))} s` : `${Math.round(seconds / 60)} min`;
}

/** @param {number} bytes */
export function bytesText(bytes) {
  return bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

/** @param {number} timeMs since 1970 */
export function timeText(timeMs) {
  return new Date(timeMs).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
