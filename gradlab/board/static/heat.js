/**
 * A heat map of sites by steps on a canvas: rows, colours, and which row and step a place on it belongs to. It knows
 * neither the controls nor the server.
 *
 * Not finite is never lost: a pixel that holds several cells is painted as not finite when one of them is.
 *
 * @import { Theme } from "./colour.js"
 * @import { Table } from "./heat_table.js"
 * @import { Scale } from "./metric.js"
 * @import { Block, Row } from "./sites.js"
 * @typedef {"high" | "mean" | "low"} Statistic which value a cell of several steps shows
 */

import { palette } from "./colour.js";
import { context2d } from "./dom.js";
import { cellOf, columnAt, nonfiniteColumns } from "./heat_table.js";

// Codes of cells: what they are, or COLOUR plus a place on the colour map.
const NONE = 0;
const ZERO = 1;
const BAD = 2;
const COLOUR = 3; // and 255 more

/**
 * The columns that each device pixel shows, from `begin` to `end`, -1 where none. A column reaches to the next one;
 * where that is farther off than usual there is a gap.
 * @param {Table} data @param {number} width
 */
function pixelColumns(data, width) {
  const { first, last, columns, from, to } = data;
  const begin = new Int32Array(width).fill(-1);
  const end = new Int32Array(width).fill(-1);
  const gaps = [];
  for (let c = 1; c < columns; c += 1) gaps.push(first[c] - last[c - 1]);
  gaps.sort((a, b) => a - b);
  const median = gaps[gaps.length >> 1] || 1;
  const scale = width / (to - from);
  for (let c = 0; c < columns; c += 1) {
    const next = c + 1 < columns ? first[c + 1] : last[c] + Math.max(1, median);
    const stop = next - last[c] <= 1.5 * median ? next : last[c] + 1;
    const x0 = Math.floor((first[c] - from) * scale + 1e-6);
    const x1 = Math.max(x0 + 1, Math.ceil((stop - from) * scale - 1e-6));
    for (let x = Math.max(0, x0); x < Math.min(width, x1); x += 1) {
      if (begin[x] < 0) begin[x] = c;
      end[x] = c;
    }
  }
  return { begin, end };
}

/** The codes of all cells. @param {Table} data @param {Scale} scale @param {Statistic} which */
function codes(data, scale, which) {
  const values = (which === "mean" ? null : data[which]) || data.mean;
  const found = new Uint16Array(values.length);
  const { bad } = data;
  for (let i = 0; i < values.length; i += 1) {
    const value = values[i];
    if (bad !== null && bad[i] > 0) found[i] = BAD;
    else if (Number.isNaN(value)) found[i] = NONE;
    else if (scale.log && value <= 0) found[i] = ZERO;
    else found[i] = COLOUR + Math.max(0, Math.min(255, Math.round(255 * scale.place(value))));
  }
  return found;
}

/**
 * The more telling of two codes: not finite; then on a diverging map what is farther from its middle, else what is
 * larger.
 * @param {number} a @param {number} b @param {boolean} diverging
 */
function stronger(a, b, diverging) {
  if (a === BAD || b === BAD) return BAD;
  if (a < COLOUR || b < COLOUR) return a > b ? a : b;
  if (!diverging) return a > b ? a : b;
  return Math.abs(a - COLOUR - 127.5) >= Math.abs(b - COLOUR - 127.5) ? a : b;
}

/** A heat map. */
export class HeatMap {
  /** @type {Table | null} */
  data = null;
  /** @type {Row[]} */
  rows = [];
  /** @type {Block[]} */
  blocks = [];
  /** @type {Scale | null} */
  scale = null;
  /** The tops of rows and the bottom of the last, in device pixels. @type {number[]} */
  tops = [0];
  /** @type {Uint16Array | null} */
  #codes = null;
  #coded = "";
  /** Device pixels in a CSS pixel. */
  ratio = 1;
  /** Between blocks, in device pixels. */
  #gap = 0;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
  }

  /**
   * Lay rows out: as high as fits, a thin gap between blocks. All in CSS pixels.
   * @param {number} width @param {number} height
   * @param {number} least the least height of a row @param {number} most the greatest
   * @param {boolean} gaps @returns {number} the height that it takes
   */
  layout(width, height, least, most, gaps = true) {
    this.ratio = window.devicePixelRatio || 1;
    const gap = gaps && this.blocks.length > 1 && this.blocks.length < 80 ? Math.round(2 * this.ratio) : 0;
    const room = Math.floor(height * this.ratio) - gap * Math.max(0, this.blocks.length - 1);
    const exact = room / Math.max(1, this.rows.length);
    const fit = exact >= 2 ? Math.floor(exact) : exact;
    const row = Math.max(1, least * this.ratio, Math.min(most * this.ratio, fit));
    this.tops = [];
    let y = 0;
    this.rows.forEach((one, index) => {
      if (index && one.block !== this.rows[index - 1].block) y += gap;
      this.tops.push(Math.round(y));
      y += row;
    });
    this.tops.push(Math.round(y));
    this.#gap = gap;
    this.canvas.width = Math.max(1, Math.round(width * this.ratio));
    this.canvas.height = Math.max(1, this.tops.at(-1) || 1);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${this.canvas.height / this.ratio}px`;
    return this.canvas.height / this.ratio;
  }

  /** The bottom of a row in device pixels. @param {number} row */
  bottom(row) {
    const next = this.tops[row + 1];
    const isBeforeGap = row + 1 < this.rows.length && this.rows[row + 1].block !== this.rows[row].block;
    return isBeforeGap ? Math.max(this.tops[row] + 1, next - this.#gap) : Math.max(this.tops[row] + 1, next);
  }

  /** Paint. @param {Theme} theme @param {Statistic} which */
  draw(theme, which) {
    const { data, scale, canvas } = this;
    const context = context2d(canvas);
    if (!data || !scale || !data.columns) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      return;
    }
    const key = `${scale.low} ${scale.high} ${scale.kind} ${which}`;
    if (this.#coded !== key || !this.#codes) {
      this.#codes = codes(data, scale, which);
      this.#coded = key;
    }
    const colours = this.#colours(theme);
    const { width, height } = canvas;
    const image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const { begin, end } = pixelColumns(data, width);
    const line = new Uint16Array(width);
    this.rows.forEach((row, index) => {
      this.#fillLine(line, data, row, { begin, end }, scale.kind === "diverging");
      const top = this.tops[index] * width;
      for (let x = 0; x < width; x += 1) {
        const colour = colours[line[x]];
        // Rows lower than a pixel share one: not finite wins there too.
        if (colour && pixels[top + x] !== colours[BAD]) pixels[top + x] = colour;
      }
      for (let y = this.tops[index] + 1; y < this.bottom(index); y += 1) pixels.copyWithin(y * width, top, top + width);
    });
    context.putImageData(image, 0, 0);
  }

  /** Show other data. @param {Table} data */
  setData(data) {
    this.data = data;
    this.#codes = null;
  }

  /**
   * The codes of one row of pixels.
   * @param {Uint16Array} line @param {Table} data @param {Row} row
   * @param {{begin: Int32Array, end: Int32Array}} pixels the columns of each @param {boolean} diverging
   */
  #fillLine(line, { columns, shown }, row, { begin, end }, diverging) {
    const all = /** @type {Uint16Array} */ (this.#codes);
    for (let x = 0; x < line.length; x += 1) {
      let code = NONE;
      if (begin[x] >= 0) {
        for (const site of row.sites) {
          for (let c = begin[x]; c <= end[x]; c += 1) {
            const at = shown[site * columns + c];
            if (at >= 0) code = stronger(code, all[site * columns + at], diverging);
          }
        }
      }
      line[x] = code;
    }
  }

  /** The pixel of each code. @param {Theme} theme */
  #colours(theme) {
    const known = palette(theme);
    const map = this.scale?.kind === "diverging" ? known.diverging : known.sequential;
    const found = new Uint32Array(COLOUR + 256);
    found[NONE] = known.absent;
    found[ZERO] = known.zero;
    found[BAD] = known.nonfinite;
    found.set(map, COLOUR);
    return found;
  }

  /** The row at a height in CSS pixels, or -1. @param {number} y */
  rowAt(y) {
    const at = y * this.ratio;
    if (at < 0 || at >= (this.tops.at(-1) || 0)) return -1;
    let [low, high] = [0, this.rows.length - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.tops[middle] <= at) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** The step at a place in CSS pixels. @param {number} x */
  stepAt(x) {
    const { from, to } = /** @type {Table} */ (this.data);
    return from + (x * this.ratio * (to - from)) / this.canvas.width;
  }

  /** The place of a step in CSS pixels. @param {number} step */
  x(step) {
    const { from, to } = /** @type {Table} */ (this.data);
    return ((step - from) / (to - from)) * (this.canvas.width / this.ratio);
  }

  /**
   * What a row shows at a step, and in which column; the cell is null where it has no value there.
   * @param {number} row @param {number} step
   */
  cell(row, step) {
    const data = /** @type {Table} */ (this.data);
    const column = columnAt(data, step);
    return { column, cell: cellOf(data, this.rows[row].sites, column) };
  }

  /** The columns in which something that is shown is not finite. */
  nonfiniteColumns() {
    return this.data ? nonfiniteColumns(this.data, this.rows.flatMap((row) => row.sites)) : [];
  }
}
