/**
 * The view Runs: the flow of each run, small, in one range of colours and on one axis of steps; and which settings
 * differ.
 *
 * @import { Heat, Quantiles, Run, Setting } from "../answers"
 * @import { App } from "./app.js"
 * @import { Choice } from "./choice.js"
 * @typedef {{run: Run, node: HTMLElement, last: HTMLElement, loss: HTMLCanvasElement, heat: HeatMap}} Card
 */

import { cssVariable, el, emptyState, fillSelect, labelled, put, select } from "./dom.js";
import { count, number, step as stepText } from "./format.js";
import { HeatMap } from "./heat.js";
import { toTable } from "./heat_table.js";
import { legend } from "./legend.js";
import { makeScale, parseMetric, sortMetrics } from "./metric.js";
import { lossTag, needsLogScale, scalar } from "./scalars.js";
import { arrange, matcher } from "./sites.js";
import { drawLine } from "./stepaxis.js";

const MOST = 20;
const HEAT_HEIGHT = 112;
const LOSS_HEIGHT = 26;

export class RunsView {
  /** Counts updates, so that answers to an earlier one are not shown. */
  #update = 0;

  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.choice = app.choice;
    this.metrics = select([], "", (metric) => app.choose({ metric, low: null, high: null }));
    const input = () => this.update(this.choice);
    const placeholder = "lr1e-3 or sweep*";
    this.search = el("input", { type: "search", placeholder, spellcheck: "false", on: { input } });
    this.bar = el("div", { class: "bar" }, labelled("Metric", this.metrics, "wide"), labelled("Runs", this.search));
    this.legend = el("div", { class: "runs-legend" });
    this.grid = el("div", { class: "grid" });
    this.box = el("div", { class: "scrolls cards" });
    this.root = el("div", { class: "view" }, this.bar, this.box);
  }

  /** @param {Choice} choice */
  async update(choice) {
    this.choice = choice;
    const { metric } = choice;
    this.#listMetrics(metric);
    const search = this.search.value.trim();
    const fits = matcher(search);
    const all = this.app.runs.filter((run) => metric in run.metrics && fits(run.name));
    const runs = all.slice(-MOST);
    const update = (this.#update += 1);
    if (!runs.length) {
      const none = `No run has ${metric || "a metric over sites"}.`;
      put(this.box, emptyState("No run to compare", search ? `No run that fits “${search}” has ${metric}.` : none));
      return;
    }
    const differing = differences(runs);
    const cards = runs.map((run) => this.#card(run, differing));
    put(this.grid, ...cards.map((one) => one.node));
    const many = count(all.length, "run");
    const which = all.length > runs.length ? `the ${runs.length} latest of ${many}` : many;
    const about = `${parseMetric(metric).meaning} · ${which}, on one range of colours and one axis of steps`;
    const title = el("div", { class: "flow-title" }, el("code", { text: metric }), el("span", { text: about }));
    const head = el("div", { class: "flow-head" }, title, this.legend);
    put(this.box, el("div", {}, head, this.grid), settingsCard(runs, differing));
    await this.#fill(cards, update);
  }

  /** @param {string} chosen */
  #listMetrics(chosen) {
    const names = this.app.runs.flatMap(({ metrics }) => Object.keys(metrics).filter((name) => !metrics[name].hist));
    const sorted = sortMetrics([...new Set(names)]);
    fillSelect(this.metrics, sorted.map((value) => ({ value, text: value, group: parseMetric(value).group })), chosen);
  }

  /** @param {Run} run @param {string[]} differing names of settings @returns {Card} */
  #card(run, differing) {
    const canvas = el("canvas", { "aria-hidden": "true" });
    const loss = el("canvas", { "aria-hidden": "true" });
    const last = el("span", { class: "run-last", text: `${stepText(run.last_step + 1)} steps` });
    const known = differing.filter((name) => run.settings[name] !== undefined && run.settings[name] !== null);
    const settings = known.slice(0, 4).map((name) => `${shortName(name)} ${settingText(run.settings[name], name)}`);
    const text = settings.join(" · ");
    const kind = `run-card${run.name === this.choice.run ? " on" : ""}`;
    const open = () => this.app.choose({ run: run.name, view: "flow" });
    const node = el("button", { class: kind, title: `Open ${run.name}`, on: { click: open } },
      el("div", { class: "run-name", text: run.name }),
      el("div", { class: "run-line" }, el("div", { class: "run-diff", title: text, text }), last),
      loss, canvas);
    return { run, node, last, loss, heat: new HeatMap(canvas) };
  }

  /** Draw the heat maps and the losses. @param {Card[]} cards @param {number} update */
  async #fill(cards, update) {
    const { choice } = this;
    const width = Math.max(200, (this.grid.firstElementChild?.clientWidth || 290) - 26);
    const columns = Math.min(400, Math.round(width * (window.devicePixelRatio || 1)));
    const end = Math.max(...cards.map((one) => one.run.last_step));
    const answers = await Promise.all(cards.map(({ run }) => {
      const query = { run: run.name, metric: choice.metric, columns, start: 0, end };
      return this.app.request("heat", query).catch(() => null);
    }));
    if (update !== this.#update) return;
    const found = cards.flatMap((card, i) => {
      const answer = answers[i];
      return answer && answer.arrays.first.length ? [{ card, answer }] : [];
    });
    if (!found.length) return;
    const { cut, low, high } = choice;
    const options = { cut: Number(cut), low, high, unit: found[0].answer.header.unit };
    const scale = makeScale(choice.metric, joined(found.map(({ answer }) => answer)), options);
    put(this.legend, legend(scale, this.app.host.theme));
    for (const { card: { heat }, answer } of found) {
      heat.setData(toTable(answer, 0, end));
      Object.assign(heat, arrange(answer.header.sites, matcher(choice.match), new Set()), { scale });
      heat.layout(width, HEAT_HEIGHT, 0, 40, false);
      heat.draw(this.app.host.theme, choice.pixel);
    }
    for (const card of cards) this.#drawLoss(card, width, end + 1);
  }

  /** @param {Card} card @param {number} width @param {number} to the step after the last one */
  async #drawLoss({ run, loss, last }, width, to) {
    const tag = lossTag(run.scalars);
    if (!tag) return;
    const found = await this.app.request("scalars", { run: run.name, tag: [tag], columns: 300 }).catch(() => null);
    if (!found) return;
    const { steps, values } = scalar(found, 0);
    const line = { steps, values, from: 0, to, log: needsLogScale(values) };
    drawLine(loss, width, LOSS_HEIGHT, line, cssVariable("--accent"));
    last.textContent = `${tag} ${number(values[values.length - 1])}`;
  }
}

/**
 * A table of the settings that differ; null where there is one run only.
 * @param {Run[]} runs @param {string[]} differing
 */
function settingsCard(runs, differing) {
  if (runs.length < 2) return null;
  if (!differing.length) {
    const none = "Nothing differs in the settings that these runs recorded.";
    return el("div", { class: "card" }, el("h2", { text: "Settings" }), el("p", { class: "hint", text: none }));
  }
  const head = differing.map((name) => el("th", { title: name, text: shortName(name) }));
  const rows = runs.map((run) => {
    const cells = differing.map((name) => el("td", { text: settingText(run.settings[name], name) }));
    return el("tr", {}, el("td", { text: run.name }), ...cells);
  });
  const table = el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, el("th", { text: "run" }), ...head)),
    el("tbody", {}, ...rows));
  return el("div", { class: "card" }, el("h2", { text: "What differs" }), el("div", { class: "overflow" }, table));
}

/** The settings that are not the same in all runs, those with the most values first. @param {Run[]} runs */
function differences(runs) {
  const names = new Set(runs.flatMap((run) => Object.keys(run.settings)));
  const numValues = (/** @type {string} */ name) => {
    return new Set(runs.map((run) => JSON.stringify(run.settings[name] ?? null))).size;
  };
  return [...names].filter((name) => numValues(name) > 1).sort((a, b) => numValues(b) - numValues(a));
}

/** The last two parts of a setting's name, without those that say nothing. @param {string} name */
function shortName(name) {
  return name.split(".").filter((part) => part !== "init_args" && part !== "class_path").slice(-2).join(".");
}

/** A setting's value; of a class its own name alone. @param {Setting | undefined} value @param {string} name */
function settingText(value, name) {
  if (name.endsWith("class_path") && typeof value === "string") return String(value.split(".").at(-1));
  if (value === undefined || value === null) return "–";
  return typeof value === "number" ? number(value) : String(value);
}

/**
 * The quantiles of several heat maps together, near enough for a range of colours.
 * @param {Heat[]} answers
 * @returns {Quantiles}
 */
function joined(answers) {
  const all = answers.map(({ header }) => header.quantiles);
  const merge = (/** @type {"all" | "positive"} */ key) => all.flatMap((one) => one[key]).sort((a, b) => a - b);
  return { all: merge("all"), positive: merge("positive"), negative: all.some((one) => one.negative) };
}
