/**
 * The view Flow: a metric of all sites over all steps as a heat map, findings and the loss above it, the numbers of a
 * cell beside it. Belongs here: what is requested when, and how the parts (`flow_*.js`) are put together.
 *
 * @import { Finding, Heat, Run } from "../answers"
 * @import { App } from "./app.js"
 * @import { Choice } from "./choice.js"
 * @import { FoundFindings } from "./findings.js"
 * @import { Table } from "./heat_table.js"
 */

import { el, emptyState, put } from "./dom.js";
import { FlowControls } from "./flow_controls.js";
import { FlowInput } from "./flow_input.js";
import { drawLabels, GUTTER } from "./flow_labels.js";
import { FlowSide } from "./flow_side.js";
import { FlowStrips, LOSS_HEIGHT } from "./flow_strips.js";
import { count, number, step as stepText } from "./format.js";
import { HeatMap } from "./heat.js";
import { toTable } from "./heat_table.js";
import { legend } from "./legend.js";
import { makeScale, parseMetric } from "./metric.js";
import { lossTag } from "./scalars.js";
import { arrange, matcher } from "./sites.js";
import { drawStepAxis } from "./stepaxis.js";

/** Of more sites than that the server sends those that fit the search only. */
const MOST_ROWS = 4000;
const NOTHING =
  "It has no metric over sites: taps of gradlab.watch bring them. Jacobians and profiles may be in the other views.";
const KEYS =
  "Arrow keys move from cell to cell, Enter opens the site, plus and minus zoom, space folds a block.";

export class FlowView {
  /** Counts requests, so that an answer to an earlier one is not shown. */
  #request = 0;
  /** What is shown. @type {Heat | null} */
  #answer = null;
  /** @type {FoundFindings | null} */
  #found = null;
  /** Names of folded blocks. @type {Set<string>} */
  #folded = new Set();

  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.choice = app.choice;
    const jump = (/** @type {Finding} */ finding) => this.#jump(finding);
    const heat = new HeatMap(el("canvas", { class: "heat", tabindex: 0, role: "img" }));
    this.heat = heat;
    this.controls = new FlowControls(app);
    this.input = new FlowInput(app, heat, (block) => this.#fold(block));
    this.strips = new FlowStrips(heat, jump);
    this.side = new FlowSide(app, jump);
    this.labels = el("canvas", {
      class: "labels", "aria-hidden": "true", on: { click: (event) => this.#foldAt(event.offsetY) },
    });
    this.foldButton = el("button", { class: "quiet", text: "Fold all", on: { click: () => this.#foldAll() } });
    this.pin = el("div", { class: "pin" });
    this.axis = el("canvas", { class: "axis", "aria-hidden": "true" });
    this.head = el("div", { class: "flow-head" });
    this.foot = el("div", { class: "flow-foot" });
    const plot = el("div", { class: "plot" }, heat.canvas, this.pin, ...this.input.overlays);
    this.scroll = el("div", { class: "scroll" }, el("div", { class: "heat-line" }, this.labels, plot));
    const axisStrip = el("div", { class: "line" }, el("div", { class: "strip-name", text: "step" }), this.axis);
    this.picture = [this.head, ...this.strips.nodes, this.scroll, axisStrip, this.foot];
    this.stage = el("div", { class: "stage" });
    const body = el("div", { class: "flow-body" }, this.stage, this.side.root);
    this.root = el("div", { class: "flow" }, this.controls.bar, body, this.input.tip, this.input.spoken);
  }

  /** @param {Choice} choice @param {Run} run */
  update(choice, run) {
    this.choice = choice;
    this.controls.update(choice, run);
    if (!choice.metric) {
      put(this.stage, emptyState("Nothing to paint in this run", NOTHING));
      return;
    }
    this.#loadFindings(choice);
    this.#load(choice, run);
  }

  // What is requested

  /** @param {Choice} choice @param {Run} run */
  async #load(choice, run) {
    const { run: name, metric, minus, start, end } = choice;
    const request = (this.#request += 1);
    const columns = Math.round(this.#width() * (window.devicePixelRatio || 1));
    const match = this.app.sites(run.metrics[metric]).length > MOST_ROWS ? choice.match : null;
    let answer;
    try {
      answer = await this.app.request("heat", { run: name, metric, minus, columns, start, end, match });
    } catch (error) {
      if (request !== this.#request) return;
      put(this.stage, emptyState("This picture could not be made", /** @type {Error} */ (error).message));
      return;
    }
    if (request !== this.#request) return;
    const isNew = this.#answer !== answer;
    this.#answer = answer;
    this.input.header = answer.header;
    if (!answer.arrays.first.length) {
      this.#showNoSteps();
      return;
    }
    if (this.stage.firstChild !== this.head) put(this.stage, ...this.picture);
    if (isNew) this.heat.setData(toTable(answer, start, end));
    this.#paint();
    this.#loadLoss(choice, run);
    this.side.update(this.#found);
  }

  /** @param {Choice} choice */
  async #loadFindings(choice) {
    const failed = (/** @type {Error} */ error) => ({ findings: [], error: error.message });
    const found = await this.app.request("findings", { run: choice.run }).catch(failed);
    if (this.choice.run !== choice.run) return;
    this.#found = found;
    if (this.strips.setFindings(found.findings)) this.#paint(); // the heat map has another height now
    else this.strips.drawMarks(this.#width());
    this.side.update(found);
  }

  /** @param {Choice} choice @param {Run} run */
  async #loadLoss(choice, run) {
    const tag = lossTag(run.scalars);
    const isOther = this.strips.hasLoss !== Boolean(tag);
    this.strips.setHasLoss(Boolean(tag));
    if (isOther) this.#paint(); // the heat map has another height now
    if (!tag) return;
    const found = await this.app.request("scalars", { run: choice.run, tag: [tag], columns: 1000 }).catch(() => null);
    if (found && this.choice === choice) this.strips.drawLoss(this.#width(), tag, found);
  }

  // What is drawn

  /** The width of the heat map in CSS pixels. */
  #width() {
    return Math.max(200, (this.stage.clientWidth || this.app.main.clientWidth - 304) - GUTTER - 36);
  }

  /** The height of what is above and below the heat map in CSS pixels. */
  #heightAround() {
    return 34 + this.strips.marksHeight + (this.strips.hasLoss ? LOSS_HEIGHT + 6 : 0) + 30 + 58 + 16;
  }

  #paint() {
    const { choice, heat } = this;
    if (!this.#answer || !heat.data) return;
    const { header } = this.#answer;
    const width = this.#width();
    const { rows, blocks } = arrange(header.sites, matcher(choice.match), this.#folded);
    const { cut, low, high } = choice;
    const options = { cut: Number(cut), low, high, unit: header.unit, difference: header.scale };
    const scale = makeScale(choice.metric, header.quantiles, options);
    Object.assign(heat, { rows, blocks, scale });
    const [top, bottom] = [this.stage.getBoundingClientRect().top, this.app.main.getBoundingClientRect().bottom];
    const room = Math.max(160, bottom - top - this.#heightAround());
    const height = heat.layout(width, room, choice.rows === "read" ? 15 : 0, 44);
    this.scroll.style.maxHeight = `${room}px`;
    heat.draw(this.app.host.theme, choice.pixel);
    drawLabels(this.labels, heat, height);
    drawStepAxis(this.axis, width, heat.data.from, heat.data.to);
    this.strips.drawMarks(width);
    this.controls.showScale(scale);
    const unit = header.unit && header.unit !== "fraction" ? ` in ${header.unit}` : "";
    const title = header.scale || choice.metric + unit;
    put(this.foot, legend(scale, this.app.host.theme, { title }), this.controls.range);
    this.#drawHead(this.#answer, heat.data);
    this.#drawPin(heat.data);
    const steps = `steps ${stepText(heat.data.from)} to ${stepText(heat.data.to - 1)}`;
    heat.canvas.setAttribute("aria-label", `${choice.metric} of ${count(rows.length, "row")}, ${steps}. ${KEYS}`);
  }

  /** @param {Heat} answer @param {Table} data */
  #drawHead({ header }, data) {
    const { choice, heat, app } = this;
    const minus = `${header.scale} of ${choice.run} to ${header.minus}`;
    const subject = header.minus ? minus : parseMetric(choice.metric).meaning;
    const numShown = heat.rows.reduce((sum, row) => sum + row.sites.length, 0);
    const numSites = header.sites.length;
    const facts = [
      numShown < numSites ? `${numShown} of ${count(numSites, "site")}` : count(header.num_sites, "site"),
      `steps ${stepText(data.from)} – ${stepText(data.to - 1)}`,
    ];
    if (header.block > 1) facts.push(`blocks of ${header.block} logged steps`);
    if (header.sampled) facts.push(`a sample of the steps: TensorBoard keeps ${count(app.keptSteps, "step")}`);
    if (header.sites_a_row > 1) facts.push(`${number(header.sites_a_row)} sites a row; search to see fewer`);
    if (!numShown) {
      const show = { class: "quiet", text: "Show all sites", on: { click: () => app.choose({ match: "" }) } };
      put(this.head, el("div", { class: "flow-title", text: `No site fits “${choice.match}”.` }), el("button", show));
      return;
    }
    const isZoomed = choice.start !== null || choice.end !== null;
    this.foldButton.textContent = heat.blocks.some((one) => !one.folded && one.count > 1) ? "Fold all" : "Unfold all";
    put(this.head,
      el("div", { class: "flow-title" }, el("code", { text: choice.metric }), el("span", { text: subject })),
      el("div", { class: "flow-facts", text: facts.join(" · ") }),
      isZoomed && this.#allSteps("quiet"),
      heat.blocks.length > 1 && this.foldButton);
  }

  /** @param {string | null} kind a class */
  #allSteps(kind) {
    const click = () => this.app.choose({ start: null, end: null });
    return el("button", { class: kind, text: "Show all steps", on: { click } });
  }

  #showNoSteps() {
    const { metric, start, end } = this.choice;
    const isZoomed = start !== null || end !== null;
    const text = isZoomed
      ? "Nothing was logged between these steps."
      : `${metric} has no values yet; it is looked at again every few seconds.`;
    put(this.stage, emptyState("No steps here", text, start !== null && this.#allSteps(null)));
  }

  /** Mark the chosen cell. @param {Table} data */
  #drawPin(data) {
    const { heat, choice, pin } = this;
    const row = heat.rows.findIndex((one) => one.sites.some((i) => data.sites[i] === choice.site));
    if (row < 0 || choice.step === null || choice.step < data.from || choice.step >= data.to) {
      pin.style.display = "none";
      return;
    }
    const middle = (heat.tops[row] / heat.ratio + heat.bottom(row) / heat.ratio) / 2;
    Object.assign(pin.style, { display: "block", left: `${heat.x(choice.step + 0.5)}px`, top: `${middle}px` });
    if (choice.rows === "read") pin.scrollIntoView({ block: "nearest" });
  }

  // Folding, and the way to a finding

  /** @param {number} y */
  #foldAt(y) {
    const row = this.heat.rowAt(y);
    if (row >= 0) this.#fold(this.heat.blocks[this.heat.rows[row].block].name);
  }

  /** Fold a block, or unfold it. @param {string} block */
  #fold(block) {
    if (!this.#folded.delete(block)) this.#folded.add(block);
    this.#paint();
  }

  #foldAll() {
    const hasOpen = this.heat.blocks.some((one) => !one.folded && one.count > 1);
    const { blocks } = arrange(this.#answer?.header.sites || [], () => true, new Set());
    this.#folded = new Set(hasOpen ? blocks.filter((one) => one.count > 1).map((one) => one.name) : []);
    this.#paint();
  }

  /** Go to the place and step of a finding, in a metric that it rests on. @param {Finding} finding */
  #jump(finding) {
    const { app, choice, heat } = this;
    const metrics = app.run?.metrics || {};
    const names = restsOn(finding, Object.keys(metrics));
    const placeOf = (/** @type {string} */ name) => (name in metrics ? placeIn(finding, app.sites(metrics[name])) : "");
    const metric = names.find(placeOf) || names[0]
      || [choice.metric, ...Object.keys(metrics)].find(placeOf) || choice.metric;
    const site = placeOf(metric) || finding.sites[0] || choice.site;
    const block = arrange([site], () => true, new Set()).blocks[0]?.name;
    if (block) this.#folded.delete(block);
    const step = finding.first_step;
    const isOutside = heat.data && (step < heat.data.from || step >= heat.data.to);
    const zoom = isOutside ? { start: null, end: null } : {};
    app.choose({ step, site, metric, match: "", ...zoom });
  }
}

/**
 * The metrics that a finding's numbers are of, as `update.norm` of "update.norm / weight.norm".
 * @param {Finding} finding @param {string[]} metrics
 */
function restsOn(finding, metrics) {
  const longest = [...metrics].sort((a, b) => b.length - a.length);
  return Object.keys(finding.evidence).flatMap((key) => longest.filter((metric) => key.includes(metric)));
}

/**
 * The first of a finding's places among sites: itself, its module, or what is inside of it; "" where there is none.
 * @param {Finding} finding @param {string[]} sites
 */
function placeIn(finding, sites) {
  const places = finding.sites.flatMap((site) => [site, site.replace(/@rank\d+$/, "")]);
  const isInside = (/** @type {string} */ site, /** @type {string} */ place) =>
    site.startsWith(place) && /^[./:]/.test(site.slice(place.length));
  return places.find((place) => sites.includes(place))
    || places.flatMap((place) => sites.filter((site) => isInside(site, place)))[0]
    || places.flatMap((place) => sites.filter((site) => isInside(place, site)))[0]
    || "";
}
