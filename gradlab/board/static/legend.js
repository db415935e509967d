/**
 * The colour bar with its ticks, and the colours that are not on it.
 *
 * @import { Theme } from "./colour.js"
 * @import { Scale } from "./metric.js"
 */

import { gradient, palette } from "./colour.js";
import { el } from "./dom.js";

/**
 * @param {Scale} scale @param {Theme} theme
 * @param {{title?: string, zero?: boolean, absent?: boolean, nonfinite?: boolean}} [also]
 */
export function legend(scale, theme, { title = "", zero = scale.log, absent = true, nonfinite = true } = {}) {
  const colours = palette(theme);
  const map = scale.kind === "diverging" ? colours.diverging : colours.sequential;
  const ticks = scale.ticks().filter((one) => one.at >= -0.001 && one.at <= 1.001);
  const labels = ticks.map((one) => el("span", { style: { left: `${100 * one.at}%` }, text: one.text }));
  return el("div", { class: "legend" },
    title && el("div", { class: "legend-title", text: title }),
    el("div", { class: "legend-bar-box" },
      el("div", { class: "legend-bar", style: { background: gradient(map) } }),
      el("div", { class: "legend-ticks" }, ...labels)),
    el("div", { class: "legend-keys" },
      nonfinite && key(colours.css.nonfinite, "not finite"),
      zero && key(colours.css.zero, scale.log ? "zero" : "0"),
      absent && key(colours.css.absent, "no value")));
}

/** A colour and what it means. @param {string} colour @param {string} text */
export function key(colour, text) {
  return el("span", { class: "key" }, el("i", { style: { background: colour } }), text);
}
