/**
 * A heat map of sites by steps on a canvas: colours, rows, the place of the pointer. It knows no controls and no server.
 *
 * Not finite is never lost: a pixel that holds several cells is painted as not finite when one of them is.
 */

import { palette } from "./colour.js";

const NONE = 0;
const ZERO = 1;
const BAD = 2;
const COLOUR = 3; // and 255 more

/**
 * What is drawn, as the server sends it, with the columns that each row's cells reach over.
 * @typedef {{sites: string[], first: Float64Array, last: Float64Array, mean: Float32Array, low: Float32Array | null,
 *   high: Float32Array | null, bad: Uint16Array | null, columns: number, from: number, to: number, reach: Int32Array}} Table
 * @typedef {{name: string, sites: number[], block: number, folded: boolean}} Row
 * @typedef {{name: string, first: number, count: number, folded: boolean}} Block
 */

/** @param {import("./source.js").Packed} packed @param {number | null} from @param {number | null} to @returns {Table} */
export function table({ header, arrays }, from = null, to = null) {
  const { first, last, mean, low = null, high = null, bad = null } = arrays;
  const columns = first.length;
  /** @type {Table} */
  const found = {
    sites: header.sites, first, last, mean, low, high, bad, columns,
    from: from ?? (columns ? first[0] : 0),
    to: Math.max((to ?? (columns ? last[columns - 1] : 0)) + 1, (from ?? (columns ? first[0] : 0)) + 1),
    reach: new Int32Array(0),
  };
  found.reach = reaches(found);
  return found;
}

/** Whether there is a value at all. @param {Table} data @param {number} at */
export function present(data, at) {
  return !Number.isNaN(data.mean[at]) || (data.bad !== null && data.bad[at] > 0);
}

/**
 * For each cell the column whose value it shows: its own, or where a row is logged every so often, the one before. -1: none.
 * @param {Table} data
 */
function reaches(data) {
  const { columns, first } = data;
  const found = new Int32Array(data.sites.length * columns).fill(-1);
  for (let row = 0; row < data.sites.length; row += 1) {
    const base = row * columns;
    let [count, begin, end] = [0, -1, -1];
    for (let c = 0; c < columns; c += 1) {
      if (!present(data, base + c)) continue;
      found[base + c] = c;
      if (begin < 0) begin = c;
      end = c;
      count += 1;
    }
    if (count < 2 || count > columns * 0.75) continue;
    const hold = (1.25 * (first[end] - first[begin])) / (count - 1);
    let previous = -1;
    for (let c = 0; c < columns; c += 1) {
      if (found[base + c] === c) previous = c;
      else if (previous >= 0 && first[c] - first[previous] < hold) found[base + c] = previous;
    }
  }
  return found;
}

/**
 * Which columns each device pixel shows: [first, last] of each, -1 where none.
 * @param {Table} data @param {number} width
 */
function pixelColumns(data, width) {
  const { first, last, columns, from, to } = data;
  const begin = new Int32Array(width).fill(-1);
  const end = new Int32Array(width).fill(-1);
  const gaps = [];
  for (let c = 1; c < columns; c += 1) gaps.push(first[c] - last[c - 1]);
  gaps.sort((a, b) => a - b);
  const usual = 1.5 * (gaps[gaps.length >> 1] || 1);
  const scale = width / (to - from);
  for (let c = 0; c < columns; c += 1) {
    const next = c + 1 < columns ? first[c + 1] : last[c] + Math.max(1, gaps[gaps.length >> 1] || 1);
    const stop = next - last[c] <= usual ? next : last[c] + 1;
    const x0 = Math.floor((first[c] - from) * scale + 1e-6);
    const x1 = Math.max(x0 + 1, Math.ceil((stop - from) * scale - 1e-6));
    for (let x = Math.max(0, x0); x < Math.min(width, x1); x += 1) {
      if (begin[x] < 0) begin[x] = c;
      end[x] = c;
    }
  }
  return { begin, end };
}

/** The codes of all cells: what they are, or their place on the colour map. @param {Table} data @param {import("./metric.js").Scale} scale @param {"high" | "mean" | "low"} which */
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

/** The more telling of two codes: not finite, then (on a map with a middle) what is farther out, then what is larger. @param {number} a @param {number} b @param {boolean} diverging */
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
  /** @type {import("./metric.js").Scale | null} */
  scale = null;
  /** The tops of rows and the bottom of the last, in device pixels. @type {number[]} */
  tops = [0];
  /** @type {Uint16Array | null} */
  #codes = null;
  #coded = "";
  ratio = 1;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
  }

  /**
   * Lay rows out: as high as fits, a thin gap between blocks.
   * @param {number} width @param {number} height both in CSS pixels; @param {number} least the least height of a row
   * @param {number} most @param {boolean} gaps @returns {number} the height that it takes
   */
  layout(width, height, least, most, gaps = true) {
    this.ratio = window.devicePixelRatio || 1;
    const gap = gaps && this.blocks.length > 1 && this.blocks.length < 80 ? Math.round(2 * this.ratio) : 0;
    const room = Math.floor(height * this.ratio) - gap * Math.max(0, this.blocks.length - 1);
    const fit = room / Math.max(1, this.rows.length);
    const row = Math.max(Math.max(1, least * this.ratio), Math.min(most * this.ratio, fit >= 2 ? Math.floor(fit) : fit));
    this.tops = [];
    let y = 0;
    this.rows.forEach((one, index) => {
      if (index && one.block !== this.rows[index - 1].block) y += gap;
      this.tops.push(Math.round(y));
      y += row;
    });
    this.tops.push(Math.round(y));
    this.gap = gap;
    this.canvas.width = Math.max(1, Math.round(width * this.ratio));
    this.canvas.height = Math.max(1, this.tops.at(-1) || 1);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${this.canvas.height / this.ratio}px`;
    return this.canvas.height / this.ratio;
  }

  /** The bottom of a row in device pixels. @param {number} row */
  bottom(row) {
    const next = this.tops[row + 1];
    const last = row + 1 < this.rows.length && this.rows[row + 1].block !== this.rows[row].block;
    return last ? Math.max(this.tops[row] + 1, next - (this.gap || 0)) : Math.max(this.tops[row] + 1, next);
  }

  /** Paint. @param {"light" | "dark"} theme @param {"high" | "mean" | "low"} which */
  draw(theme, which) {
    const { data, scale, canvas } = this;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    if (!data || !scale || !data.columns) return context.clearRect(0, 0, canvas.width, canvas.height);
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
      this.#line(line, row, begin, end, scale.kind === "diverging");
      const top = this.tops[index] * width;
      for (let x = 0; x < width; x += 1) {
        const colour = colours[line[x]];
        // Rows lower than a pixel share one: not finite wins there too.
        if (colour && pixels[top + x] !== colours[BAD]) pixels[top + x] = colour;
      }
      for (let y = this.tops[index] + 1; y < this.bottom(index); y += 1) pixels.copyWithin(y * width, top, top + width);
    });
    context.putImageData(image, 0, 0);
    return undefined;
  }

  /** Forget what was computed for other data. */
  changed() {
    this.#codes = null;
  }

  /** The codes of one row of pixels. @param {Uint16Array} line @param {Row} row @param {Int32Array} begin @param {Int32Array} end @param {boolean} diverging */
  #line(line, row, begin, end, diverging) {
    const { columns, reach } = /** @type {Table} */ (this.data);
    const all = /** @type {Uint16Array} */ (this.#codes);
    for (let x = 0; x < line.length; x += 1) {
      let code = NONE;
      if (begin[x] >= 0) {
        for (const site of row.sites) {
          for (let c = begin[x]; c <= end[x]; c += 1) {
            const at = reach[site * columns + c];
            if (at >= 0) code = stronger(code, all[site * columns + at], diverging);
          }
        }
      }
      line[x] = code;
    }
  }

  /** @param {"light" | "dark"} theme */
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

  /** The column that is shown at a step. @param {number} step */
  columnAt(step) {
    const { first, columns } = /** @type {Table} */ (this.data);
    let [low, high] = [0, columns - 1];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (first[middle] <= step) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /**
   * What a row shows at a step: of a folded block the most telling of its sites.
   * @param {number} row @param {number} step
   */
  cell(row, step) {
    const data = /** @type {Table} */ (this.data);
    const column = this.columnAt(step);
    let best = null;
    for (const site of this.rows[row].sites) {
      const at = data.reach[site * data.columns + column];
      if (at < 0) continue;
      const place = site * data.columns + at;
      const bad = data.bad === null ? 0 : data.bad[place];
      const one = {
        site: data.sites[site], first: data.first[at], last: data.last[at], mean: data.mean[place],
        low: data.low === null ? data.mean[place] : data.low[place], high: data.high === null ? data.mean[place] : data.high[place], bad,
      };
      if (!best || one.bad > best.bad || (one.bad === best.bad && one.high > best.high)) best = one;
    }
    return { column, cell: best };
  }

  /** The first step of each column in which something is not finite. */
  badColumns() {
    const { data } = this;
    if (!data || data.bad === null) return [];
    const found = new Map();
    for (let c = 0; c < data.columns; c += 1) {
      for (const row of this.rows) {
        for (const site of row.sites) {
          const many = data.bad[site * data.columns + c];
          if (many) found.set(c, (found.get(c) || 0) + 1);
        }
      }
    }
    return [...found].map(([c, sites]) => ({ step: data.first[c], sites }));
  }
}
