/** Many runs side by side: the flow of each, small, in one range of colours; and what differs in their settings. */

import { el, empty, fillSelect, labelled, put, select, token } from "./dom.js";
import { lossTag, spreads } from "./flow.js";
import { count, number, step as stepText } from "./format.js";
import { HeatMap, table } from "./heat.js";
import { legend } from "./legend.js";
import { makeScale, parts, sorted } from "./metric.js";
import { arrange, matcher } from "./sites.js";
import { drawLine } from "./stepaxis.js";

const MOST = 20;
const HEAT = 112;
const LOSS = 26;

export class RunsView {
  #asked = 0;

  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.metricSelect = select([], "", (metric) => app.choose({ metric, low: null, high: null }));
    this.search = el("input", { type: "search", placeholder: "lr1e-3 or sweep*", spellcheck: "false", on: { input: () => this.update(this.choice) } });
    this.bar = el("div", { class: "bar" }, labelled("Metric", this.metricSelect, "wide"), labelled("Runs", this.search));
    this.legend = el("div", { class: "runs-legend" });
    this.grid = el("div", { class: "grid" });
    this.table = el("div", { class: "overflow" });
    this.box = el("div", { class: "scrolls cards" });
    this.root = el("div", { class: "view" }, this.bar, this.box);
  }

  /** @param {import("./app.js").Choice} choice */
  async update(choice) {
    this.choice = choice;
    const { index } = this.app;
    const metrics = new Set(index.runs.flatMap((/** @type {any} */ run) => Object.keys(run.metrics).filter((name) => !run.metrics[name].hist)));
    fillSelect(this.metricSelect, sorted([.../** @type {Set<string>} */ (metrics)]).map((value) => ({ value, text: value, group: parts(value).group })), choice.metric);
    const fits = matcher(this.search.value.trim());
    const all = index.runs.filter((/** @type {any} */ run) => choice.metric in run.metrics && fits(run.name));
    const runs = all.slice(-MOST);
    const asked = (this.#asked += 1);
    if (!runs.length) {
      put(this.box, empty("No run to compare", this.search.value ? `No run that fits “${this.search.value}” has ${choice.metric}.` : `No run has ${choice.metric || "a metric over sites"}.`));
      return;
    }
    const differing = differences(runs);
    const cards = runs.map((/** @type {any} */ run) => this.#card(run, differing));
    put(this.grid, ...cards.map((/** @type {any} */ one) => one.node));
    const more = all.length > runs.length ? `the ${runs.length} latest of ${count(all.length, "run")}` : count(runs.length, "run");
    put(this.box, el("div", {}, el("div", { class: "flow-head" }, el("div", { class: "flow-title" }, el("code", { text: choice.metric }), el("span", { text: `${parts(choice.metric).meaning} · ${more}, on one range of colours and one axis of steps` })), this.legend), this.grid), this.#settings(runs, differing));
    await this.#fill(cards, asked);
  }

  /** @param {any} run @param {string[]} differing */
  #card(run, differing) {
    const canvas = el("canvas", { "aria-hidden": "true" });
    const loss = el("canvas", { "aria-hidden": "true" });
    const facts = differing.filter((name) => ![undefined, null].includes(run.settings[name])).slice(0, 4).map((name) => `${short(name)} ${text(run.settings[name], name)}`).join(" · ");
    const node = el("button", { class: `run-card${run.name === this.choice.run ? " on" : ""}`, title: `Open ${run.name}`, on: { click: () => this.app.choose({ run: run.name, view: "flow" }) } },
      el("div", { class: "run-name", text: run.name }), el("div", { class: "run-line" }, el("div", { class: "run-diff", title: facts, text: facts }), el("span", { class: "run-last", text: `${stepText(run.last_step + 1)} steps` })), loss, canvas);
    return { run, node, canvas, loss, heat: new HeatMap(canvas) };
  }

  /** @param {any[]} cards @param {number} asked */
  async #fill(cards, asked) {
    const { choice } = this;
    const width = Math.max(200, (this.grid.firstElementChild?.clientWidth || 290) - 26);
    const to = Math.max(...cards.map((one) => one.run.last_step));
    const from = 0;
    const columns = Math.round(width * (window.devicePixelRatio || 1));
    await Promise.all(cards.map(async (one) => {
      one.packed = await this.app.ask("heat", { run: one.run.name, metric: choice.metric, columns: Math.min(columns, 400), start: from, end: to }).catch(() => null);
    }));
    if (asked !== this.#asked) return;
    const found = cards.filter((one) => one.packed && one.packed.arrays.first.length);
    if (!found.length) return;
    const quantiles = joined(found.map((one) => one.packed.header.quantiles));
    const scale = makeScale(choice.metric, quantiles, { cut: Number(choice.cut), low: choice.low, high: choice.high, unit: found[0].packed.header.unit });
    put(this.legend, legend(scale, this.app.host.theme, { title: "" }));
    for (const one of found) {
      one.heat.data = table(one.packed, from, to);
      Object.assign(one.heat, arrange(one.packed.header.sites, matcher(choice.match), new Set()), { scale });
      one.heat.layout(width, HEAT, 0, 40, false);
      one.heat.draw(this.app.host.theme, /** @type {any} */ (choice.pixel));
    }
    for (const one of cards) this.#loss(one, width, from, to + 1);
  }

  /** @param {any} card @param {number} width @param {number} from @param {number} to */
  async #loss(card, width, from, to) {
    const tag = lossTag(card.run.scalars);
    if (!tag) return;
    const found = await this.app.ask("scalars", { run: card.run.name, tag: [tag], columns: 300 }).catch(() => null);
    if (!found) return;
    const values = found.arrays["0.values"];
    drawLine(card.loss, width, LOSS, found.arrays["0.steps"], values, from, to, token("--accent"), spreads(values));
    card.node.querySelector(".run-last").textContent = `${tag} ${number(values[values.length - 1])}`;
  }

  /** @param {any[]} runs @param {string[]} differing */
  #settings(runs, differing) {
    if (runs.length < 2) return null;
    if (!differing.length) return el("div", { class: "card" }, el("h2", { text: "Settings" }), el("p", { class: "hint", text: "Nothing differs in the settings that these runs recorded." }));
    return el("div", { class: "card" }, el("h2", { text: "What differs" }), el("div", { class: "overflow" }, el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, el("th", { text: "run" }), ...differing.map((name) => el("th", { title: name, text: short(name) })))),
      el("tbody", {}, ...runs.map((run) => el("tr", {}, el("td", { text: run.name }), ...differing.map((name) => el("td", { text: text(run.settings[name], name) }))))))));
  }
}

/** The settings that are not the same in all runs, the most varied first. @param {any[]} runs */
export function differences(runs) {
  const names = new Set(runs.flatMap((run) => Object.keys(run.settings)));
  const variety = (/** @type {string} */ name) => new Set(runs.map((run) => JSON.stringify(run.settings[name] ?? null))).size;
  return [...names].filter((name) => variety(name) > 1).sort((a, b) => variety(b) - variety(a));
}

/** A setting's name without the path that all have. @param {string} name */
function short(name) {
  return name.split(".").filter((part) => part !== "init_args" && part !== "class_path").slice(-2).join(".");
}

/** A setting's value; of a class its own name alone. @param {any} value @param {string} name */
function text(value, name) {
  if (name.endsWith("class_path") && typeof value === "string") return String(value.split(".").at(-1));
  if (value === undefined || value === null) return "–";
  return typeof value === "number" ? number(value) : String(value);
}

/** Quantiles of many pictures: enough for a range of colours. @param {any[]} all */
function joined(all) {
  const merge = (/** @type {"all" | "positive"} */ key) => all.flatMap((one) => one[key]).sort((a, b) => a - b);
  return { all: merge("all"), positive: merge("positive"), negative: all.some((one) => one.negative) };
}
