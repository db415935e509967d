/** The axis of steps below a heat map, and thin lines of scalars; both drawn on a canvas. */

import { sizeCanvas, cssVariable } from "./dom.js";
import { step as stepText, ticks } from "./format.js";

/**
 * The axis of the steps from `from` up to, but without, `to`.
 * @param {HTMLCanvasElement} canvas @param {number} width @param {number} from @param {number} to
 */
export function drawStepAxis(canvas, width, from, to) {
  const context = sizeCanvas(canvas, width, 30);
  context.font = `11px ${cssVariable("--font")}`;
  context.fillStyle = cssVariable("--muted");
  context.strokeStyle = cssVariable("--line-strong");
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
 * A line over steps, without axes: between the lowest and the highest value that is shown.
 * @param {HTMLCanvasElement} canvas @param {number} width @param {number} height
 * @param {{steps: ArrayLike<number>, values: ArrayLike<number>, from: number, to: number, log?: boolean}} line
 * @param {string} colour
 */
export function drawLine(canvas, width, height, { steps, values, from, to, log = false }, colour) {
  const context = sizeCanvas(canvas, width, height);
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
  let isDrawing = false;
  for (let i = 0; i < steps.length; i += 1) {
    const value = place(values[i]);
    if (!Number.isFinite(value)) {
      isDrawing = false;
      continue;
    }
    const x = ((steps[i] - from + 0.5) / (to - from)) * width;
    const y = height - pad - ((value - low) / (high - low)) * (height - 2 * pad);
    if (isDrawing) context.lineTo(x, y);
    else context.moveTo(x, y);
    isDrawing = true;
  }
  context.stroke();
}
