/** The axis of steps below a picture, and thin lines of scalars above it; both on the picture's own scale. */

import { sized, token } from "./dom.js";
import { step as stepText, ticks } from "./format.js";

/** @param {HTMLCanvasElement} canvas @param {number} width @param {number} from @param {number} to */
export function drawStepAxis(canvas, width, from, to) {
  const context = sized(canvas, width, 30);
  context.font = `11px ${token("--font")}`;
  context.fillStyle = token("--muted");
  context.strokeStyle = token("--line-strong");
  context.textBaseline = "top";
  const scale = width / (to - from);
  for (const at of ticks(from, to, Math.max(2, width / 110))) {
    if (at < from || !Number.isInteger(at)) continue;
    const x = Math.round((at - from + 0.5) * scale) + 0.5;
    if (x > width) continue;
    context.beginPath();
    context.moveTo(x, 0);
    context.lineTo(x, 5);
    context.stroke();
    const text = stepText(at);
    const half = context.measureText(text).width / 2;
    context.fillText(text, Math.min(Math.max(0, x - half), width - 2 * half), 8);
  }
}

/**
 * A line of a scalar over steps, small, with its name and last value told elsewhere.
 * @param {HTMLCanvasElement} canvas @param {number} width @param {number} height
 * @param {ArrayLike<number>} steps @param {ArrayLike<number>} values @param {number} from @param {number} to
 * @param {string} colour @param {boolean} [log]
 */
export function drawLine(canvas, width, height, steps, values, from, to, colour, log = false) {
  const context = sized(canvas, width, height);
  const place = log ? (/** @type {number} */ v) => Math.log10(v) : (/** @type {number} */ v) => v;
  let [low, high] = [Infinity, -Infinity];
  for (let i = 0; i < steps.length; i += 1) {
    const value = place(values[i]);
    if (steps[i] < from || steps[i] > to || !Number.isFinite(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return;
  if (low === high) [low, high] = [low - 1, high + 1];
  const pad = 3;
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.beginPath();
  let open = false;
  for (let i = 0; i < steps.length; i += 1) {
    const value = place(values[i]);
    if (!Number.isFinite(value)) {
      open = false;
      continue;
    }
    const x = ((steps[i] - from + 0.5) / (to - from)) * width;
    const y = height - pad - ((value - low) / (high - low)) * (height - 2 * pad);
    if (open) context.lineTo(x, y);
    else context.moveTo(x, y);
    open = true;
  }
  context.stroke();
}
