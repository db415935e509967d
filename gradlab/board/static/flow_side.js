/**
 * The side of the flow: every number of the chosen site at the chosen step, and the findings of the run.
 *
 * @import { Finding, Layer, LayerMetric } from "../answers"
 * @import { App } from "./app.js"
 * @import { Choice } from "./choice.js"
 * @import { FoundFindings } from "./findings.js"
 */

import { cssVariable, el, put } from "./dom.js";
import { findingsList } from "./findings.js";
import { number, step as stepText, withUnit } from "./format.js";
import { kindOf, parseMetric } from "./metric.js";
import { metricColumns } from "./site_metrics.js";
import { drawLine } from "./stepaxis.js";

const HOW_TO =
  "Click a cell to see every number of its site at that step. Drag to zoom, double click to see all steps.";
const SPARK = { width: 56, height: 20 };

export class FlowSide {
  /** @param {App} app @param {(finding: Finding) => void} jump called with a finding that is clicked */
  constructor(app, jump) {
    this.app = app;
    this.jump = jump;
    this.root = el("aside", { class: "side", "aria-label": "Numbers of a cell, findings" });
  }

  /** @param {FoundFindings | null} found null where findings are not here yet */
  async update(found) {
    const { choice } = this.app;
    const { run, site, step } = choice;
    if (!site || step === null) {
      this.#show(section("Numbers", HOW_TO), found);
      return;
    }
    if (this.root.querySelector(".site-name")?.textContent !== site) {
      const name = el("h2", { class: "site-name", text: site });
      this.#show(el("section", {}, name, el("p", { class: "hint", text: "Reading…" })), found);
    }
    const answer = await this.app.request("layer", { run, site, columns: 600, hist: 0 }).catch(() => null);
    if (this.app.choice !== choice) return;
    const numbers = answer ? this.#numbers(answer, choice, step) : section(site, "This site is not in this run.");
    this.#show(numbers, found);
  }

  /** @param {HTMLElement} numbers @param {FoundFindings | null} found */
  #show(numbers, found) {
    put(this.root, numbers, findingsList(found, this.jump));
  }

  /** @param {Layer} answer @param {Choice} choice @param {number} step */
  #numbers(answer, { site, run, metric }, step) {
    const rows = answer.header.metrics.flatMap((one, i) => {
      if (one.edges.length) return [];
      const cells = this.#cells(one, metricColumns(answer, i), step);
      return [el("tr", { class: one.metric === metric ? "on" : "" }, ...cells)];
    });
    const open = () => this.app.choose({ view: "layer" });
    return el("section", {},
      el("h2", { class: "site-name", text: site }),
      el("div", { class: "sub", text: `step ${stepText(step)} · ${run}` }),
      el("table", { class: "numbers" }, el("tbody", {}, ...rows)),
      el("button", { class: "primary", text: "Open this site", on: { click: open } }));
  }

  /**
   * A metric's name, its line over steps, and its value at a step or, with a star, the last one before.
   * @param {LayerMetric} about @param {ReturnType<typeof metricColumns>} columns @param {number} step
   */
  #cells({ metric, unit }, { first, last, mean, high = mean, bad }, step) {
    let at = -1;
    for (let c = 0; c < first.length && first[c] <= step; c += 1) if (!Number.isNaN(mean[c]) || bad?.[c]) at = c;
    const isBad = at >= 0 && Boolean(bad?.[at]);
    const isEarlier = at >= 0 && step > last[at];
    let value = "–";
    if (isBad) value = Number.isFinite(high[at]) ? "not finite" : number(mean[at]);
    else if (at >= 0) value = withUnit(mean[at], unit);
    let note = "";
    if (isEarlier) note = `from step ${stepText(last[at])}`;
    else if (at >= 0 && first[at] !== last[at]) note = `mean of steps ${stepText(first[at])} – ${stepText(last[at])}`;
    const spark = el("canvas", { class: "spark", "aria-hidden": "true" });
    const log = kindOf(metric, undefined, false).kind === "log";
    const line = { steps: first, values: mean, from: first[0], to: last[last.length - 1] + 1, log };
    requestAnimationFrame(() => {
      if (first.length) drawLine(spark, SPARK.width, SPARK.height, line, cssVariable("--accent"));
    });
    const choose = () => this.app.choose({ metric, low: null, high: null });
    const link = { class: "link", title: parseMetric(metric).meaning, on: { click: choose } };
    return [
      el("td", {}, el("button", link, ...breakable(metric))),
      el("td", {}, spark),
      el("td", { class: isBad ? "value bad" : "value", title: note, text: value + (isEarlier ? " *" : "") }),
    ];
  }
}

/** @param {string} title @param {string} text */
function section(title, text) {
  return el("section", {}, el("h2", { text: title }), el("p", { class: "hint", text }));
}

/** A metric's name, which may be broken into lines before its stage. @param {string} name */
function breakable(name) {
  return name.split(/(?=@)/).flatMap((piece, i) => (i ? [el("wbr"), piece] : [piece]));
}
