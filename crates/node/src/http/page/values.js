// Reads single values out of /status and puts them into words.
//
// Pure. Trusts nothing: what is absent or of another type than expected is null, and null is shown
// as "unknown", never as 0 and never as nothing.

export const UNKNOWN = "unknown";

/** A number that can be an amount: finite and not negative. */
export const amount = (value) =>
  typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : null;

/** Words; none are as good as absent. */
export const words = (value) => (typeof value === "string" && value !== "" ? value : null);

export const flag = (value) => (typeof value === "boolean" ? value : null);

export const list = (value) => (Array.isArray(value) ? value : []);

/** An object to look into; an empty one where there is none, so that every field is absent. */
export const fields = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value) ? value : {};

/**
 * A piece of text that comes from /status. `from` are the paths it was made of, so that a test can
 * take each of them away and see that this piece says "unknown".
 */
export function shown(from, text) {
  const known = text !== null && text !== undefined;
  return { from: [from].flat(), text: known ? text : UNKNOWN, known };
}

/** The same for a value that has to be put into words first. */
export const told = (from, value, say) => shown(from, value === null ? null : say(value));

/** A span of time. Rounding never makes something nothing. */
export function span(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds < 0.001) return "<1 ms";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 119.5) return `${seconds.toFixed(0)} s`;
  if (seconds < 599.5) {
    const [minutes, rest] = [Math.floor(Math.round(seconds) / 60), Math.round(seconds) % 60];
    return rest === 0 ? `${minutes} min` : `${minutes} min ${rest} s`;
  }
  if (seconds < 7170) return `${(seconds / 60).toFixed(0)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} d`;
}

/** A number of bytes, as the command line writes it. */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) {
    value /= 1024;
    unit += 1;
  }
  return unit === 0 ? `${Math.round(bytes)} B` : `${value.toFixed(1)} ${units[unit]}`;
}

/** A moment, microseconds since the Unix epoch, in UTC to the second: `2026-11-23 17:04:06Z`. */
export function moment(unixUs) {
  const date = new Date(unixUs / 1000);
  if (Number.isNaN(date.getTime())) return null;
  return `${date.toISOString().slice(0, 19).replace("T", " ")}Z`;
}

/** How long before the answer a moment was; by the answering node's clock alone. */
export function ago(thenUs, nowUs) {
  if (thenUs === null || nowUs === null) return null;
  const seconds = (nowUs - thenUs) / 1e6;
  // Clocks of two machines may differ a little: not in the future, therefore.
  if (seconds < 1 && seconds > -60) return "just now";
  // In one piece, wherever the line ends.
  return (seconds < 0 ? `in ${span(-seconds)}` : `${span(seconds)} ago`).replaceAll(" ", "\u00a0");
}

/** An epoch: `3`, and `1.3` once a sole survivor was recovered. */
export function epoch(value) {
  const { incarnation, number } = fields(value);
  if (amount(incarnation) === null || amount(number) === null) return null;
  return incarnation === 0 ? `${number}` : `${incarnation}.${number}`;
}
