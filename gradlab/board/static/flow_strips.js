/**
 * The strips above the heat map, on its axis of steps: a lane for each cause with what follows from it, steps that were
 * not finite, and the loss.
 *
 * @import { Finding, Scalars } from "../answers"
 * @import { HeatMap } from "./heat.js"
 */

import { cssVariable, el, put } from "./dom.js";
import { SEVERITIES, causesOf, severityOf, whenText } from "./findings.js";
import { count, number, step as stepText } from "./format.js";
import { needsLogScale, scalar } from "./scalars.js";
import { drawLine } from "./stepaxis.js";

const MARKS_HEIGHT = 24;
const LANE_HEIGHT = 18;
/** The causes after these share a lane. */
const MOST_LANES = 4;
export const LOSS_HEIGHT = 40;
/** Findings within so many pixels share a mark. */
const MARK_WIDTH = 12;

/** @typedef {{name: string, title: string, findings: Finding[]}} Lane */

export class FlowStrips {
  hasLoss = false;
  /** The height of the lanes together in CSS pixels. */
  marksHeight = MARKS_HEIGHT;

  /** @param {HeatMap} heat @param {(finding: Finding) => void} jump called with a finding whose mark is clicked */
  constructor(heat, jump) {
    this.heat = heat;
    this.jump = jump;
    this.marks = el("div", { class: "marks", role: "list", "aria-label": "Findings over steps" });
    this.loss = el("canvas", { class: "loss", "aria-hidden": "true" });
    this.lossName = el("div", { class: "loss-name" });
    this.laneNames = el("div", { class: "strip-name", text: "findings" });
    this.lossStrip = el("div", { class: "line loss-line" }, this.lossName, this.loss);
    this.nodes = [el("div", { class: "line" }, this.laneNames, this.marks), this.lossStrip];
  }

  /** Whether the run has a loss to draw; its strip is hidden otherwise. @param {boolean} hasLoss */
  setHasLoss(hasLoss) {
    this.hasLoss = hasLoss;
    this.lossStrip.classList.toggle("gone", !hasLoss);
  }

  /** Whether the lanes have another height now. @param {Finding[]} findings */
  setFindings(findings) {
    this.lanes = lanesOf(findings);
    const before = this.marksHeight;
    this.marksHeight = Math.max(MARKS_HEIGHT, this.lanes.length * LANE_HEIGHT + 6);
    this.marks.style.height = `${this.marksHeight}px`;
    const names = this.lanes.map(({ name, title }) => el("div", { class: "lane-name", text: name, title }));
    put(this.laneNames, ...(names.length ? names : ["findings"]));
    return this.marksHeight !== before;
  }

  /** @type {Lane[]} */
  lanes = [];

  /** @param {number} width */
  drawMarks(width) {
    const { heat } = this;
    if (!heat.data) return;
    this.marks.style.width = `${width}px`;
    const ticks = heat.nonfiniteColumns().map(({ step, sites }) => {
      const title = `step ${stepText(step)}: not finite in ${count(sites, "site")}`;
      return el("div", { class: "tick", style: { left: `${heat.x(step + 0.5)}px` }, title });
    });
    const lanes = this.lanes.map((lane, i) => {
      const style = { top: `${i * LANE_HEIGHT}px` };
      return el("div", { class: "lane", style }, ...this.#spans(width, lane), ...this.#marks(width, lane));
    });
    put(this.marks, ...ticks, ...lanes);
  }

  /** From when to when each cause was seen. @param {number} width @param {Lane} lane */
  #spans(width, { findings }) {
    return findings.flatMap((one) => {
      const [from, to] = [this.heat.x(one.first_step + 0.5), this.heat.x(one.last_step + 0.5)];
      if (one.symptom || to < 0 || from > width || to - from < 1) return [];
      const [left, right] = [Math.max(0, from), Math.min(width, to)];
      const kind = `lasting ${severityOf(one)}${one.ended ? " ended" : ""}`;
      return [el("div", { class: kind, style: { left: `${left}px`, width: `${right - left}px` } })];
    });
  }

  /** @param {number} width @param {Lane} lane */
  #marks(width, { findings }) {
    /** @type {Map<number, Finding[]>} */
    const groups = new Map();
    for (const one of findings) {
      const x = this.heat.x(one.first_step + 0.5);
      if (x < 0 || x > width) continue;
      const place = Math.round(x / MARK_WIDTH);
      const group = groups.get(place);
      if (group) group.push(one);
      else groups.set(place, [one]);
    }
    return Array.from(groups.values(), (group) => this.#mark(group));
  }

  /** A cause, or the worst of findings that are too close for marks of their own. @param {Finding[]} group */
  #mark(group) {
    const rank = (/** @type {Finding} */ one) => SEVERITIES.indexOf(severityOf(one)) - (one.symptom ? 10 : 0);
    const worst = group.reduce((a, b) => (rank(b) > rank(a) ? b : a));
    const severity = severityOf(worst);
    const more = group.length > 1 ? ` (and ${group.length - 1} more nearby)` : "";
    const code = worst.code ? `${worst.code} ` : "";
    return el("button", {
      class: `mark ${severity}${worst.symptom ? " symptom" : ""}${worst.ended ? " ended" : ""}`,
      role: "listitem",
      style: { left: `${this.heat.x(worst.first_step + 0.5)}px` },
      "aria-label": `${severity} ${code}at step ${worst.first_step}: ${worst.message}${more}`,
      title: `${code}${whenText(worst)}: ${worst.message}${more}`,
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

/** A lane for each cause, the last one for all that are left. @param {Finding[]} findings */
function lanesOf(findings) {
  const causes = causesOf(findings);
  const [shown, others] = [causes.slice(0, MOST_LANES), causes.slice(MOST_LANES)];
  /** @type {Lane[]} */
  const lanes = shown.map(({ finding, symptoms }) => ({
    name: finding.code || finding.name.replaceAll("-", " "),
    title: finding.message,
    findings: [finding, ...symptoms],
  }));
  const left = others.flatMap(({ finding, symptoms }) => [finding, ...symptoms]);
  if (left.length) lanes.push({ name: "others", title: `${count(others.length, "other cause")}`, findings: left });
  return lanes;
}
