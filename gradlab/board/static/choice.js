/**
 * What the user has chosen: the whole state of the page, which the address keeps. Belongs here: how a choice is read
 * from the address and written to it, and what replaces the parts of it that are not there. Does not: what is drawn.
 *
 * @import { Index, Run } from "../answers"
 * @import { Statistic } from "./heat.js"
 * @typedef {object} Choice by the names that the address has; "" or null where nothing is chosen
 * @property {string} view
 * @property {string} run
 * @property {string} metric
 * @property {string} minus the run to compare with
 * @property {string} match the pattern that sites have to fit
 * @property {string} site
 * @property {number | null} step
 * @property {number | null} start the first step that is shown
 * @property {number | null} end the last step that is shown
 * @property {string} cut the share of values that is cut off at each end of the colour map
 * @property {number | null} low the value at the low end of the colour map
 * @property {number | null} high the value at its high end
 * @property {Statistic} pixel
 * @property {string} rows "fit" to the page, or high enough to "read"
 * @property {string} jacobian
 */

import { sortMetrics } from "./metric.js";

/** @type {Readonly<Choice>} */
export const START = {
  view: "flow", run: "", metric: "", minus: "", match: "", site: "", step: null, start: null, end: null, cut: "0.005",
  low: null, high: null, pixel: "high", rows: "fit", jacobian: "",
};
const NUMBERS = ["step", "start", "end", "low", "high"];
/** What is chosen for one run. */
const OF_A_RUN = /** @type {const} */ (["start", "end", "low", "high", "step"]);

/** What the address says of a choice. @param {Record<string, string>} values @returns {Partial<Choice>} */
export function fromAddress(values) {
  const known = Object.entries(values).filter(([key]) => Object.hasOwn(START, key));
  const found = known.map(([key, value]) => [key, NUMBERS.includes(key) ? finite(value) : value]);
  return Object.fromEntries(found.filter(([, value]) => value !== null));
}

/** A choice as the address has it: only what is not as at the start. @param {Choice} choice */
export function toAddress(choice) {
  const start = new Map(Object.entries(START));
  const changed = Object.entries(choice).filter(([key, value]) => {
    return value !== null && value !== "" && value !== start.get(key);
  });
  return Object.fromEntries(changed.map(([key, value]) => [key, String(value)]));
}

/**
 * A choice after some of it was changed. Where that brings another run, what was chosen for the one before is dropped.
 * @param {Choice} before @param {Partial<Choice>} change @param {Index | null} index
 * @returns {Choice}
 */
export function changed(before, change, index) {
  const choice = { ...before, ...change };
  if (choice.run === before.run) return choice;
  if (choice.minus === choice.run) choice.minus = "";
  for (const key of OF_A_RUN) if (!(key in change)) choice[key] = null;
  const run = index?.runs.find((one) => one.name === choice.run);
  if (run && !(choice.metric in run.metrics)) choice.metric = firstMetric(run);
  return choice;
}

/**
 * Replace in a choice what is not there, by the newest run and its first metric; returns sentences that say so.
 * @param {Choice} choice @param {Index} index @param {string[]} views
 * @param {boolean} isFirst whether the choice is that of the address: a metric that is gone since is not reported
 */
export function settle(choice, index, views, isFirst) {
  /** @type {string[]} */
  const missing = [];
  const names = index.runs.map((one) => one.name);
  if (choice.run && !names.includes(choice.run)) {
    const why = index.others.includes(choice.run) ? "holds no gradlab data" : "is not here";
    missing.push(`The run “${choice.run}” ${why}; another one is shown.`);
    choice.run = "";
  }
  if (!choice.run) choice.run = newestRun(index);
  const run = index.runs.find((one) => one.name === choice.run);
  if (!run) return missing;
  if (choice.metric && !(choice.metric in run.metrics)) {
    if (isFirst) missing.push(`This run has no metric “${choice.metric}”; another one is shown.`);
    choice.metric = "";
  }
  if (!choice.metric) choice.metric = firstMetric(run);
  if (choice.minus && !names.includes(choice.minus)) {
    missing.push(`The run “${choice.minus}” to compare with is not here.`);
    choice.minus = "";
  }
  if (!views.includes(choice.view)) choice.view = "flow";
  return missing;
}

/** The metric to begin with. @param {Run} run */
function firstMetric(run) {
  const names = Object.keys(run.metrics).filter((name) => !run.metrics[name].hist);
  return names.includes("weight_grad.norm") ? "weight_grad.norm" : sortMetrics(names)[0] || "";
}

/** The run to begin with: the last by name that has metrics, else the last. @param {Index} index */
function newestRun(index) {
  const withMetrics = index.runs.filter((one) => Object.keys(one.metrics).length);
  return (withMetrics.at(-1) || index.runs.at(-1))?.name || "";
}

/** @param {string} text @returns {number | null} */
function finite(text) {
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : null;
}
