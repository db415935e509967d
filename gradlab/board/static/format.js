/** Numbers as people read them: four digits, with their unit; and the round numbers that an axis has ticks at. */

const SUPERSCRIPT = "⁰¹²³⁴⁵⁶⁷⁸⁹";

/** @param {number | null | undefined} value */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "+∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  let text;
  if (size >= 1e6 || size < 1e-3) {
    const [mantissa, exponent] = value.toExponential(3).split("e");
    text = `${mantissa.replace(/\.?0+$/, "")}e${Number(exponent)}`;
  } else if (Number.isInteger(value)) text = value.toLocaleString("en-US");
  else text = value.toPrecision(4).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
  return text.replace(/^-/, "−");
}

/** A value with the unit of its metric. @param {number} value @param {string} unit */
export function withUnit(value, unit) {
  if (unit === "fraction" && Number.isFinite(value)) return `${number(100 * value)} %`;
  return unit && Number.isFinite(value) ? `${number(value)} ${unit}` : number(value);
}

/** A step. @param {number} step */
export function step(step) {
  return Math.round(step).toLocaleString("en-US");
}

/** @param {number} count @param {string} what */
export function count(count, what) {
  return `${count.toLocaleString("en-US")} ${what}${count === 1 ? "" : "s"}`;
}

/** @param {number | null | undefined} size */
export function bytes(size) {
  if (size === null || size === undefined) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  let rest = size;
  while (Math.abs(rest) >= 1000 && at < units.length - 1) {
    rest /= 1000;
    at += 1;
  }
  return `${at ? rest.toPrecision(3) : rest} ${units[at]}`;
}

/** @param {number | null | undefined} ms */
export function milliseconds(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms >= 1000) return `${number(ms / 1000)} s`;
  if (ms !== 0 && Math.abs(ms) < 0.1) return `${number(Math.round(ms * 1e4) / 10)} µs`;
  return `${Number(ms.toPrecision(3))} ms`;
}

/** @param {number | null | undefined} share */
export function percent(share) {
  return share === null || share === undefined ? "–" : `${number(Math.round(share * 1000) / 10)} %`;
}

/** A power of ten, short. @param {number} exponent */
export function powerOfTen(exponent) {
  if (exponent >= 0 && exponent <= 3) return String(10 ** exponent);
  if (exponent === -1) return "0.1";
  const digits = [...String(Math.abs(exponent))].map((digit) => SUPERSCRIPT[Number(digit)]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

/**
 * Round numbers between two others, about `about` of them.
 * @param {number} low @param {number} high @param {number} about
 */
export function ticks(low, high, about) {
  const span = high - low;
  if (!(span > 0)) return [low];
  const raw = span / Math.max(1, about);
  const magnitude = 10 ** Math.floor(Math.log10(raw));
  const unit = [1, 2, 5, 10].map((one) => one * magnitude).find((one) => one >= raw) || raw;
  const found = [];
  for (let at = Math.ceil(low / unit - 1e-9) * unit; at <= high + 1e-9 * span; at += unit) {
    found.push(Math.abs(at) < unit * 1e-9 ? 0 : at);
  }
  return found;
}
