/**
 * Metrics: what a name means (`of.stat@stage`, or the name of a derived quantity), the order in which they are listed,
 * and the scale that turns values into places on a colour map.
 *
 * @import { Quantiles } from "../answers"
 * @typedef {{of: string, stat: string, stage: string, group: string, meaning: string, order: number}} MetricName
 * @typedef {{kind: "log" | "linear" | "diverging", log: boolean, centre: number}} ScaleKind `centre` is the value in
 *   the middle of a diverging scale
 * @typedef {{at: number, text: string}} Tick `at` is a place from 0 to 1
 * @typedef {ScaleKind & {low: number, high: number, place(value: number): number, ticks(): Tick[]}} Scale
 *   `place` is 0 at `low` and 1 at `high`
 */

import { number, powerOfTen, ticks, withUnit } from "./format.js";

/** @type {Record<string, string>} */
const OF = {
  weight_grad: "Weight gradients",
  output_grad: "Output gradients",
  update: "Updates",
  weight: "Weights",
  output: "Outputs",
};
/** @type {Record<string, string>} */
const STAT = {
  norm: "norm ‖x‖",
  rms: "root mean square",
  mean: "mean",
  std: "standard deviation",
  max_abs: "largest magnitude",
  zeros: "share of exact zeros",
  nonfinite: "how many values are NaN or infinite",
  underflow: "share below the smallest normal number",
  cosine: "cosine with the previous logged step",
  hist: "histogram of log2 magnitude",
};
/** @type {Record<string, string>} */
const DERIVED = {
  update_ratio: "update ratio ‖Δw‖ / ‖w‖",
  gain: "gain ‖∂L/∂input‖ / ‖∂L/∂output‖",
  noise_scale: "gradient noise scale tr(Σ) / |G|², in micro-batches",
};
/** @type {Record<string, string>} */
const STAGE = { clipped: "after clipping", micro: "of the last backward alone", ranks: "each rank by itself" };
/** The order of what is not in OF. */
const LAST = 9;
/** Shares are from 0 to 1, on a linear scale. */
const SHARES = ["zeros", "underflow"];
/** What the server calls a difference of two runs as log2 of their ratio. */
export const LOG_RATIO = "log2 ratio";

/** What a metric's name says. @param {string} name @returns {MetricName} */
export function parseMetric(name) {
  const [plain, stage = "final"] = name.split("@");
  const dot = plain.lastIndexOf(".");
  const of = dot < 0 ? "" : plain.slice(0, dot);
  const stat = dot < 0 ? plain : plain.slice(dot + 1);
  const group = of in OF ? OF[of] : DERIVED[plain] ? "Ratios" : "Other";
  const meaning = DERIVED[plain] || STAT[stat] || stat;
  const order = Object.keys(OF).indexOf(of);
  const whole = stage === "final" ? meaning : `${meaning}, ${STAGE[stage] || stage}`;
  return { of, stat, stage, group, meaning: whole, order: order < 0 ? LAST : order };
}

/** The metrics in the order in which people look for them. @param {string[]} names */
export function sortMetrics(names) {
  const stats = Object.keys(STAT);
  const rank = (/** @type {string} */ name) => {
    const one = parseMetric(name);
    const group = one.group === "Ratios" ? 1.5 : one.order;
    return group * 1000 + (stats.indexOf(one.stat) + 1) * 10 + (one.stage === "final" ? 0 : 1);
  };
  return [...names].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
}

/**
 * The kind of scale of a metric.
 * @param {string} name @param {string | undefined} difference how two runs were subtracted, if they were
 * @param {boolean} negative whether there are negative values
 * @returns {ScaleKind}
 */
export function kindOf(name, difference, negative) {
  const { stat } = parseMetric(name);
  if (difference) return { kind: "diverging", log: false, centre: 0 };
  if (stat === "gain") return { kind: "diverging", log: true, centre: 1 };
  if (stat === "cosine" || negative) return { kind: "diverging", log: false, centre: 0 };
  if (SHARES.includes(stat) || stat === "nonfinite") return { kind: "linear", log: false, centre: 0 };
  return { kind: "log", log: true, centre: 0 };
}

/**
 * The scale of a metric, from the values that are shown.
 * @param {string} name the metric
 * @param {Quantiles} quantiles of what is shown
 * @param {{cut: number, low?: number | null, high?: number | null, unit: string, difference?: string}} options `cut` is
 *   the share that is cut off at each end; `low` and `high` where the user fixed them.
 * @returns {Scale}
 */
export function makeScale(name, quantiles, { cut, low = null, high = null, unit, difference }) {
  const { kind, log, centre } = kindOf(name, difference, quantiles.negative);
  const values = log ? quantiles.positive : quantiles.all;
  let [from, to] = [at(values, cut), at(values, 1 - cut)];
  if (!values.length) [from, to] = log ? [0.1, 10] : [0, 1];
  if (kind === "linear" && from > 0) from = 0;
  if (parseMetric(name).stat === "cosine" && !difference) [from, to] = [-1, 1];
  if (kind === "diverging") [from, to] = around(centre, from, to, log);
  if (low !== null) from = low;
  if (high !== null) to = high;
  if (log && !(from > 0)) from = to > 0 ? to / 1e6 : 1e-6;
  if (!(to > from)) to = log ? from * 10 : from + (Math.abs(from) || 1);
  if (log && low === null && high === null && to / from < 4) [from, to] = [from / 2, to * 2];
  const [a, b] = log ? [Math.log(from), Math.log(to)] : [from, to];
  const text = (/** @type {number} */ value) => (difference === LOG_RATIO ? factor(value) : withUnit(value, unit));
  return {
    kind,
    log,
    centre,
    low: from,
    high: to,
    place: log ? (value) => (Math.log(value) - a) / (b - a) : (value) => (value - a) / (b - a),
    ticks: () => scaleTicks(from, to, log, text),
  };
}

/** A quantile. @param {number[]} values in order @param {number} share */
function at(values, share) {
  return values[Math.round(share * (values.length - 1))];
}

/**
 * The smallest range around `centre` that holds both ends, as wide on either side.
 * @param {number} centre @param {number} from @param {number} to @param {boolean} log
 * @returns {[number, number]}
 */
function around(centre, from, to, log) {
  if (log) {
    const far = Math.max(Math.abs(Math.log(from / centre)), Math.abs(Math.log(to / centre)), Math.log(2));
    return [centre * Math.exp(-far), centre * Math.exp(far)];
  }
  const far = Math.max(Math.abs(from - centre), Math.abs(to - centre)) || 1;
  return [centre - far, centre + far];
}

/**
 * About five ticks; on a log scale at powers of ten where two of them fit.
 * @param {number} low @param {number} high @param {boolean} log @param {(value: number) => string} text
 * @returns {Tick[]}
 */
function scaleTicks(low, high, log, text) {
  if (!log) return ticks(low, high, 4).map((value) => ({ at: (value - low) / (high - low), text: text(value) }));
  const [a, b] = [Math.log10(low), Math.log10(high)];
  const every = Math.max(1, Math.ceil((b - a) / 5));
  const found = [];
  for (let power = Math.ceil(a / every) * every; power <= b + 1e-9; power += every) {
    found.push({ at: (power - a) / (b - a), text: powerOfTen(power) });
  }
  if (found.length >= 2) return found;
  const rounded = (/** @type {number} */ share) => Number((10 ** (a + share * (b - a))).toPrecision(2));
  return [0.1, 0.5, 0.9].map((share) => ({ at: share, text: number(rounded(share)) }));
}

/** 2^value as a factor. @param {number} value */
function factor(value) {
  if (value === 0) return "same";
  return value > 0 ? `× ${number(2 ** value)}` : `÷ ${number(2 ** -value)}`;
}
