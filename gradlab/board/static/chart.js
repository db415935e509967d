/** Line charts by plotly.js, which is loaded when the first one is wanted; all in the look of the page. */

import { DARK_LINES, LINES } from "./colour.js";
import { token } from "./dom.js";

/** The colours of lines in a theme. @param {"light" | "dark"} theme */
export function lineColours(theme) {
  return theme === "dark" ? DARK_LINES : LINES;
}

/** What all charts share. @param {Record<string, any>} [more] */
export function layout(more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: token("--font"), size: 11, color: token("--muted") },
    margin: { l: 76, r: 16, t: 8, b: 34 }, hovermode: "x unified", dragmode: "zoom",
    hoverlabel: { bgcolor: token("--raised"), bordercolor: token("--line-strong"), font: { color: token("--text"), size: 11, family: token("--font") }, namelength: -1 },
    legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { color: token("--text"), size: 11 } },
    ...more,
  };
}

/** An axis in the page's look. @param {Record<string, any>} [more] */
export function axis(more = {}) {
  return {
    gridcolor: token("--line"), linecolor: token("--line-strong"), zeroline: false, tickcolor: token("--line-strong"),
    ticks: "outside", ticklen: 4, automargin: false, ...(more.type === "log" ? { exponentformat: "power", dtick: more.dtick } : {}), ...more,
  };
}

const CONFIG = { displaylogo: false, responsive: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], displayModeBar: "hover" };

/**
 * Draw a chart into a node, or anew.
 * @param {import("./source.js").Source} source @param {HTMLElement} node @param {any[]} traces @param {any} look
 */
export async function draw(source, node, traces, look) {
  const Plotly = await source.loadPlotly();
  node.querySelector(".waiting")?.remove();
  await Plotly.react(node, traces, look, CONFIG);
  return Plotly;
}

/** A number with its halves: what a line chart's y axis in powers of ten should be ticked by. @param {number} low @param {number} high */
export function decades(low, high) {
  return Math.max(1, Math.ceil(Math.log10(high / low) / 4));
}

/** A colour, lighter. @param {string} hex @param {number} alpha */
export function faint(hex, alpha) {
  const value = Number.parseInt(hex.slice(1), 16);
  return `rgba(${value >> 16},${(value >> 8) & 255},${value & 255},${alpha})`;
}
