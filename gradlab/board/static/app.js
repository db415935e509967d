/**
 * The page: its head with the views, the choice of the user, and the answers that the views share.
 *
 * @import { Answers, Index, MetricInfo, Query, Run } from "../answers"
 * @import { Choice } from "./choice.js"
 * @import { Source } from "./source.js"
 * @typedef {{root: HTMLElement, update(choice: Choice, run: Run): unknown}} View
 */

import { changed, fromAddress, settle, START, toAddress } from "./choice.js";
import { debounced, el, emptyState, fillSelect, put } from "./dom.js";
import { FlowView } from "./flow.js";
import { count } from "./format.js";
import { Host } from "./host.js";
import { JacobianView } from "./jacobian.js";
import { LayerView } from "./layer.js";
import { ProfileView } from "./profile.js";
import { RunsView } from "./runs.js";

const POLL_MS = 4000;
/** How long to wait before files are checked for damage, so that everything else comes first. */
const HEALTH_MS = 800;
const MOST_ANSWERS = 60;
/** @type {[string, string, new (app: App) => View][]} */
const VIEWS = [
  ["flow", "Flow", FlowView],
  ["layer", "Layer", LayerView],
  ["jacobian", "Jacobians", JacobianView],
  ["profile", "Profile", ProfileView],
  ["runs", "Runs", RunsView],
];

export class App {
  /** @type {Choice} */
  choice = { ...START };
  /** @type {Index | null} */
  index = null;
  /** Sentences about what the address asks for and is not there. @type {string[]} */
  #missing = [];
  /** Sentences about damaged files of a run, once it was checked. @type {{run: string, notes: string[]} | null} */
  #damage = null;
  /** The view that is shown. */
  #shown = "";
  /** @type {Map<string, Promise<unknown>>} */
  #answers = new Map();

  /** @param {Source} source @param {HTMLElement} root */
  constructor(source, root) {
    this.source = source;
    this.host = new Host(() => this.#draw());
    this.main = el("main", { id: "gl-main" });
    this.notes = el("div", { class: "notes", role: "status" });
    this.tabs = el("div", {
      class: "tabs", role: "tablist", "aria-label": "Views", on: { keydown: (event) => this.#arrow(event) },
    });
    this.stamp = el("div", { class: "stamp", "aria-live": "polite" });
    const brand = el("div", { class: "brand", text: "Gradients" });
    root.classList.add("gradlab");
    root.append(el("header", {}, brand, this.tabs, this.stamp), this.notes, this.main);
    /** @type {Record<string, View>} */
    this.views = Object.fromEntries(VIEWS.map(([name, , Kind]) => [name, new Kind(this)]));
    this.#paintTabs();
    window.addEventListener("resize", debounced(() => this.#draw(), 120));
  }

  /** Show what there is, and keep looking for more. */
  async start() {
    this.host.followTheme();
    Object.assign(this.choice, fromAddress(this.host.address()));
    await this.refresh();
    if (this.source.live) window.setInterval(() => !document.hidden && this.refresh(), POLL_MS);
  }

  /** Look for what is new. */
  async refresh() {
    let index;
    try {
      index = await this.source.request("index");
    } catch (error) {
      if (!this.index) put(this.main, emptyState("No answer", /** @type {Error} */ (error).message));
      this.stamp.textContent = "not connected";
      return;
    }
    const before = this.index;
    if (JSON.stringify(before) !== JSON.stringify(index)) {
      this.index = index;
      this.#answers.clear();
      this.#missing = settle(this.choice, index, Object.keys(this.views), before === null);
      this.#paintTabs();
      this.#draw();
    }
    if (this.source.live) this.stamp.textContent = `live · ${new Date().toLocaleTimeString("en-GB")}`;
  }

  // What the views use

  /** All runs with gradlab data. */
  get runs() {
    return this.index?.runs || [];
  }

  /** How many steps TensorBoard keeps of a series. */
  get keptSteps() {
    return this.index?.kept_steps || 0;
  }

  /** The run that is shown, null where there is none. */
  get run() {
    return this.runs.find((one) => one.name === this.choice.run) || null;
  }

  /** The names of the sites of a metric. @param {MetricInfo} metric */
  sites(metric) {
    return this.index?.sites[metric.sites] || [];
  }

  /** List the runs in a view's control. @param {HTMLSelectElement} select */
  fillRunSelect(select) {
    fillSelect(select, this.runs.map(({ name }) => ({ value: name, text: name })), this.choice.run);
  }

  /**
   * An answer of the server, requested once for as long as nothing is new.
   * @template {keyof Answers} Name
   * @param {Name} name @param {Query} query @returns {Promise<Answers[Name]>}
   */
  request(name, query) {
    const key = `${name} ${JSON.stringify(query)}`;
    const known = /** @type {Promise<Answers[Name]> | undefined} */ (this.#answers.get(key));
    if (known) return known;
    const answer = this.source.request(name, query);
    this.#answers.set(key, answer);
    answer.catch(() => this.#answers.delete(key));
    const [oldest] = this.#answers.keys();
    if (this.#answers.size > MOST_ANSWERS) this.#answers.delete(oldest);
    return answer;
  }

  /** Choose something, and show it. @param {Partial<Choice>} change */
  choose(change) {
    const before = this.choice;
    this.choice = changed(before, change, this.index);
    this.host.setAddress(toAddress(this.choice));
    if (before.view !== this.choice.view) this.#paintTabs();
    this.#draw();
  }

  // What is drawn

  #draw() {
    if (!this.index) return;
    document.body.dataset.theme = this.host.theme;
    const { run } = this;
    const damage = this.#damage && this.#damage.run === run?.name ? this.#damage.notes : [];
    const notes = new Set([...this.#missing, ...(run ? run.notes : []), ...damage]);
    put(this.notes, ...Array.from(notes, (text) => el("div", { class: "note", text })));
    if (!run) {
      this.#shown = "";
      put(this.main, nothingHere(this.index.others.length));
      return;
    }
    const view = this.views[this.choice.view];
    if (this.#shown !== this.choice.view) {
      put(this.main, view.root);
      this.#shown = this.choice.view;
    }
    view.update(this.choice, run);
    this.#checkFiles(run.name);
  }

  /** Ask once a run, after everything else, whether its files are damaged. @param {string} run */
  #checkFiles(run) {
    if (this.#damage?.run === run) return;
    this.#damage = { run, notes: [] };
    window.setTimeout(async () => {
      const { notes } = await this.source.request("health", { run }).catch(() => ({ notes: [] }));
      if (this.#damage?.run !== run || !notes.length) return;
      this.#damage = { run, notes };
      this.#draw();
    }, HEALTH_MS);
  }

  #paintTabs() {
    const isOneRun = this.index && this.index.runs.length < 2 && !this.source.live;
    const views = VIEWS.filter(([name]) => !(isOneRun && name === "runs"));
    put(this.tabs, ...views.map(([view, text]) => {
      const isShown = this.choice.view === view;
      return el("button", {
        role: "tab", id: `gl-tab-${view}`, "aria-selected": String(isShown), tabindex: isShown ? 0 : -1, text,
        on: { click: () => this.choose({ view }) },
      });
    }));
    this.main.setAttribute("aria-labelledby", `gl-tab-${this.choice.view}`);
  }

  /** Arrow keys go from view to view. @param {KeyboardEvent} event */
  #arrow(event) {
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!by) return;
    const tabs = [...this.tabs.children];
    const at = tabs.findIndex((one) => one.getAttribute("aria-selected") === "true");
    const { id } = tabs[(at + by + tabs.length) % tabs.length];
    this.choose({ view: id.replace("gl-tab-", "") });
    document.getElementById(id)?.focus();
  }
}

/** @param {number} numOthers how many runs there are that are not ours */
function nothingHere(numOthers) {
  const others =
    `TensorBoard has ${count(numOthers, "run")}, but none was watched by gradlab. Add one line to the training script:`;
  const none = "TensorBoard has not found a run yet. It looks again every few seconds, and so does this page.";
  const line = el("pre", { text: 'gradlab.watch(model, optimizer, logdir="runs/mlp")' });
  return emptyState("No gradlab data here yet", numOthers ? others : none, line);
}
