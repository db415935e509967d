/**
 * The view Profile: where a step's time and memory go. What is measured at every step, from scalars; and the profiler's
 * windows of a few steps, by phase, module and operator.
 *
 * @import { ProfileWindow, Run, Summary } from "../answers"
 * @import { App } from "./app.js"
 * @import { Choice } from "./choice.js"
 * @import { Child } from "./dom.js"
 * @import { Pass } from "./profile_modules.js"
 */

import { lineColours } from "./chart.js";
import { el, emptyState, fillSelect, labelled, put, select } from "./dom.js";
import { bytes, step as stepText } from "./format.js";
import { drawIcicle, modulesCard } from "./profile_modules.js";
import { everyStepCard } from "./profile_steps.js";
import {
  deviceCard, kernelsCard, memoryCard, operatorsCard, ranksCard, stepsCard, verdictCard,
} from "./profile_window.js";

const MOST_TRACES = 4;
const HOW_TO = "gradlab.watch(model, optimizer, profile=gradlab.Profile(wait=5, warmup=2, active=3))";
const WHERE = "Windows are read from the run's folder, so they are shown where the log directory is on this machine.";
const PERFETTO = "Save the trace; ui.perfetto.dev and chrome://tracing open it";

export class ProfileView {
  /** Counts requests, so that an answer to an earlier one is not shown. */
  #request = 0;
  /** @type {ProfileWindow[]} */
  #windows = [];
  /** The name of the window that is shown. */
  #window = "";
  /** @type {Pass} */
  #pass = "forward";
  /** What is measured at every step; null where it was not logged. @type {Awaited<ReturnType<typeof everyStepCard>>} */
  #everyStep = null;

  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.choice = app.choice;
    this.runs = select([], "", (run) => app.choose({ run }));
    this.windows = select([], "", (name) => {
      this.#window = name;
      this.#show();
    });
    this.links = el("div", { class: "control links" });
    this.bar = el("div", { class: "bar" },
      labelled("Run", this.runs, "wide"), labelled("Window", this.windows), this.links);
    this.box = el("div", { class: "scrolls cards" });
    this.root = el("div", { class: "view" }, this.bar, this.box);
  }

  /** @param {Choice} choice @param {Run} run */
  async update(choice, run) {
    this.choice = choice;
    this.app.fillRunSelect(this.runs);
    const everyStep = await everyStepCard(this.app, run);
    if (this.choice !== choice) return;
    this.#everyStep = everyStep;
    if (!run.profiles.length) {
      this.#windows = [];
      this.#updateControls();
      const text = "A window of a few steps under the profiler is one argument:";
      const more = [el("pre", { text: HOW_TO }), el("p", { text: WHERE })];
      this.#put(emptyState("No profile of this run", text, ...more));
      return;
    }
    const request = (this.#request += 1);
    try {
      const { windows } = await this.app.request("profile", { run: choice.run });
      if (request !== this.#request) return;
      this.#windows = windows;
      this.#show();
    } catch (error) {
      put(this.box, emptyState("The profile cannot be shown", /** @type {Error} */ (error).message));
    }
  }

  /** List the windows and the traces of the chosen one, which is returned. */
  #updateControls() {
    const windows = this.#windows;
    if (!windows.some((one) => one.name === this.#window)) this.#window = windows.at(-1)?.name || "";
    fillSelect(this.windows, windows.map((one) => ({ value: one.name, text: windowText(one) })), this.#window);
    const shown = windows.find((one) => one.name === this.#window);
    const traces = shown?.traces || [];
    const links = traces.slice(0, MOST_TRACES).map((trace) => this.#traceLink(trace));
    const open = () => this.app.host.open("pytorch_profiler");
    const tab = this.app.source.live && traces.length > 0 &&
      el("button", { class: "link", text: "Open the PyTorch Profiler tab", on: { click: open } });
    put(this.links, el("span", { class: "label", text: "Trace" }), el("div", { class: "link-row" }, ...links, tab));
    this.links.hidden = !traces.length;
    return shown;
  }

  /** @param {ProfileWindow["traces"][0]} trace */
  #traceLink(trace) {
    const href = this.app.source.traceLink(this.choice.run, this.#window, trace.name);
    const size = bytes(trace.bytes);
    if (!href) return el("span", { class: "hint", text: `${trace.name} (${size}) lies in the run's folder` });
    const text = `Save for Perfetto (${trace.name.split(".")[0]} · ${size})`;
    return el("a", { href, download: trace.name, title: PERFETTO, text });
  }

  /** Show the chosen window. */
  #show() {
    const shown = this.#updateControls();
    if (!shown) return;
    if (!shown.summary) {
      this.#put(emptyState("This window has no summary", shown.problem || ""));
      return;
    }
    this.#showSummary(shown.summary);
  }

  /** @param {Summary} summary */
  #showSummary(summary) {
    const colours = lineColours(this.app.host.theme);
    const icicle = el("div", { class: "icicle" });
    const choosePass = (/** @type {Pass} */ pass) => {
      this.#pass = pass;
      this.#show();
    };
    const cards = [
      () => verdictCard(summary),
      () => stepsCard(summary, colours),
      () => modulesCard(summary, icicle, this.#pass, choosePass),
      () => el("div", { class: "two" }, operatorsCard(summary), memoryCard(summary) || kernelsCard(summary)),
      () => deviceCard(summary),
      () => memoryCard(summary) && kernelsCard(summary),
      () => ranksCard(summary, colours),
    ];
    this.#put(...cards.map(cardOrSentence));
    if (summary.modules?.length) drawIcicle(icicle, summary, this.#pass, colours);
  }

  /** Fill the page: what is measured at every step, then cards. @param {...Child} cards */
  #put(...cards) {
    put(this.box, this.#everyStep?.node, ...cards);
    this.#everyStep?.draw();
  }
}

/** A card, or a sentence where the file is not as this board expects it. @param {() => Child} make */
function cardOrSentence(make) {
  try {
    return make();
  } catch (error) {
    const why = /** @type {Error} */ (error).message;
    return el("div", { class: "card hint", text: `A part of this window is not as this board expects it (${why}).` });
  }
}

/** @param {ProfileWindow} window */
function windowText({ name, summary }) {
  const steps = summary?.steps;
  if (!steps?.length) return name;
  const [first, last] = [steps[0].step, steps[steps.length - 1].step];
  return steps.length === 1 ? `step ${stepText(first)}` : `steps ${stepText(first)} – ${stepText(last)}`;
}
