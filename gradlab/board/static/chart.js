/**
 * Line charts by plotly.js, which is loaded when the first one is drawn; all in the look of the page.
 *
 * @import { Source } from "./source.js"
 * @import { Theme } from "./colour.js"
 * @typedef {{react(node: HTMLElement, traces: object[], look: object, config: object): Promise<unknown>}} Plotly
 * @typedef {Record<string, unknown>} Options of plotly.js: of a layout, an axis, a trace
 */

import { DARK_LINES, LINES } from "./colour.js";
import { cssVariable } from "./dom.js";

const CONFIG = {
  displaylogo: false,
  responsive: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  displayModeBar: "hover",
};

/** The colours of lines in a theme. @param {Theme} theme */
export function lineColours(theme) {
  return theme === "dark" ? DARK_LINES : LINES;
}

/** A layout in the page's look. @param {Options} [more] @returns {Options} */
export function layout(more = {}) {
  const font = cssVariable("--font");
  const text = { color: cssVariable("--text"), size: 11 };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: font, size: 11, color: cssVariable("--muted") },
    margin: { l: 76, r: 16, t: 8, b: 34 },
    hovermode: "x unified",
    dragmode: "zoom",
    hoverlabel: {
      bgcolor: cssVariable("--raised"),
      bordercolor: cssVariable("--line-strong"),
      font: { ...text, family: font },
      namelength: -1,
    },
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: text },
    ...more,
  };
}

/** An axis in the page's look. @param {Options} [more] @returns {Options} */
export function axis(more = {}) {
  return {
    gridcolor: cssVariable("--line"),
    linecolor: cssVariable("--line-strong"),
    zeroline: false,
    tickcolor: cssVariable("--line-strong"),
    ticks: "outside",
    ticklen: 4,
    automargin: false,
    ...(more.type === "log" ? { exponentformat: "power" } : {}),
    ...more,
  };
}

/**
 * Draw a chart in a node, or bring the one that is there up to date.
 * @param {Source} source @param {HTMLElement} node @param {object[]} traces @param {Options} look
 */
export async function draw(source, node, traces, look) {
  const plotly = await source.loadPlotly();
  node.querySelector(".waiting")?.remove();
  await plotly.react(node, traces, look, CONFIG);
}

/**
 * How many powers of ten from tick to tick of a log axis, so that it has about four.
 * @param {number} low @param {number} high
 */
export function decadesPerTick(low, high) {
  return Math.max(1, Math.ceil(Math.log10(high / low) / 4));
}

/**
 * Values for a log axis: null, a gap in the line, where one is not positive or not finite.
 * @param {ArrayLike<number>} values
 */
export function positive(values) {
  return Array.from(values, (one) => (one > 0 && Number.isFinite(one) ? one : null));
}

/** A colour, translucent. @param {string} hex @param {number} alpha */
export function withAlpha(hex, alpha) {
  const value = Number.parseInt(hex.slice(1), 16);
  return `rgba(${value >> 16},${(value >> 8) & 255},${value & 255},${alpha})`;
}
