/**
 * The strips above the heat map, on its axis of steps: findings and steps that were not finite, and the loss.
 *
 * @import { Finding, Scalars } from "../answers"
 * @import { HeatMap } from "./heat.js"
 */

import { cssVariable, el, put } from "./dom.js";
import { SEVERITIES, severityOf } from "./findings.js";
import { count, number, step as stepText } from "./format.js";
import { needsLogScale, scalar } from "./scalars.js";
import { drawLine } from "./stepaxis.js";

export const MARKS_HEIGHT = 24;
export const LOSS_HEIGHT = 40;
/** Findings within so many pixels share a mark. */
const MARK_WIDTH = 12;

export class FlowStrips {
  hasLoss = false;

  /** @param {HeatMap} heat @param {(finding: Finding) => void} jump called with a finding whose mark is clicked */
  constructor(heat, jump) {
    this.heat = heat;
    this.jump = jump;
    this.marks = el("div", { class: "marks", role: "list", "aria-label": "Findings over steps" });
    this.loss = el("canvas", { class: "loss", "aria-hidden": "true" });
    this.lossName = el("div", { class: "loss-name" });
    const name = el("div", { class: "strip-name", text: "findings" });
    this.lossStrip = el("div", { class: "line loss-line" }, this.lossName, this.loss);
    this.nodes = [el("div", { class: "line" }, name, this.marks), this.lossStrip];
  }

  /** Whether the run has a loss to draw; its strip is hidden otherwise. @param {boolean} hasLoss */
  setHasLoss(hasLoss) {
    this.hasLoss = hasLoss;
    this.lossStrip.classList.toggle("gone", !hasLoss);
  }

  /** @param {number} width @param {Finding[]} findings */
  drawMarks(width, findings) {
    const { heat } = this;
    if (!heat.data) return;
    this.marks.style.width = `${width}px`;
    const ticks = heat.nonfiniteColumns().map(({ step, sites }) => {
      const title = `step ${stepText(step)}: not finite in ${count(sites, "site")}`;
      return el("div", { class: "tick", style: { left: `${heat.x(step + 0.5)}px` }, title });
    });
    /** @type {Map<number, Finding[]>} */
    const groups = new Map();
    for (const one of findings) {
      const x = heat.x(one.step + 0.5);
      if (x < 0 || x > width) continue;
      const place = Math.round(x / MARK_WIDTH);
      const group = groups.get(place);
      if (group) group.push(one);
      else groups.set(place, [one]);
    }
    put(this.marks, ...ticks, ...Array.from(groups.values(), (group) => this.#mark(group)));
  }

  /** The worst of findings that are too close for marks of their own. @param {Finding[]} group */
  #mark(group) {
    const rank = (/** @type {Finding} */ one) => SEVERITIES.indexOf(severityOf(one));
    const worst = group.reduce((a, b) => (rank(b) > rank(a) ? b : a));
    const severity = severityOf(worst);
    const more = group.length > 1 ? ` (and ${group.length - 1} more nearby)` : "";
    return el("button", {
      class: `mark ${severity}`, role: "listitem", style: { left: `${this.heat.x(worst.step + 0.5)}px` },
      "aria-label": `${severity} at step ${worst.step}: ${worst.message}${more}`,
      title: `step ${stepText(worst.step)}: ${worst.message}${more}`,
      on: { click: () => this.jump(worst) },
    });
  }

  /** @param {number} width @param {string} tag @param {Scalars} answer */
  drawLoss(width, tag, answer) {
    const { data } = this.heat;
    if (!data) return;
    const { steps, values } = scalar(answer, 0);
    const log = needsLogScale(values);
    const line = { steps, values, from: data.from, to: data.to, log };
    drawLine(this.loss, width, LOSS_HEIGHT, line, cssVariable("--accent"));
    const last = number(values[values.length - 1]);
    put(this.lossName, el("span", { text: log ? `${tag} (log)` : tag }), el("b", { text: last }));
  }
}
