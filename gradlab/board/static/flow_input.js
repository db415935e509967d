/**
 * Pointer and keys on the heat map of the flow: hovering shows what a cell holds, a click chooses it, dragging zooms,
 * and the arrow keys move from cell to cell.
 *
 * @import { HeatHeader } from "../answers"
 * @import { App } from "./app.js"
 * @import { HeatMap } from "./heat.js"
 * @import { cellOf } from "./heat_table.js"
 * @typedef {NonNullable<ReturnType<typeof cellOf>>} Cell
 */

import { el, put } from "./dom.js";
import { count, number, step as stepText, withUnit } from "./format.js";
import { columnAt } from "./heat_table.js";
import { LOG_RATIO } from "./metric.js";

/** How far the pointer moves before it drags, to show that it does and to zoom, in pixels. */
const DRAG_SHOWN = 4;
const DRAG = 6;
/** What arrow keys add to row and column. @type {Record<string, [number, number]>} */
const MOVES = {
  ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity],
};

export class FlowInput {
  /** Where the pointer went down, -1 while it is up. */
  #dragStart = -1;
  /** The cell that the keys have moved to. @type {{row: number, step: number} | null} */
  #cursor = null;
  /** What is said of the metric that is shown. @type {HeatHeader | null} */
  header = null;

  /**
   * @param {App} app @param {HeatMap} heat @param {(block: string) => void} fold called with a block to fold or unfold
   */
  constructor(app, heat, fold) {
    this.app = app;
    this.heat = heat;
    this.fold = fold;
    this.vline = el("div", { class: "cross v" });
    this.hline = el("div", { class: "cross h" });
    this.span = el("div", { class: "span" });
    /** Goes over the heat map. */
    this.overlays = [this.vline, this.hline, this.span];
    this.tip = el("div", { class: "tip", role: "presentation" });
    /** Speaks the cell that the keys have moved to. */
    this.spoken = el("div", { class: "said", "aria-live": "polite" });
    this.#listen(heat.canvas);
  }

  /** @param {HTMLCanvasElement} canvas */
  #listen(canvas) {
    canvas.addEventListener("pointermove", (e) => this.#hover(e.offsetX, e.offsetY, e.clientX, e.clientY));
    canvas.addEventListener("pointerleave", () => this.#leave());
    canvas.addEventListener("pointerdown", (e) => {
      this.#dragStart = e.offsetX;
      canvas.setPointerCapture(e.pointerId);
    });
    canvas.addEventListener("pointerup", (e) => this.#release(e.offsetX, e.offsetY));
    canvas.addEventListener("dblclick", () => this.app.choose({ start: null, end: null }));
    canvas.addEventListener("keydown", (e) => this.#key(e));
    canvas.addEventListener("blur", () => this.#leave());
  }

  // The pointer

  /**
   * @param {number} x on the heat map @param {number} y @param {number} clientX in the window @param {number} clientY
   */
  #hover(x, y, clientX, clientY) {
    const { heat } = this;
    if (!heat.data) return;
    const dragged = this.#dragStart >= 0 ? Math.abs(x - this.#dragStart) : 0;
    if (dragged > DRAG_SHOWN) {
      const left = Math.min(x, this.#dragStart);
      Object.assign(this.span.style, { display: "block", left: `${left}px`, width: `${dragged}px` });
    }
    const row = heat.rowAt(y);
    if (row < 0) {
      this.#leave();
      return;
    }
    this.#drawCross(row, x);
    put(this.tip, ...this.#describe(row, heat.stepAt(x)));
    this.#placeTip(clientX, clientY);
  }

  /** @param {number} row @param {number} x */
  #drawCross(row, x) {
    const { heat } = this;
    const [top, bottom] = [heat.tops[row] / heat.ratio, heat.bottom(row) / heat.ratio];
    const height = Math.max(1, bottom - top);
    Object.assign(this.hline.style, { display: "block", top: `${top}px`, height: `${height}px` });
    Object.assign(this.vline.style, { display: "block", left: `${x}px` });
  }

  /** @param {number} clientX @param {number} clientY */
  #placeTip(clientX, clientY) {
    const { tip } = this;
    tip.style.display = "block";
    const box = /** @type {HTMLElement} */ (tip.parentElement).getBoundingClientRect();
    const [left, top] = [clientX - box.left, clientY - box.top];
    const isOnRight = left > box.width * 0.55;
    const x = isOnRight ? left - tip.offsetWidth - 14 : left + 14;
    const y = Math.min(top + 14, box.height - tip.offsetHeight - 6);
    tip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  }

  /** Hide what follows the pointer. */
  #leave() {
    for (const one of [this.tip, this.vline, this.hline]) one.style.display = "none";
  }

  /** The pointer goes up: a drag zooms, a click chooses. @param {number} x @param {number} y */
  #release(x, y) {
    const from = this.#dragStart;
    this.#dragStart = -1;
    this.span.style.display = "none";
    const { heat } = this;
    if (from < 0 || !heat.data) return;
    if (Math.abs(x - from) > DRAG) {
      const start = Math.max(heat.data.from, Math.floor(heat.stepAt(Math.min(x, from))));
      const end = Math.min(heat.data.to - 1, Math.ceil(heat.stepAt(Math.max(x, from))));
      this.app.choose({ start, end });
      return;
    }
    const row = heat.rowAt(y);
    if (row >= 0) this.#select(row, heat.stepAt(x));
  }

  /** @param {number} row @param {number} step */
  #select(row, step) {
    const { heat } = this;
    if (!heat.data) return;
    const { cell, column } = heat.cell(row, step);
    const site = cell ? cell.site : heat.data.sites[heat.rows[row].sites[0]];
    this.app.choose({ site, step: cell ? cell.last : heat.data.last[column] });
  }

  // The keys

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { heat, app } = this;
    const { choice } = app;
    if (!heat.data) return;
    const chosenRow = heat.rows.findIndex((row) => row.name === choice.site);
    const at = this.#cursor || { row: Math.max(0, chosenRow), step: choice.step ?? heat.data.from };
    if (event.key in MOVES) this.#move(at, MOVES[event.key], event.shiftKey ? 10 : 1);
    else if (event.key === "Enter") {
      this.#select(at.row, at.step);
      app.choose({ view: "layer" });
    } else if (event.key === " ") this.fold(heat.blocks[heat.rows[at.row].block].name);
    else if (event.key === "+") this.#zoom(at.step, 0.5);
    else if (event.key === "-") this.#zoom(at.step, 2);
    else if (event.key === "Escape") app.choose({ start: null, end: null, step: null, site: "" });
    else return;
    event.preventDefault();
  }

  /** @param {{row: number, step: number}} from @param {[number, number]} by rows and columns @param {number} times */
  #move(from, [rows, columns], times) {
    const { heat } = this;
    if (!heat.data) return;
    const row = Math.min(heat.rows.length - 1, Math.max(0, from.row + rows));
    const to = columnAt(heat.data, from.step) + columns * times;
    const step = heat.data.first[Math.min(heat.data.columns - 1, Math.max(0, to))];
    this.#cursor = { row, step };
    const box = heat.canvas.getBoundingClientRect();
    const [x, y] = [heat.x(step + 0.5), (heat.tops[row] + heat.bottom(row)) / 2 / heat.ratio];
    this.#hover(x, y, box.left + x, box.top + y);
    this.spoken.textContent = this.#describe(row, step).map((line) => line.textContent).join(", ");
  }

  /** Show the steps around one. @param {number} around @param {number} by less than 1: fewer steps */
  #zoom(around, by) {
    const { data } = this.heat;
    if (!data || !this.header) return;
    const half = Math.max(4, ((data.to - data.from) * by) / 2);
    const last = this.header.last_step;
    const [start, end] = [Math.floor(Math.max(0, around - half)), Math.ceil(Math.min(last, around + half))];
    this.app.choose(start <= 0 && end >= last ? { start: null, end: null } : { start, end });
  }

  // What a cell holds

  /** What a cell holds, in lines. @param {number} row @param {number} step */
  #describe(row, step) {
    const { heat, header } = this;
    if (!heat.data || !header) return [];
    const { cell, column } = heat.cell(row, step);
    const { name, sites, folded } = heat.rows[row];
    const [first, last] = cell ? [cell.first, cell.last] : [heat.data.first[column], heat.data.last[column]];
    const isOneStep = first === last;
    const steps = isOneStep ? `step ${stepText(first)}` : `steps ${stepText(first)} – ${stepText(last)}`;
    const mean = cell && !isOneStep && !Number.isNaN(cell.mean) ? `mean ${withUnit(cell.mean, header.unit)}` : "";
    const bad = cell && cell.bad ? (isOneStep ? "not finite" : `not finite in ${count(cell.bad, "step")}`) : "";
    const lines = [
      ["tip-site", folded ? `${name} (${count(sites.length, "site")})` : name],
      ["tip-step", steps],
      ["tip-step", cell && folded ? cell.site : ""],
      ["tip-value", cell ? valueText(cell, header, isOneStep) : "no value"],
      ["tip-step", mean],
      ["tip-bad", bad],
    ];
    return lines.filter(([, text]) => text).map(([kind, text]) => el("div", { class: kind, text }));
  }
}

/** @param {Cell} cell @param {HeatHeader} header @param {boolean} isOneStep */
function valueText(cell, { unit, scale }, isOneStep) {
  if (scale === LOG_RATIO) {
    return Number.isNaN(cell.mean) ? "not comparable" : `× ${number(2 ** cell.mean)} (log2 ${number(cell.mean)})`;
  }
  if (isOneStep || cell.low === cell.high) return withUnit(cell.mean, unit);
  if (Number.isNaN(cell.high)) return "no finite value";
  return `${withUnit(cell.low, unit)} – ${withUnit(cell.high, unit)}`;
}
