/**
 * The panels of the view Layer: metrics of one kind share a panel and an axis; the histogram and the scalars have their
 * own.
 *
 * @import { Layer, Scalars } from "../answers"
 * @import { Options } from "./chart.js"
 * @import { Theme } from "./colour.js"
 * @typedef {{metric: string, at: number, text: string, source: string}} Guide a value that people go by, and its source
 * @typedef {object} Panel
 * @property {string} title
 * @property {number} height in pixels
 * @property {(top: number) => object[]} traces of plotly.js; `top` is where the panel begins in the chart, 0 to 1
 * @property {{text: string, colour: string}[]} names
 * @property {Options} axis
 * @property {Guide[]} [guides]
 * @property {{title: string, axis: Options, traces: object[]} | null} [right] a second axis at the right, with its own
 *   lines
 */

import { decadesPerTick, withAlpha } from "./chart.js";
import { css, palette } from "./colour.js";
import { cssVariable } from "./dom.js";
import { parseMetric } from "./metric.js";
import { scalar } from "./scalars.js";
import { histogramColumns, metricColumns } from "./site_metrics.js";

/** @type {Guide[]} */
export const GUIDES = [
  {
    metric: "update_ratio", at: 1e-3, text: "1e-3",
    source: "update ratio near 1e-3: a rule of thumb from Stanford's CS231n notes, “Ratio of weights : updates”",
  },
];
/** The kinds of metrics, from top to bottom. */
const KINDS = [
  { key: "norms", title: "magnitude", log: true, height: 210 },
  { key: "ratios", title: "ratio", log: true, height: 110 },
  { key: "gain", title: "gain", log: true, height: 110 },
  { key: "shares", title: "share", log: false, height: 110 },
  { key: "signed", title: "signed", log: false, height: 110 },
  { key: "counts", title: "count", log: false, height: 110 },
];
/** Lines of fewer points have markers. */
const FEW = 40;

/** The kind of a metric. @param {string} metric @param {boolean} negative whether there are negative values */
function kindKey(metric, negative) {
  const { stat } = parseMetric(metric);
  if (stat === "nonfinite") return "counts";
  if (stat === "gain") return "gain";
  if (stat === "update_ratio" || stat === "noise_scale") return "ratios";
  if (stat === "zeros" || stat === "underflow") return "shares";
  return negative || stat === "cosine" || stat === "mean" ? "signed" : "norms";
}

/** The metrics of a site in panels of one kind each. @param {Layer} answer @param {string[]} colours */
export function metricPanels(answer, colours) {
  const metrics = answer.header.metrics.flatMap(({ metric, edges }, i) => {
    const columns = metricColumns(answer, i);
    if (edges.length || !columns.first.length) return [];
    const key = kindKey(metric, columns.mean.some((one) => one < 0));
    // A count of values that are not finite is worth a panel only where there were any.
    return key === "counts" && !columns.mean.some((one) => one > 0) ? [] : [{ metric, key, columns }];
  });
  return KINDS.flatMap(({ key, title, log, height }) => {
    const ofKind = metrics.filter((one) => one.key === key);
    const own = ofKind.map((one, i) => ({ ...one, colour: colours[i % colours.length] }));
    if (!own.length) return [];
    const guides = GUIDES.filter((guide) => own.some((one) => one.metric === guide.metric));
    const traces = own.flatMap((one) => lines(one.metric, one.columns, one.colour, key === "shares" ? 100 : 1));
    const names = own.map(({ metric, colour }) => ({ text: metric, colour }));
    /** @type {Options} */
    let axis = {};
    if (log) axis = logAxis(own.map((one) => one.columns.mean), guides.map((one) => one.at));
    else if (key === "shares") axis = { ticksuffix: " %", rangemode: "tozero" };
    return [/** @type {Panel} */ ({ title, height, traces: () => traces, names, axis, guides })];
  });
}

/**
 * A log axis around the positive values of lines and the guides.
 * @param {Float32Array[]} lines @param {number[]} guides
 */
function logAxis(lines, guides) {
  let [low, high] = [Infinity, 0];
  for (const values of [...lines, guides]) {
    for (const value of values) {
      if (!(value > 0) || !Number.isFinite(value)) continue;
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  if (low === Infinity) [low, high] = [0.1, 10];
  return {
    type: "log", dtick: decadesPerTick(low, Math.max(high, low * 10)),
    range: [Math.log10(low) - 0.15, Math.log10(Math.max(high, low * 1.5)) + 0.15],
  };
}

/**
 * A line, and the band around it where steps were pooled.
 * @param {string} name @param {ReturnType<typeof metricColumns>} columns @param {string} colour @param {number} factor
 */
function lines(name, { first, last, mean, low, high, bad }, colour, factor) {
  const keep = Array.from(first.keys()).filter((c) => !Number.isNaN(mean[c]) || bad?.[c]);
  const x = keep.map((c) => (first[c] + last[c]) / 2);
  const y = (/** @type {Float32Array} */ values) => {
    return keep.map((c) => (Number.isFinite(values[c]) ? factor * values[c] : null));
  };
  const found = [];
  if (low && high) {
    const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    found.push({ ...edge, y: y(low) });
    found.push({ ...edge, y: y(high), fill: "tonexty", fillcolor: withAlpha(colour, 0.18) });
  }
  return [...found, line(name, x, y(mean), colour)];
}

/** @param {string} name @param {ArrayLike<number>} x @param {(number | null)[]} y @param {string} colour */
function line(name, x, y, colour) {
  const mode = x.length < FEW ? "lines+markers" : "lines";
  return {
    x, y, name, mode, marker: { size: 4 }, line: { color: colour, width: 1.6 }, hovertemplate: "%{y:.4~g}",
  };
}

/**
 * The first tag, and at the right the second.
 * @param {Scalars} answer @param {string[]} tags @param {string[]} colours
 * @returns {Panel}
 */
export function scalarPanel(answer, tags, colours) {
  const drawn = tags.map((tag, i) => {
    const { steps, values } = scalar(answer, i);
    return line(tag, steps, Array.from(values, (one) => (Number.isFinite(one) ? one : null)), colours[i]);
  });
  const title = { text: /loss/i.test(tags[0]) ? "loss" : tags[0], standoff: 8 };
  return {
    title: "", height: 110, traces: () => drawn.slice(0, 1), axis: { title },
    names: tags.map((text, i) => ({ text, colour: colours[i] })),
    right: tags.length > 1 ? { title: tags[1], axis: { exponentformat: "power" }, traces: drawn.slice(1) } : null,
  };
}

/**
 * A histogram over steps as a heat map: the share of values in each bin.
 * @param {Layer} answer @param {number} i @param {Theme} theme
 * @returns {Panel}
 */
export function histogramPanel(answer, i, theme) {
  const { metric, edges } = answer.header.metrics[i];
  const { first, counts } = histogramColumns(answer, i);
  const numBins = edges.length - 1;
  const bins = Array.from({ length: numBins }, (_, b) => b);
  const sums = Array.from(first, (_, c) => counts.subarray(c * numBins, (c + 1) * numBins).reduce((a, b) => a + b, 0));
  const shares = bins.map((b) => sums.map((sum, c) => {
    const one = counts[c * numBins + b];
    return one > 0 ? (100 * one) / sum : null;
  }));
  const used = bins.filter((b) => shares[b].some((one) => one !== null));
  const [low, high] = used.length ? [used[0], used[used.length - 1]] : [0, numBins - 1];
  const map = palette(theme).sequential;
  const colorscale = Array.from({ length: 9 }, (_, k) => [k / 8, plotlyColour(map[Math.round((k * 255) / 8)])]);
  const trace = {
    type: "heatmap", x: first, y: bins.slice(low, high + 1).map((b) => (edges[b] + edges[b + 1]) / 2),
    z: shares.slice(low, high + 1), colorscale, showscale: true, hoverongaps: false,
    hovertemplate: "2^%{y}: %{z:.3~g} %<extra></extra>",
  };
  const bar = {
    thickness: 8, outlinewidth: 0, x: 1.01, ticksuffix: " %", tickfont: { size: 10 }, yanchor: "top", len: 150,
    lenmode: "pixels",
  };
  return {
    title: "log2 magnitude", height: 150, axis: {},
    names: [{ text: `${metric}: share of values`, colour: cssVariable("--muted") }],
    traces: (top) => [{ ...trace, colorbar: { ...bar, y: top } }],
  };
}

/** A pixel's colour as plotly.js reads it. @param {number} pixel */
function plotlyColour(pixel) {
  return css(pixel).replaceAll(" ", ",");
}
