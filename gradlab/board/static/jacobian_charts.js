/**
 * The line charts of a Jacobian, as traces and layouts of plotly.js: growth from layer to layer, singular values, and
 * the norm over steps.
 *
 * @import { Jacobian } from "../answers"
 * @import { Theme } from "./colour.js"
 */

import { axis, layout, lineColours, positive, withAlpha } from "./chart.js";
import { css, palette } from "./colour.js";
import { cssVariable } from "./dom.js";
import { step as stepText } from "./format.js";

const MOST_SPECTRA = 24;
const SMALL = { height: 210, margin: { l: 56, r: 10, t: 10, b: 36 } };

// Growth from layer to layer

/** A line a direction: the sum of its logarithms up to each site. @param {Jacobian} answer @param {Theme} theme */
export function growthTraces({ header, arrays }, theme) {
  const { block } = arrays;
  if (!block) return [];
  const [numRows, numDirections] = block.shape;
  const map = palette(theme).sequential;
  const x = [...(header.row_names || []), header.of];
  const traces = Array.from({ length: numDirections }, (_, c) => {
    const y = [0];
    for (let r = 0; r < numRows; r += 1) y.push(y[r] + block[r * numDirections + c]);
    const color = css(map[Math.round(30 + (195 * c) / Math.max(1, numDirections - 1))]).replaceAll(" ", ",");
    return {
      x, y, name: `direction ${c + 1}`, mode: "lines+markers", marker: { size: 4 },
      line: { color, width: c ? 1.4 : 2.2 }, hovertemplate: "%{y:.4~g}",
    };
  });
  return traces.reverse(); // the first direction is drawn last, over the others
}

/** @param {number} width */
export function growthLayout(width) {
  const dashed = { color: cssVariable("--muted"), dash: "4px,4px", width: 1 };
  return layout({
    height: 400, width, margin: { l: 60, r: 12, t: 12, b: 80 }, hovermode: "closest", showlegend: false,
    xaxis: axis({ tickangle: 40 }),
    yaxis: axis({ title: { text: "log growth since the first site" } }),
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0, y1: 0, line: dashed }],
  });
}

// Singular values

/** Those of the step that is shown, and faint those of some others. @param {Jacobian} answer @param {Theme} theme */
export function spectrumTraces({ header, arrays }, theme) {
  const { singular_values: values, spectra, spectrum_steps: steps } = arrays;
  if (!values || !spectra || !steps) return [];
  const length = spectra.shape[1];
  const x = Array.from({ length }, (_, i) => i + 1);
  const muted = cssVariable("--muted");
  const faint = withAlpha(muted.startsWith("#") ? muted : "#888888", 0.28);
  /** @type {object[]} */
  const traces = [];
  for (let s = 0; s < steps.length; s += Math.max(1, Math.ceil(steps.length / MOST_SPECTRA))) {
    if (steps[s] === header.step) continue;
    const y = positive(spectra.subarray(s * length, (s + 1) * length));
    traces.push({ x, y, mode: "lines", line: { color: faint, width: 1 }, hoverinfo: "skip", showlegend: false });
  }
  traces.push({
    x, y: positive(values), name: `step ${stepText(header.step)}`, mode: "lines+markers", marker: { size: 5 },
    line: { color: lineColours(theme)[0], width: 2 }, hovertemplate: "σ%{x}: %{y:.4~g}<extra></extra>",
  });
  return traces;
}

/** @param {number} width */
export function spectrumLayout(width) {
  const xaxis = axis({ title: { text: "index" }, tickformat: "d" });
  const yaxis = axis({ type: "log", dtick: 1 });
  return layout({ ...SMALL, width, hovermode: "closest", showlegend: false, xaxis, yaxis });
}

// The norm over steps

/**
 * The Frobenius norm, with its interval where it is an estimate, and σ₁.
 * @param {Jacobian} answer @param {Theme} theme
 */
export function historyTraces({ header, arrays }, theme) {
  const colours = lineColours(theme);
  const series = (/** @type {string} */ name) => {
    const i = header.summaries.indexOf(name);
    if (i < 0) return null;
    const x = arrays[/** @type {const} */ (`summary${i}.steps`)];
    return { x, y: positive(arrays[/** @type {const} */ (`summary${i}`)]) };
  };
  /** @type {object[]} */
  const traces = [];
  const [low, high] = [series("fro_lo"), series("fro_hi")];
  if (low && high) {
    const edge = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    traces.push({ ...low, ...edge }, { ...high, ...edge, fill: "tonexty", fillcolor: withAlpha(colours[0], 0.2) });
  }
  [["fro", "Frobenius norm"], ["sigma_1", "σ₁"]].forEach(([summary, name], i) => {
    const found = series(summary);
    if (!found || !found.x.length) return;
    const line = { color: colours[i], width: 1.6 };
    traces.push({ ...found, name, mode: "lines+markers", marker: { size: 4 }, line, hovertemplate: "%{y:.4~g}" });
  });
  return traces;
}

/** @param {Jacobian} answer @param {number} width */
export function historyLayout({ header }, width) {
  const line = { color: cssVariable("--accent"), width: 1 };
  return layout({
    ...SMALL, margin: { ...SMALL.margin, t: 24 }, width,
    xaxis: axis({ title: { text: "step" }, tickformat: ",d" }),
    yaxis: axis({ type: "log", dtick: 1 }),
    shapes: [{ type: "line", yref: "paper", y0: 0, y1: 1, x0: header.step, x1: header.step, line }],
  });
}
