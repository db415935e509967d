/** Jacobians: a block as a heat map with the names of its axes, its singular values, both over steps; growth over depth. */

import { axis, draw, faint, layout, lineColours } from "./chart.js";
import { css, palette } from "./colour.js";
import { el, empty, fillSelect, labelled, put, select, settled, token } from "./dom.js";
import { number, step as stepText } from "./format.js";
import { legend } from "./legend.js";
import { makeScale } from "./metric.js";

export class JacobianView {
  #asked = 0;

  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.runSelect = select([], "", (run) => app.choose({ run }));
    this.nameSelect = select([], "", (jacobian) => app.choose({ jacobian }));
    this.range = el("input", { type: "range", min: 0, max: 0, step: 1, on: { input: () => this.#slide() } });
    this.at = el("output", { class: "at" });
    this.slider = labelled("Step", el("div", { class: "slider" }), "stretch");
    this.range.setAttribute("aria-label", "Step");
    this.slider.lastChild?.append(this.range, this.at);
    this.later = settled(() => this.app.choose({ step: this.steps[Number(this.range.value)] }), 60);
    this.bar = el("div", { class: "bar" }, labelled("Run", this.runSelect, "wide"), labelled("Jacobian", this.nameSelect, "wide"), this.slider);
    this.box = el("div", { class: "scrolls" });
    this.root = el("div", { class: "view" }, this.bar, this.box);
    /** @type {number[]} */
    this.steps = [];
    this.canvas = el("canvas", { class: "matrix", tabindex: 0, role: "img", on: { pointermove: (/** @type {any} */ e) => this.#hover(e), pointerleave: () => (this.tip.style.display = "none") } });
    this.tip = el("div", { class: "tip" });
    this.spectrum = el("div", { class: "chart" });
    this.history = el("div", { class: "chart" });
  }

  /** @param {import("./app.js").Choice} choice @param {any} run */
  async update(choice, run) {
    this.choice = choice;
    const app = this.app;
    fillSelect(this.runSelect, app.index.runs.map((/** @type {any} */ one) => ({ value: one.name, text: one.name })), choice.run);
    const known = run.jacobians;
    this.slider.hidden = !known.length;
    fillSelect(this.nameSelect, known.map((/** @type {any} */ one) => ({ value: one.name, text: title(one), group: KINDS[one.kind] || one.kind })), "");
    if (!known.length) {
      put(this.box, empty("No Jacobians in this run", "A slice of the Jacobian between two sites is logged by one line:", el("pre", { text: 'gradlab.watch(model, optimizer, jacobians=[\n    gradlab.JacobianSlice(of="output", wrt="input", rows=10, every=50)])' })));
      return;
    }
    const name = known.some((/** @type {any} */ one) => one.name === choice.jacobian) ? choice.jacobian : known[0].name;
    this.nameSelect.value = name;
    const asked = (this.#asked += 1);
    let packed;
    try {
      packed = await app.ask("jacobian", { run: choice.run, name, step: choice.step });
    } catch (error) {
      if (asked === this.#asked) put(this.box, empty("This Jacobian cannot be shown", /** @type {Error} */ (error).message));
      return;
    }
    if (asked !== this.#asked) return;
    this.packed = packed;
    this.steps = packed.header.steps;
    this.range.max = String(Math.max(0, this.steps.length - 1));
    this.range.value = String(this.steps.indexOf(packed.header.step));
    this.range.disabled = this.steps.length < 2;
    this.#said();
    this.#show();
  }

  #slide() {
    this.#said();
    this.later();
  }

  #said() {
    this.at.textContent = `${stepText(this.steps[Number(this.range.value)] ?? 0)} (${Number(this.range.value) + 1} of ${this.steps.length})`;
  }

  #show() {
    const { header, arrays } = this.packed;
    const growth = header.kind === "depth_growth";
    const left = el("div", { class: "card" }, el("h2", { text: growth ? "Growth over depth" : header.kind === "sharpness" ? "Curvature" : "Block" }), el("div", { class: "sub", text: describe(header) }));
    const right = el("div", { class: "cards" });
    put(this.box, el("div", { class: growth ? "cards" : "jac" }, left, right));
    if (arrays.block && growth) this.#growth(left);
    else if (arrays.block) this.#block(left);
    else left.append(el("p", { class: "hint", text: "This slice was logged without its block: singular values and norms only." }));
    const facts = this.#facts();
    if (facts) right.append(facts);
    if (arrays.singular_values?.length) {
      right.append(el("div", { class: "card" }, el("h2", { text: "Singular values" }), el("div", { class: "sub", text: header.complete === false ? "the leading ones; faint: other steps" : "largest first; faint: other steps" }), this.spectrum));
      this.#drawSpectrum();
    }
    const over = this.#overTime();
    if (over.length) {
      right.append(el("div", { class: "card" }, el("h2", { text: growth ? "Over steps" : "Norm over steps" }), el("div", { class: "sub", text: this.#interval() ? "Frobenius norm with its 95 % interval, and the largest singular value" : "Frobenius norm and the largest singular value" }), this.history));
      draw(this.app.source, this.history, over, layout({ height: 210, width: this.history.clientWidth || 380, margin: { l: 56, r: 10, t: 24, b: 36 }, xaxis: axis({ title: { text: "step" }, tickformat: ",d" }), yaxis: axis({ type: "log", dtick: 1 }), shapes: this.#now() })).catch(() => {});
    }
    for (const note of [header.note, ...(header.notes || [])]) if (note) left.append(el("p", { class: "hint", text: String(note) }));
  }

  #facts() {
    const values = Object.fromEntries(this.packed.header.summaries.map((/** @type {string} */ name, /** @type {number} */ i) => [name, this.#summaryAt(i)]));
    const shown = Object.keys(NAMES).filter((name) => values[name] !== null && values[name] !== undefined);
    if (!shown.length) return null;
    return el("div", { class: "card" }, el("div", { class: "facts" }, ...shown.map((name) => el("div", { class: "fact" }, el("span", { text: NAMES[name] }), el("b", { text: number(values[name]) })))));
  }

  /** @param {number} i */
  #summaryAt(i) {
    const steps = this.packed.arrays[`summary${i}.steps`];
    const at = steps.indexOf(this.packed.header.step);
    return at < 0 ? null : this.packed.arrays[`summary${i}`][at];
  }

  /** @param {HTMLElement} box */
  #block(box) {
    const { header, arrays } = this.packed;
    const [rows, cols] = arrays.block.shape;
    const sizes = Float32Array.from(Array.from(/** @type {Float32Array} */ (arrays.block)).filter(Number.isFinite), Math.abs).sort();
    const [clipped, largest] = [sizes.length > 400, sizes[sizes.length - 1] || 1];
    const far = (clipped ? sizes[Math.round(0.995 * (sizes.length - 1))] : 0) || largest;
    const sorted = { all: [-far, far], positive: [far], negative: true };
    this.scale = makeScale("jacobian", sorted, { cut: 0, unit: "" });
    const label = Math.min(150, 30 + 6.8 * Math.max(...header.row_names.slice(0, 60).map((/** @type {string} */ one) => one.length)));
    const width = Math.max(220, (box.clientWidth || 600) - 34 - label);
    const cell = Math.min(44, width / cols);
    const high = Math.max(rows <= 40 ? 12 : 1, Math.min(44, Math.max(cell, Math.min(26, 420 / rows)), 520 / rows));
    this.box2 = { label, cell, high, rows, cols };
    const ratio = window.devicePixelRatio || 1;
    const [w, h] = [cell * cols, high * rows];
    Object.assign(this.canvas, { width: Math.round((label + w + 4) * ratio), height: Math.round((h + 40) * ratio) });
    Object.assign(this.canvas.style, { width: `${label + w + 4}px`, height: `${h + 40}px` });
    this.#paint();
    box.append(el("div", { class: "matrix-box" }, this.canvas, this.tip), legend(this.scale, this.app.host.theme, { title: clipped ? `∂of / ∂wrt, colours end at 99.5 % (largest ${number(largest)})` : "∂of / ∂wrt", zero: false, absent: false }));
    this.canvas.setAttribute("aria-label", `${describe(header)}, ${rows} by ${cols}, magnitudes up to ${number(largest)}`);
  }

  #paint() {
    const { header, arrays } = this.packed;
    const { label, cell, high, rows, cols } = /** @type {any} */ (this.box2);
    const colours = palette(this.app.host.theme);
    const scale = /** @type {any} */ (this.scale);
    const ratio = window.devicePixelRatio || 1;
    const [wide, tall] = [Math.min(cols, Math.max(1, Math.round(cell * cols * ratio))), Math.min(rows, Math.max(1, Math.round(high * rows * ratio)))];
    const shown = strongest(arrays.block, rows, cols, tall, wide);
    const image = new ImageData(wide, tall);
    const pixels = new Uint32Array(image.data.buffer);
    shown.forEach((value, i) => {
      pixels[i] = Number.isFinite(value) ? colours.diverging[Math.max(0, Math.min(255, Math.round(255 * scale.place(value))))] : colours.nonfinite;
    });
    const small = document.createElement("canvas");
    Object.assign(small, { width: wide, height: tall });
    small.getContext("2d")?.putImageData(image, 0, 0);
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, label, 0, cell * cols, high * rows);
    context.strokeStyle = token("--line-strong");
    context.strokeRect(label + 0.5, 0.5, cell * cols - 1, high * rows - 1);
    context.font = `11px ${token("--font")}`;
    context.fillStyle = token("--muted");
    context.textBaseline = "middle";
    context.textAlign = "right";
    const everyRow = Math.ceil(13 / high);
    for (let r = 0; r < rows; r += everyRow) context.fillText(fitted(context, header.row_names[r], label - 30), label - 8, high * (r + 0.5));
    context.textBaseline = "top";
    context.textAlign = "center";
    const widest = Math.max(...header.col_names.slice(0, 400).map((/** @type {string} */ one) => context.measureText(one).width));
    const everyCol = Math.ceil((Math.min(90, widest) + 10) / cell);
    for (let c = 0; c < cols; c += everyCol) context.fillText(fitted(context, header.col_names[c], 90), label + cell * (c + 0.5), high * rows + 5);
    context.fillStyle = token("--text");
    context.fillText(header.wrt, label + (cell * cols) / 2, high * rows + 23);
    context.save();
    context.translate(7, (high * rows) / 2);
    context.rotate(-Math.PI / 2);
    context.textBaseline = "middle";
    context.fillText(header.of, 0, 0);
    context.restore();
  }

  /** @param {PointerEvent} event */
  #hover(event) {
    const { label, cell, high, rows, cols } = /** @type {any} */ (this.box2);
    const [r, c] = [Math.floor(event.offsetY / high), Math.floor((event.offsetX - label) / cell)];
    if (r < 0 || c < 0 || r >= rows || c >= cols) {
      this.tip.style.display = "none";
      return;
    }
    const { header, arrays } = this.packed;
    put(this.tip, el("div", { class: "tip-step", text: `∂ ${header.of}[${header.row_names[r]}] / ∂ ${header.wrt}[${header.col_names[c]}]` }), el("div", { class: "tip-value", text: number(arrays.block[r * cols + c]) }));
    this.tip.style.display = "block";
    const left = Math.min(event.offsetX + 14, this.canvas.clientWidth - this.tip.offsetWidth);
    this.tip.style.transform = `translate(${Math.round(Math.max(0, left))}px, ${Math.round(event.offsetY + 16)}px)`;
  }

  /** @param {HTMLElement} box */
  #growth(box) {
    const { header, arrays } = this.packed;
    const [rows, cols] = arrays.block.shape;
    const map = palette(this.app.host.theme).sequential;
    const at = [...header.row_names, header.of];
    const chart = el("div", { class: "chart" });
    box.append(chart);
    const traces = [];
    for (let c = cols - 1; c >= 0; c -= 1) {
      const y = [0];
      for (let r = 0; r < rows; r += 1) y.push(y[r] + arrays.block[r * cols + c]);
      const colour = css(map[Math.round(30 + (195 * c) / Math.max(1, cols - 1))]).replaceAll(" ", ",");
      traces.push({ x: at, y, name: `direction ${c + 1}`, mode: "lines+markers", marker: { size: 4 }, line: { color: colour, width: c ? 1.4 : 2.2 }, hovertemplate: "%{y:.4~g}" });
    }
    const shapes = [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: { color: token("--muted"), dash: "4px,4px", width: 1 } }];
    draw(this.app.source, chart, traces, layout({ height: 400, width: box.clientWidth - 34, margin: { l: 60, r: 12, t: 12, b: 80 }, hovermode: "closest", showlegend: false, xaxis: axis({ tickangle: 40 }), yaxis: axis({ title: { text: "log growth since the first site" } }), shapes })).catch(() => {});
    box.append(el("p", { class: "hint", text: `A line for each of ${cols} directions, dark for the one that grows most. Along each the logarithms add up from site to site: flat at 0 is dynamical isometry, falling lines vanish, rising lines explode.` }));
  }

  #drawSpectrum() {
    const { header, arrays } = this.packed;
    const colours = lineColours(this.app.host.theme);
    const k = arrays.spectra.shape[1];
    const x = Array.from({ length: k }, (_, i) => i + 1);
    const traces = [];
    const steps = arrays.spectrum_steps;
    const every = Math.max(1, Math.ceil(steps.length / 24));
    for (let s = 0; s < steps.length; s += every) {
      if (steps[s] !== header.step) traces.push({ x, y: positive(arrays.spectra.subarray(s * k, (s + 1) * k)), mode: "lines", line: { color: faint(token("--muted").startsWith("#") ? token("--muted") : "#888888", 0.28), width: 1 }, hoverinfo: "skip", showlegend: false });
    }
    traces.push({ x, y: positive(arrays.singular_values), name: `step ${stepText(header.step)}`, mode: "lines+markers", marker: { size: 5 }, line: { color: colours[0], width: 2 }, hovertemplate: "σ%{x}: %{y:.4~g}<extra></extra>" });
    draw(this.app.source, this.spectrum, traces, layout({ height: 210, width: this.spectrum.clientWidth || 380, margin: { l: 56, r: 10, t: 10, b: 36 }, hovermode: "closest", showlegend: false, xaxis: axis({ title: { text: "index" }, tickformat: "d" }), yaxis: axis({ type: "log", dtick: 1 }) })).catch(() => {});
  }

  #interval() {
    const names = this.packed.header.summaries;
    return names.includes("fro_lo") && names.includes("fro_hi");
  }

  #overTime() {
    const { header, arrays } = this.packed;
    const colours = lineColours(this.app.host.theme);
    const line = (/** @type {string} */ name) => {
      const i = header.summaries.indexOf(name);
      return i < 0 ? null : { x: arrays[`summary${i}.steps`], y: positive(arrays[`summary${i}`]) };
    };
    const traces = [];
    const [low, high] = [line("fro_lo"), line("fro_hi")];
    if (low && high) traces.push({ ...low, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false }, { ...high, mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: faint(colours[0], 0.2), hoverinfo: "skip", showlegend: false });
    [["fro", "Frobenius norm"], ["sigma_1", "σ₁"]].forEach(([name, text], i) => {
      const found = line(name);
      if (found && found.x.length) traces.push({ ...found, name: text, mode: "lines+markers", marker: { size: 4 }, line: { color: colours[i], width: 1.6 }, hovertemplate: "%{y:.4~g}" });
    });
    return traces;
  }

  #now() {
    return [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: this.packed.header.step, x1: this.packed.header.step, line: { color: token("--accent"), width: 1 } }];
  }
}

/**
 * A matrix on fewer pixels than it has numbers: each shows the number of largest magnitude, and what is not finite first.
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

/** @type {Record<string, string>} */
const KINDS = { block: "Blocks", depth_growth: "Growth over depth", sharpness: "Curvature of the loss" };
/** @type {Record<string, string>} */
const NAMES = { fro: "Frobenius norm", sigma_1: "σ₁, largest", sigma_min: "σ, smallest", cond: "condition number", effective_rank: "effective rank", stable_rank: "stable rank", audit_error: "audit error", nonfinite: "not finite" };

/** @param {any} one */
function title(one) {
  const label = one.label ? ` @${one.label}` : "";
  if (one.kind === "depth_growth") return `${one.of} over ${one.wrt}${label}`;
  if (one.kind === "sharpness") return `sharpness${label}`;
  return `∂ ${one.of} / ∂ ${one.wrt}${label}`;
}

/** @param {any} header */
function describe(header) {
  const size = header.size ? ` · ${header.size.join(" × ")}` : "";
  const samples = header.samples ? ` · mean of ${header.samples} samples` : "";
  const engine = header.engine ? ` · computed by ${header.engine}` : "";
  return `${title(header)}${size}${samples}${engine}`;
}

/** @param {ArrayLike<number>} values */
function positive(values) {
  return Array.from(values, (one) => (one > 0 && Number.isFinite(one) ? one : null));
}

/** @param {CanvasRenderingContext2D} context @param {string} text @param {number} room */
function fitted(context, text, room) {
  let short = text;
  while (short.length > 2 && context.measureText(short).width > room) short = `${short.slice(0, -2)}…`;
  return short;
}
