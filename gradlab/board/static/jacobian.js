/**
 * The view Jacobians: one of a run's at one step. A block as a matrix with its singular values, or growth from layer to
 * layer; and what was logged of it at all steps.
 *
 * @import { Jacobian, JacobianHeader, JacobianInfo, Run } from "../answers"
 * @import { App } from "./app.js"
 * @import { Choice } from "./choice.js"
 * @import { Options } from "./chart.js"
 */

import { draw } from "./chart.js";
import { debounced, el, emptyState, fillSelect, labelled, put, select } from "./dom.js";
import { number, step as stepText } from "./format.js";
import {
  growthLayout, growthTraces, historyLayout, historyTraces, spectrumLayout, spectrumTraces,
} from "./jacobian_charts.js";
import { JacobianMatrix } from "./jacobian_matrix.js";

/** @type {Record<string, string>} */
const KINDS = { block: "Blocks", depth_growth: "Growth over depth", sharpness: "Curvature of the loss" };
/** @type {Record<string, string>} */
const TITLES = { depth_growth: "Growth over depth", sharpness: "Curvature" };
/** What is logged of a Jacobian as a scalar. @type {Record<string, string>} */
const SUMMARIES = {
  fro: "Frobenius norm", sigma_1: "σ₁, largest", sigma_min: "σ, smallest", cond: "condition number",
  effective_rank: "effective rank", stable_rank: "stable rank", audit_error: "audit error", nonfinite: "not finite",
};
const HOW_TO =
  "gradlab.watch(model, optimizer, jacobians=[\n" +
  '    gradlab.JacobianSlice(of="output", wrt="input", rows=10, every=50)])';

export class JacobianView {
  /** Counts requests, so that an answer to an earlier one is not shown. */
  #request = 0;
  /** The steps at which the Jacobian was logged. @type {number[]} */
  #steps = [];

  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.runs = select([], "", (run) => app.choose({ run }));
    this.jacobians = select([], "", (jacobian) => app.choose({ jacobian }));
    const chooseStep = debounced(() => app.choose({ step: this.#steps[Number(this.range.value)] }), 60);
    const input = () => {
      this.#showStep();
      chooseStep();
    };
    this.range = el("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": "Step", on: { input } });
    this.at = el("output", { class: "at" });
    this.slider = labelled("Step", el("div", { class: "slider" }, this.range, this.at), "stretch");
    this.bar = el("div", { class: "bar" },
      labelled("Run", this.runs, "wide"), labelled("Jacobian", this.jacobians, "wide"), this.slider);
    this.box = el("div", { class: "scrolls" });
    this.root = el("div", { class: "view" }, this.bar, this.box);
    this.matrix = new JacobianMatrix();
    this.growth = el("div", { class: "chart" });
    this.spectrum = el("div", { class: "chart" });
    this.history = el("div", { class: "chart" });
  }

  /** @param {Choice} choice @param {Run} run */
  async update(choice, run) {
    const { app } = this;
    app.fillRunSelect(this.runs);
    const known = run.jacobians;
    this.slider.hidden = !known.length;
    const options = known.map((one) => ({ value: one.name, text: title(one), group: KINDS[one.kind] || one.kind }));
    if (!known.length) {
      fillSelect(this.jacobians, options, "");
      const text = "A slice of the Jacobian between two sites is logged by one line:";
      put(this.box, emptyState("No Jacobians in this run", text, el("pre", { text: HOW_TO })));
      return;
    }
    const { name } = known.find((one) => one.name === choice.jacobian) || known[0];
    fillSelect(this.jacobians, options, name);
    const request = (this.#request += 1);
    let answer;
    try {
      answer = await app.request("jacobian", { run: choice.run, name, step: choice.step });
    } catch (error) {
      if (request !== this.#request) return;
      put(this.box, emptyState("This Jacobian cannot be shown", /** @type {Error} */ (error).message));
      return;
    }
    if (request !== this.#request) return;
    const { steps, step } = answer.header;
    this.#steps = steps;
    this.range.max = String(Math.max(0, steps.length - 1));
    this.range.value = String(steps.indexOf(step));
    this.range.disabled = steps.length < 2;
    this.#showStep();
    this.#show(answer);
  }

  /** Write the step of the slider beside it. */
  #showStep() {
    const at = Number(this.range.value);
    this.at.textContent = `${stepText(this.#steps[at] ?? 0)} (${at + 1} of ${this.#steps.length})`;
  }

  /** @param {Jacobian} answer */
  #show(answer) {
    const { header, arrays } = answer;
    const isGrowth = header.kind === "depth_growth";
    const about = describe(header);
    const left = card(TITLES[header.kind] || "Block", about);
    const right = el("div", { class: "cards" });
    put(this.box, el("div", { class: isGrowth ? "cards" : "jac" }, left, right));
    if (arrays.block && isGrowth) this.#showGrowth(answer, left);
    else if (arrays.block) left.append(...this.matrix.show(answer, this.app.host.theme, left.clientWidth, about));
    else left.append(hint("This slice was logged without its block: singular values and norms only."));
    const facts = summaryFacts(answer);
    if (facts.length) right.append(el("div", { class: "card" }, el("div", { class: "facts" }, ...facts)));
    if (arrays.singular_values?.length) this.#showSpectrum(answer, right);
    this.#showHistory(answer, right, isGrowth);
    for (const note of [header.note, ...(header.notes || [])]) if (note) left.append(hint(String(note)));
  }

  /** @param {Jacobian} answer @param {HTMLElement} box */
  #showGrowth(answer, box) {
    box.append(this.growth);
    const numDirections = answer.arrays.block?.shape[1];
    this.#draw(this.growth, growthTraces(answer, this.app.host.theme), growthLayout(box.clientWidth - 34));
    box.append(hint(
      `A line for each of ${numDirections} directions, dark for the one that grows most. Along each the logarithms ` +
      "add up from site to site: flat at 0 is dynamical isometry, falling lines vanish, rising lines explode."));
  }

  /** @param {Jacobian} answer @param {HTMLElement} box */
  #showSpectrum(answer, box) {
    const which = answer.header.complete === false ? "the leading ones" : "largest first";
    box.append(card("Singular values", `${which}; faint: other steps`, this.spectrum));
    const look = spectrumLayout(this.spectrum.clientWidth || 380);
    this.#draw(this.spectrum, spectrumTraces(answer, this.app.host.theme), look);
  }

  /** @param {Jacobian} answer @param {HTMLElement} box @param {boolean} isGrowth */
  #showHistory(answer, box, isGrowth) {
    const { summaries } = answer.header;
    const hasInterval = summaries.includes("fro_lo") && summaries.includes("fro_hi");
    const norm = hasInterval ? "Frobenius norm with its 95 % interval, and" : "Frobenius norm and";
    const traces = historyTraces(answer, this.app.host.theme);
    if (!traces.length) return;
    box.append(card(isGrowth ? "Over steps" : "Norm over steps", `${norm} the largest singular value`, this.history));
    this.#draw(this.history, traces, historyLayout(answer, this.history.clientWidth || 380));
  }

  /**
   * Draw a chart; where plotly.js is not there it stays empty, and the rest of the page is as it would be.
   * @param {HTMLElement} node @param {object[]} traces @param {Options} look
   */
  #draw(node, traces, look) {
    draw(this.app.source, node, traces, look).catch(() => {});
  }
}

/** The scalars of a Jacobian at the step that is shown. @param {Jacobian} answer */
function summaryFacts({ header, arrays }) {
  const known = Object.keys(SUMMARIES).filter((name) => header.summaries.includes(name));
  return known.flatMap((name) => {
    const i = header.summaries.lastIndexOf(name);
    const at = arrays[/** @type {const} */ (`summary${i}.steps`)].indexOf(header.step);
    if (at < 0) return [];
    const value = arrays[/** @type {const} */ (`summary${i}`)][at];
    return [el("div", { class: "fact" }, el("span", { text: SUMMARIES[name] }), el("b", { text: number(value) }))];
  });
}

/** @param {string} name @param {string} about @param {...HTMLElement} children */
function card(name, about, ...children) {
  return el("div", { class: "card" }, el("h2", { text: name }), el("div", { class: "sub", text: about }), ...children);
}

/** @param {string} text */
function hint(text) {
  return el("p", { class: "hint", text });
}

/** @param {JacobianInfo} one */
function title(one) {
  const label = one.label ? ` @${one.label}` : "";
  if (one.kind === "depth_growth") return `${one.of} over ${one.wrt}${label}`;
  if (one.kind === "sharpness") return `sharpness${label}`;
  return `∂ ${one.of} / ∂ ${one.wrt}${label}`;
}

/** @param {JacobianHeader} header */
function describe(header) {
  const size = header.size ? ` · ${header.size.join(" × ")}` : "";
  const samples = header.samples ? ` · mean of ${header.samples} samples` : "";
  const engine = header.engine ? ` · computed by ${header.engine}` : "";
  return `${title(header)}${size}${samples}${engine}`;
}
