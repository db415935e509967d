/**
 * The block of a Jacobian as a matrix on a canvas, with the names of its rows and columns; hovering shows a derivative.
 *
 * @import { Jacobian, JacobianHeader } from "../answers"
 * @import { Theme } from "./colour.js"
 * @import { Scale } from "./metric.js"
 * @typedef {{label: number, cell: number, high: number, rows: number, cols: number}} Geometry in CSS pixels: the width
 *   of the names of rows, the width of a cell and its height
 */

import { palette } from "./colour.js";
import { context2d, cssVariable, el, put } from "./dom.js";
import { number } from "./format.js";
import { legend } from "./legend.js";
import { makeScale } from "./metric.js";

/** Of a block with more numbers the largest are cut off the colour map. */
const FEW = 400;
const CUT = 0.995;

export class JacobianMatrix {
  /** What is shown. @type {{header: JacobianHeader, block: Float32Array, geometry: Geometry} | null} */
  #shown = null;

  constructor() {
    this.tip = el("div", { class: "tip" });
    this.canvas = el("canvas", {
      class: "matrix", tabindex: 0, role: "img",
      on: { pointermove: (event) => this.#hover(event), pointerleave: () => (this.tip.style.display = "none") },
    });
    this.box = el("div", { class: "matrix-box" }, this.canvas, this.tip);
  }

  /**
   * Draw a block; returns the matrix and its legend.
   * @param {Jacobian} answer @param {Theme} theme @param {number} room the width of the card in CSS pixels
   * @param {string} title
   */
  show({ header, arrays }, theme, room, title) {
    const { block } = arrays;
    if (!block) return [];
    const [rows, cols] = block.shape;
    const magnitudes = Float32Array.from(Array.from(block).filter(Number.isFinite), Math.abs).sort();
    const isCut = magnitudes.length > FEW;
    const largest = magnitudes[magnitudes.length - 1] || 1;
    const end = (isCut ? magnitudes[Math.round(CUT * (magnitudes.length - 1))] : 0) || largest;
    const scale = makeScale("jacobian", { all: [-end, end], positive: [end], negative: true }, { cut: 0, unit: "" });
    const geometry = layOut(header, rows, cols, room);
    this.#shown = { header, block, geometry };
    this.#sizeCanvas(geometry);
    drawCells(this.canvas, block, geometry, scale, theme);
    drawNames(context2d(this.canvas), header, geometry);
    this.canvas.setAttribute("aria-label", `${title}, ${rows} by ${cols}, magnitudes up to ${number(largest)}`);
    const cut = isCut ? `, colours end at 99.5 % (largest ${number(largest)})` : "";
    return [this.box, legend(scale, theme, { title: `∂of / ∂wrt${cut}`, zero: false, absent: false })];
  }

  /** @param {Geometry} geometry */
  #sizeCanvas({ label, cell, high, rows, cols }) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [label + cell * cols + 4, high * rows + 40];
    Object.assign(this.canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const context = context2d(this.canvas);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }

  /** @param {PointerEvent} event */
  #hover(event) {
    if (!this.#shown) return;
    const { header, block, geometry: { label, cell, high, rows, cols } } = this.#shown;
    const [r, c] = [Math.floor(event.offsetY / high), Math.floor((event.offsetX - label) / cell)];
    if (r < 0 || c < 0 || r >= rows || c >= cols) {
      this.tip.style.display = "none";
      return;
    }
    const [row, col] = [header.row_names?.[r], header.col_names?.[c]];
    const name = `∂ ${header.of}[${row}] / ∂ ${header.wrt}[${col}]`;
    const value = number(block[r * cols + c]);
    put(this.tip, el("div", { class: "tip-step", text: name }), el("div", { class: "tip-value", text: value }));
    this.tip.style.display = "block";
    const left = Math.max(0, Math.min(event.offsetX + 14, this.canvas.clientWidth - this.tip.offsetWidth));
    this.tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(event.offsetY + 16)}px)`;
  }
}

/** @param {JacobianHeader} header @param {number} rows @param {number} cols @param {number} room @returns {Geometry} */
function layOut(header, rows, cols, room) {
  const longest = Math.max(...(header.row_names || []).slice(0, 60).map((one) => one.length));
  const label = Math.min(150, 30 + 6.8 * longest);
  const width = Math.max(220, (room || 600) - 34 - label);
  const cell = Math.min(44, width / cols);
  const fit = Math.max(cell, Math.min(26, 420 / rows));
  return { label, cell, high: Math.max(rows <= 40 ? 12 : 1, Math.min(44, fit, 520 / rows)), rows, cols };
}

/**
 * The cells and a frame around them, on a canvas that is scaled to CSS pixels.
 * @param {HTMLCanvasElement} canvas @param {Float32Array} block @param {Geometry} geometry @param {Scale} scale
 * @param {Theme} theme
 */
function drawCells(canvas, block, { label, cell, high, rows, cols }, scale, theme) {
  const colours = palette(theme);
  const ratio = window.devicePixelRatio || 1;
  const wide = Math.min(cols, Math.max(1, Math.round(cell * cols * ratio)));
  const tall = Math.min(rows, Math.max(1, Math.round(high * rows * ratio)));
  const image = new ImageData(wide, tall);
  const pixels = new Uint32Array(image.data.buffer);
  strongest(block, rows, cols, tall, wide).forEach((value, i) => {
    const place = Math.max(0, Math.min(255, Math.round(255 * scale.place(value))));
    pixels[i] = Number.isFinite(value) ? colours.diverging[place] : colours.nonfinite;
  });
  const small = Object.assign(document.createElement("canvas"), { width: wide, height: tall });
  context2d(small).putImageData(image, 0, 0);
  const context = context2d(canvas);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, label, 0, cell * cols, high * rows);
  context.strokeStyle = cssVariable("--line-strong");
  context.strokeRect(label + 0.5, 0.5, cell * cols - 1, high * rows - 1);
}

/**
 * The names of rows and columns, as many as there is room for, and of both sites.
 * @param {CanvasRenderingContext2D} context @param {JacobianHeader} header @param {Geometry} geometry
 */
function drawNames(context, { of, wrt, row_names: rowNames = [], col_names: colNames = [] }, geometry) {
  const { label, cell, high, rows, cols } = geometry;
  context.font = `11px ${cssVariable("--font")}`;
  context.fillStyle = cssVariable("--muted");
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (let r = 0; r < rows; r += Math.ceil(13 / high)) {
    context.fillText(fitted(context, rowNames[r], label - 30), label - 8, high * (r + 0.5));
  }
  context.textBaseline = "top";
  context.textAlign = "center";
  const widest = Math.max(...colNames.slice(0, 400).map((one) => context.measureText(one).width));
  for (let c = 0; c < cols; c += Math.ceil((Math.min(90, widest) + 10) / cell)) {
    context.fillText(fitted(context, colNames[c], 90), label + cell * (c + 0.5), high * rows + 5);
  }
  context.fillStyle = cssVariable("--text");
  context.fillText(wrt, label + (cell * cols) / 2, high * rows + 23);
  context.save();
  context.translate(7, (high * rows) / 2);
  context.rotate(-Math.PI / 2);
  context.textBaseline = "middle";
  context.fillText(of, 0, 0);
  context.restore();
}

/**
 * A matrix on fewer pixels than it has numbers: each shows what is not finite, else the number of largest magnitude.
 * @param {Float32Array} block @param {number} rows @param {number} cols @param {number} tall @param {number} wide
 */
function strongest(block, rows, cols, tall, wide) {
  if (rows === tall && cols === wide) return block;
  const found = new Float32Array(tall * wide);
  for (let r = 0; r < rows; r += 1) {
    for (let c = 0; c < cols; c += 1) {
      const at = Math.floor((r * tall) / rows) * wide + Math.floor((c * wide) / cols);
      const value = block[r * cols + c];
      if (Number.isFinite(found[at]) && !(Math.abs(value) <= Math.abs(found[at]))) found[at] = value;
    }
  }
  return found;
}

/**
 * Text shortened at its end to a width.
 * @param {CanvasRenderingContext2D} context @param {string} text @param {number} room
 */
function fitted(context, text, room) {
  let short = text;
  while (short.length > 2 && context.measureText(short).width > room) short = `${short.slice(0, -2)}…`;
  return short;
}
