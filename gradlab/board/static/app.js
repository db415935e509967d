/**
 * The page: what is chosen (run, metric, view, ...), the head with the views, and how it all reaches the address.
 *
 * @typedef {{view: string, run: string, metric: string, minus: string, match: string, site: string, step: number | null,
 *   start: number | null, end: number | null, cut: string, low: number | null, high: number | null, pixel: string,
 *   rows: string, jacobian: string}} Choice
 */

import { el, empty, put, settled } from "./dom.js";
import { count } from "./format.js";
import { Host } from "./host.js";
import { FlowView } from "./flow.js";
import { JacobianView } from "./jacobian.js";
import { LayerView } from "./layer.js";
import { ProfileView } from "./profile.js";
import { RunsView } from "./runs.js";
import { sorted } from "./metric.js";

const POLL_MS = 4000;
/** @type {Choice} */
const START = {
  view: "flow", run: "", metric: "", minus: "", match: "", site: "", step: null, start: null, end: null, cut: "0.005",
  low: null, high: null, pixel: "high", rows: "fit", jacobian: "",
};
const NUMBERS = ["step", "start", "end", "low", "high"];
const VIEWS = [
  ["flow", "Flow"],
  ["layer", "Layer"],
  ["jacobian", "Jacobians"],
  ["profile", "Profile"],
  ["runs", "Runs"],
];

export class App {
  /** @type {Choice} */
  choice = { ...START };
  /** @type {any} */
  index = null;
  /** @type {Record<string, any>} */
  #views = {};
  #shown = "";
  /** @type {Map<string, Promise<any>>} */
  #answers = new Map();

  /** @param {import("./source.js").Source} source @param {HTMLElement} root */
  constructor(source, root) {
    this.source = source;
    this.host = new Host(() => this.#draw());
    this.main = el("main", { id: "gl-main" });
    this.notes = el("div", { class: "notes", role: "status" });
    this.tabs = el("div", { class: "tabs", role: "tablist", "aria-label": "Views", on: { keydown: (/** @type {any} */ e) => this.#arrow(e) } });
    this.stamp = el("div", { class: "stamp", "aria-live": "polite" });
    root.classList.add("gradlab");
    root.append(el("header", {}, el("div", { class: "brand", text: "Gradients" }), this.tabs, this.stamp), this.notes, this.main);
    for (const [name, Kind] of /** @type {[string, any][]} */ ([["flow", FlowView], ["layer", LayerView], ["jacobian", JacobianView], ["profile", ProfileView], ["runs", RunsView]])) this.#views[name] = new Kind(this);
    this.#paintTabs();
    window.addEventListener("resize", settled(() => this.resize(), 120));
  }

  /** Ask what there is, and show it; go on asking. */
  async start() {
    this.host.begin();
    Object.assign(this.choice, this.#fromAddress());
    await this.refresh();
    if (this.source.live) window.setInterval(() => !document.hidden && this.refresh(), POLL_MS);
  }

  /** Look for what is new. */
  async refresh() {
    let index;
    try {
      index = await this.source.ask("index");
    } catch (error) {
      if (!this.index) put(this.main, empty("No answer", /** @type {Error} */ (error).message));
      this.stamp.textContent = "not connected";
      return;
    }
    const before = this.index;
    if (before && JSON.stringify(before) === JSON.stringify(index)) return this.#stamp();
    this.index = index;
    this.#answers.clear();
    this.#settle(before);
    this.#paintTabs();
    this.#draw();
    this.#stamp();
    return undefined;
  }

  /** The run that is shown, as the index has it. @param {string} [name] */
  run(name = this.choice.run) {
    return this.index?.runs.find((/** @type {any} */ one) => one.name === name) || null;
  }

  /** The names of sites of a metric. @param {any} metric as the index has it */
  sites(metric) {
    return this.index.sites[metric.sites];
  }

  /** An answer, asked for once for as long as nothing is new. @param {string} name @param {Record<string, any>} params */
  ask(name, params) {
    const key = `${name} ${JSON.stringify(params)}`;
    let answer = this.#answers.get(key);
    if (!answer) {
      answer = this.source.ask(name, params);
      this.#answers.set(key, answer);
      answer.catch(() => this.#answers.delete(key));
      if (this.#answers.size > 60) this.#answers.delete(/** @type {string} */ (this.#answers.keys().next().value));
    }
    return answer;
  }

  /** Choose something, and show it. @param {Partial<Choice>} change */
  choose(change) {
    const before = this.choice;
    this.choice = { ...before, ...change };
    if ("run" in change && change.run !== before.run) this.#otherRun(before, change);
    this.#toAddress();
    if (before.view !== this.choice.view) this.#paintTabs();
    this.#draw();
  }

  resize() {
    this.#draw();
  }

  /** Notices above the view. @param {string[]} texts */
  note(texts) {
    put(this.notes, ...[...new Set(texts)].map((text) => el("div", { class: "note", text })));
  }

  /** @param {Choice} before @param {Partial<Choice>} change */
  #otherRun(before, change) {
    if (this.choice.minus === this.choice.run) this.choice.minus = "";
    for (const key of /** @type {const} */ (["start", "end", "low", "high", "step"])) if (!(key in change)) this.choice[key] = null;
    const run = this.run();
    if (run && !(this.choice.metric in run.metrics)) this.choice.metric = first(run);
  }

  /** Make the choice mean something: what the address says, else the newest run and its first metric. @param {any} before */
  #settle(before) {
    const { choice, index } = this;
    this.wrong = [];
    const names = index.runs.map((/** @type {any} */ one) => one.name);
    if (choice.run && !names.includes(choice.run)) {
      const other = index.others.includes(choice.run) ? "holds no gradlab data" : "is not here";
      this.wrong.push(`The run “${choice.run}” ${other}; another one is shown.`);
      choice.run = "";
    }
    if (!choice.run) choice.run = busiest(index);
    const run = this.run();
    if (!run) return;
    if (choice.metric && !(choice.metric in run.metrics)) {
      if (!before) this.wrong.push(`This run has no metric “${choice.metric}”; another one is shown.`);
      choice.metric = "";
    }
    if (!choice.metric) choice.metric = first(run);
    if (choice.minus && !names.includes(choice.minus)) {
      this.wrong.push(`The run “${choice.minus}” to compare with is not here.`);
      choice.minus = "";
    }
    if (!VIEWS.some(([name]) => name === choice.view)) choice.view = "flow";
  }

  #draw() {
    if (!this.index) return;
    document.body.dataset.theme = this.host.theme;
    const run = this.run();
    this.note([...(this.wrong || []), ...(run ? run.notes : []), ...(this.damage?.run === run?.name ? this.damage?.notes || [] : [])]);
    if (!run) {
      this.#shown = "";
      const others = this.index.others.length;
      put(this.main, empty("No gradlab data here yet", others
        ? `TensorBoard has ${count(others, "run")}, but none was watched by gradlab. Add one line to the training script:`
        : "TensorBoard has not found a run yet. It looks again every few seconds, and so does this page.",
        el("pre", { text: 'gradlab.watch(model, optimizer, logdir="runs/mlp")' })));
      return;
    }
    const view = this.#views[this.choice.view];
    if (this.#shown !== this.choice.view) {
      put(this.main, view.root);
      this.#shown = this.choice.view;
    }
    view.update(this.choice, run);
    this.#lookForDamage(run.name);
  }

  /** Whether the files are whole is asked once a run, after everything else. @param {string} run */
  #lookForDamage(run) {
    if (this.damage?.run === run) return;
    this.damage = { run, notes: [] };
    window.setTimeout(async () => {
      try {
        const found = await this.source.ask("health", { run });
        if (this.damage.run === run && found.notes.length) {
          this.damage = { run, notes: found.notes };
          this.#draw();
        }
      } catch {
        // Nothing is known of the files then.
      }
    }, 800);
  }

  #paintTabs() {
    const single = this.index && this.index.runs.length < 2 && !this.source.live;
    put(this.tabs, ...VIEWS.filter(([name]) => !(single && name === "runs")).map(([name, text]) =>
      el("button", {
        role: "tab", id: `gl-tab-${name}`, "aria-selected": String(this.choice.view === name), tabindex: this.choice.view === name ? 0 : -1,
        text, on: { click: () => this.choose({ view: name }) },
      })));
    this.main.setAttribute("aria-labelledby", `gl-tab-${this.choice.view}`);
  }

  /** Arrow keys go from view to view. @param {KeyboardEvent} event */
  #arrow(event) {
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!by) return;
    const tabs = [...this.tabs.children];
    const at = tabs.findIndex((one) => one.getAttribute("aria-selected") === "true");
    const next = /** @type {HTMLElement} */ (tabs[(at + by + tabs.length) % tabs.length]);
    this.choose({ view: next.id.replace("gl-tab-", "") });
    /** @type {HTMLElement} */ (document.getElementById(next.id)).focus();
  }

  #stamp() {
    if (!this.source.live) return;
    this.stamp.textContent = `live · ${new Date().toLocaleTimeString("en-GB")}`;
  }

  /** @returns {Partial<Choice>} */
  #fromAddress() {
    /** @type {any} */
    const found = {};
    for (const [key, value] of Object.entries(this.host.address())) {
      if (!(key in START)) continue;
      if (!NUMBERS.includes(key)) found[key] = value;
      else if (value !== "" && Number.isFinite(Number(value))) found[key] = Number(value);
    }
    return found;
  }

  #toAddress() {
    /** @type {Record<string, string>} */
    const changed = {};
    for (const [key, value] of Object.entries(this.choice)) {
      if (value !== null && value !== "" && value !== /** @type {any} */ (START)[key]) changed[key] = String(value);
    }
    this.host.setAddress(changed);
  }
}

/** The metric to begin with. @param {any} run */
function first(run) {
  const names = Object.keys(run.metrics).filter((name) => !run.metrics[name].hist);
  return names.includes("weight_grad.norm") ? "weight_grad.norm" : sorted(names)[0] || "";
}

/** The run to begin with: the last in name that has findings or metrics. @param {any} index */
function busiest(index) {
  const runs = index.runs.filter((/** @type {any} */ one) => Object.keys(one.metrics).length);
  return (runs.at(-1) || index.runs.at(-1))?.name || "";
}
