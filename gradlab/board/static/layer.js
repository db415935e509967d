/** One site over steps: every stat, the histogram, loss and learning rate, on one axis of steps. */

import { axis, decades, draw, faint, layout, lineColours } from "./chart.js";
import { css, palette } from "./colour.js";
import { el, empty, fillSelect, labelled, put, select, token } from "./dom.js";
import { count, step as stepText } from "./format.js";
import { lossTag } from "./flow.js";
import { kindOf, parts, sorted } from "./metric.js";
import { blockOf } from "./sites.js";

/** A line that people know, and where it comes from. */
const GUIDES = [{ metric: "update_ratio", at: 1e-3, text: "1e-3", source: "update ratio near 1e-3: a rule of thumb from Stanford's CS231n notes, “Ratio of weights : updates”" }];
const PANELS = [
  { key: "norms", title: "magnitude", log: true },
  { key: "ratios", title: "ratio", log: true },
  { key: "gain", title: "gain", log: true },
  { key: "shares", title: "share", log: false },
  { key: "signed", title: "signed", log: false },
  { key: "counts", title: "count", log: false },
];

export class LayerView {
  #asked = 0;

  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.runSelect = select([], "", (run) => app.choose({ run }));
    this.siteSelect = select([], "", (site) => app.choose({ site }));
    this.before = el("button", { text: "←", "aria-label": "Previous site", title: "Previous site", on: { click: () => this.#go(-1) } });
    this.after = el("button", { text: "→", "aria-label": "Next site", title: "Next site", on: { click: () => this.#go(1) } });
    this.back = el("button", { text: "Back to the flow", on: { click: () => app.choose({ view: "flow" }) } });
    this.bar = el("div", { class: "bar" }, labelled("Run", this.runSelect, "wide"), labelled("Site", this.siteSelect, "wide site"), this.before, this.after, this.back);
    this.box = el("div", { class: "scrolls" });
    this.root = el("div", { class: "view" }, this.bar, this.box);
  }

  /** @param {import("./app.js").Choice} choice @param {any} run */
  async update(choice, run) {
    this.choice = choice;
    const app = this.app;
    fillSelect(this.runSelect, app.index.runs.map((/** @type {any} */ one) => ({ value: one.name, text: one.name })), choice.run);
    this.names = allSites(app, run);
    if (!this.names.length) {
      put(this.box, empty("No sites in this run", "It has no metric over sites: taps of gradlab.watch bring them."));
      return;
    }
    const known = this.names.includes(choice.site);
    const site = known ? choice.site : this.names[0];
    this.missing = choice.site && !known ? `This run has no site “${choice.site}”; its first one is shown.` : "";
    this.site = site;
    fillSelect(this.siteSelect, this.names.map((value) => ({ value, text: value, group: blockOf(value) })), site);
    const asked = (this.#asked += 1);
    let packed, around;
    const tags = overlays(run.scalars);
    try {
      [packed, around] = await Promise.all([
        app.ask("layer", { run: choice.run, site, columns: 1200 }),
        tags.length ? app.ask("scalars", { run: choice.run, tag: tags, columns: 1200 }) : null,
      ]);
    } catch (error) {
      if (asked === this.#asked) put(this.box, empty("This site cannot be shown", /** @type {Error} */ (error).message));
      return;
    }
    if (asked !== this.#asked) return;
    await this.#draw(packed, around, tags);
  }

  /** @param {number} by */
  #go(by) {
    const at = this.names.indexOf(this.site);
    this.app.choose({ site: this.names[(at + by + this.names.length) % this.names.length] });
  }

  /** @param {import("./source.js").Packed} packed @param {import("./source.js").Packed | null} around @param {string[]} tags */
  async #draw(packed, around, tags) {
    const colours = lineColours(this.app.host.theme);
    const panels = group(packed, colours);
    if (around) panels.push(scalarPanel(around, tags, colours));
    const hist = packed.header.metrics.findIndex((/** @type {any} */ one) => one.edges.length);
    if (hist >= 0) panels.splice(Math.min(1, panels.length), 0, histPanel(packed, hist, this.app.host.theme));
    const heights = panels.map((one) => one.height);
    const gap = 34;
    const total = heights.reduce((a, b) => a + b, 0) + gap * panels.length + 40;
    const look = layout({ height: total, margin: { l: 84, r: 76, t: 30, b: 40 }, showlegend: false, width: Math.max(480, this.box.clientWidth - 42), annotations: [], shapes: [] });
    const traces = [];
    const plot = total - 70;
    let top = 1;
    panels.forEach((panel, i) => {
      const height = panel.height / plot;
      const id = i ? String(i + 1) : "";
      look[`yaxis${id}`] = axis({ domain: [Math.max(0, top - height), top], title: { text: panel.title, standoff: 8, font: { size: 11 } }, anchor: "x", fixedrange: false, ...panel.axis });
      look.annotations.push(...names(panel, top, id));
      for (const trace of panel.traces) traces.push({ ...trace, yaxis: `y${id}`, xaxis: "x" });
      if (panel.right) {
        look[`yaxis${90 + i}`] = axis({ overlaying: `y${id}`, side: "right", anchor: "x", showgrid: false, title: { text: panel.right.title, standoff: 6, font: { size: 11 } }, ...panel.right.axis });
        for (const trace of panel.right.traces) traces.push({ ...trace, yaxis: `y${90 + i}`, xaxis: "x" });
      }
      for (const guide of panel.guides || []) {
        look.shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: `y${id}`, y0: guide.at, y1: guide.at, line: { color: token("--muted"), width: 1, dash: "4px,4px" } });
        look.annotations.push({ xref: "paper", x: 1, xanchor: "left", yref: `y${id}`, y: Math.log10(guide.at), text: guide.text, showarrow: false, font: { size: 11, color: token("--muted") }, xshift: 6 });
      }
      top -= height + gap / plot;
    });
    look.shapes.push(...unfinite(packed, palette(this.app.host.theme).css.nonfinite));
    look.xaxis = axis({ title: { text: "step", standoff: 6 }, anchor: `y${panels.length > 1 ? panels.length : ""}`, tickformat: ",d", showspikes: true, spikemode: "across", spikesnap: "cursor", spikethickness: 1, spikecolor: token("--muted"), spikedash: "solid", hoverformat: ",d" });
    if (this.choice.step !== null) {
      look.shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: this.choice.step, x1: this.choice.step, line: { color: token("--accent"), width: 1.5 } });
      look.annotations.push({ x: this.choice.step, yref: "paper", y: 1, yanchor: "bottom", text: `step ${stepText(this.choice.step)}`, showarrow: false, font: { color: token("--accent"), size: 11 }, yshift: 12 });
    }
    if (!this.chart) this.chart = el("div", { class: "chart" }, el("div", { class: "waiting", text: "Loading the chart…" }));
    const used = GUIDES.filter((one) => packed.header.metrics.some((/** @type {any} */ m) => m.metric === one.metric)).map((one) => `Dashed: ${one.source}.`);
    const pooled = packed.header.metrics.some((/** @type {any} */ _, /** @type {number} */ i) => packed.arrays[`${i}.low`]);
    const notes = [...used, ...(pooled ? ["Lines are means, bands reach from the smallest to the largest value of the steps behind a pixel."] : []), ...bad(packed)];
    put(this.box, this.missing && el("p", { class: "hint", text: this.missing }), el("h2", { class: "site-name", text: this.site }), el("div", { class: "sub", text: `${count(packed.header.metrics.length, "metric")} · ${this.choice.run}` }), this.chart, el("div", { class: "guide", text: notes.join(" ") }));
    try {
      await draw(this.app.source, this.chart, traces, look);
    } catch (error) {
      put(this.box, empty("The chart could not be drawn", /** @type {Error} */ (error).message));
    }
  }
}

/** Every site of a run, in forward order, once. @param {import("./app.js").App} app @param {any} run */
function allSites(app, run) {
  const found = new Set();
  for (const name of sorted(Object.keys(run.metrics))) for (const site of app.sites(run.metrics[name])) found.add(site);
  return [...found];
}

/** The loss and the learning rate. @param {string[]} tags */
function overlays(tags) {
  const rate = tags.find((tag) => /(^|[-_/.])(lr|learning_rate)([-_/.]|$)/i.test(tag)) || tags.find((tag) => /^lr/i.test(tag));
  return [lossTag(tags), rate].filter((tag) => Boolean(tag)).map(String);
}

/** Which panel a metric belongs in. @param {string} metric @param {boolean} negative */
function panelOf(metric, negative) {
  const { stat, stage } = parts(metric);
  if (stat === "nonfinite") return "counts";
  if (stat === "gain") return "gain";
  if (stat === "update_ratio" || stat === "noise_scale") return "ratios";
  if (stat === "zeros" || stat === "underflow") return "shares";
  if (negative || stat === "cosine" || stat === "mean") return "signed";
  return kindOf(metric, undefined, negative).log || stage ? "norms" : "signed";
}

/** The metrics of a site in panels of one kind each. @param {import("./source.js").Packed} packed @param {string[]} colours */
function group({ header, arrays }, colours) {
  /** @type {Record<string, any>} */
  const found = {};
  header.metrics.forEach((/** @type {any} */ metric, /** @type {number} */ i) => {
    if (metric.edges.length || !arrays[`${i}.first`].length) return;
    const values = arrays[`${i}.mean`];
    const key = panelOf(metric.metric, values.some((/** @type {number} */ one) => one < 0));
    if (key === "counts" && values.every((/** @type {number} */ one) => !(one > 0))) return;
    const about = /** @type {any} */ (PANELS.find((one) => one.key === key));
    found[key] ??= { title: about.title, height: key === "norms" ? 210 : 110, traces: [], names: [], axis: {}, guides: [], log: about.log, range: [Infinity, 0] };
    const panel = found[key];
    const colour = colours[panel.names.length % colours.length];
    panel.names.push({ text: metric.metric, colour });
    panel.traces.push(...lines(metric.metric, arrays, i, colour, key === "shares" ? 100 : 1));
    for (const value of values) if (value > 0 && Number.isFinite(value)) panel.range = [Math.min(panel.range[0], value), Math.max(panel.range[1], value)];
    panel.guides.push(...GUIDES.filter((one) => one.metric === metric.metric));
  });
  return PANELS.filter(({ key }) => found[key]).map(({ key }) => {
    const panel = found[key];
    if (panel.log) {
      for (const guide of panel.guides) panel.range = [Math.min(panel.range[0], guide.at), Math.max(panel.range[1], guide.at)];
      const [low, high] = panel.range[0] < Infinity ? panel.range : [0.1, 10];
      panel.axis = { type: "log", dtick: decades(low, Math.max(high, low * 10)), range: [Math.log10(low) - 0.15, Math.log10(Math.max(high, low * 1.5)) + 0.15] };
    } else if (key === "shares") panel.axis = { ticksuffix: " %", rangemode: "tozero" };
    return panel;
  });
}

/** A line, and the band around it where steps were pooled. @param {string} name @param {Record<string, any>} arrays @param {number} i @param {string} colour @param {number} factor */
function lines(name, arrays, i, colour, factor) {
  const keep = [];
  const [first, last, mean, low, high, badly] = ["first", "last", "mean", "low", "high", "bad"].map((one) => arrays[`${i}.${one}`]);
  for (let c = 0; c < first.length; c += 1) if (!Number.isNaN(mean[c]) || (badly && badly[c])) keep.push(c);
  const x = keep.map((c) => (first[c] + last[c]) / 2);
  const y = (/** @type {any} */ values) => keep.map((c) => (Number.isFinite(values[c]) ? factor * values[c] : null));
  const found = [];
  if (low) {
    found.push({ x, y: y(low), mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false });
    found.push({ x, y: y(high), mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: faint(colour, 0.18), hoverinfo: "skip", showlegend: false });
  }
  const few = keep.length < 40;
  found.push({ x, y: y(mean), name, mode: few ? "lines+markers" : "lines", marker: { size: 4 }, line: { color: colour, width: 1.6 }, hovertemplate: "%{y:.4~g}" });
  return found;
}

/** @param {import("./source.js").Packed} around @param {string[]} tags @param {string[]} colours */
function scalarPanel({ arrays }, tags, colours) {
  const line = (/** @type {number} */ i, /** @type {string} */ colour) => [{ x: arrays[`${i}.steps`], y: Array.from(arrays[`${i}.values`], (one) => (Number.isFinite(one) ? one : null)), name: tags[i], mode: arrays[`${i}.steps`].length < 40 ? "lines+markers" : "lines", marker: { size: 4 }, line: { color: colour, width: 1.6 }, hovertemplate: "%{y:.4~g}" }];
  const named = tags.map((text, i) => ({ text, colour: colours[i] }));
  const rate = tags.length > 1 ? { title: tags[1], axis: { exponentformat: "power" }, traces: line(1, colours[1]) } : null;
  return { title: "", height: 110, traces: line(0, colours[0]), names: named, axis: { title: { text: /loss/i.test(tags[0]) ? "loss" : tags[0], standoff: 8 } }, right: rate };
}

/** @param {import("./source.js").Packed} packed @param {number} i @param {"light" | "dark"} theme */
function histPanel({ header, arrays }, i, theme) {
  const metric = header.metrics[i];
  const counts = arrays[`${i}.counts`];
  const first = arrays[`${i}.first`];
  const bins = metric.edges.length - 1;
  const sums = Array.from(first, (_, c) => counts.subarray(c * bins, (c + 1) * bins).reduce((/** @type {number} */ a, /** @type {number} */ b) => a + b, 0));
  const z = Array.from({ length: bins }, (_, b) => Array.from(first, (_, c) => (counts[c * bins + b] > 0 ? (100 * counts[c * bins + b]) / sums[c] : null)));
  let [low, high] = [bins, 0];
  z.forEach((row, b) => row.some((one) => one !== null) && ([low, high] = [Math.min(low, b), Math.max(high, b)]));
  if (low > high) [low, high] = [0, bins - 1];
  const y = metric.edges.slice(low, high + 1).map((/** @type {number} */ edge, /** @type {number} */ b) => (edge + metric.edges[low + b + 1]) / 2);
  const map = palette(theme).sequential;
  const scale = Array.from({ length: 9 }, (_, k) => [k / 8, css(map[Math.round((k * 255) / 8)]).replaceAll(" ", ",")]);
  return {
    title: "log2 magnitude", height: 150, names: [{ text: `${metric.metric}: share of values`, colour: token("--muted") }], axis: {},
    traces: [{ type: "heatmap", x: first, y, z: z.slice(low, high + 1), colorscale: scale, showscale: true, hoverongaps: false, hovertemplate: "2^%{y}: %{z:.3~g} %<extra></extra>", colorbar: { thickness: 8, len: 0.2, outlinewidth: 0, x: 1.01, ticksuffix: " %", tickfont: { size: 10 }, yanchor: "top", y: 1 } }],
    isHist: true,
  };
}

/** The names of a panel's lines, in their colours, above it. @param {any} panel @param {number} top @param {string} id */
function names(panel, top, id) {
  if (panel.isHist) panel.traces[0].colorbar = { ...panel.traces[0].colorbar, y: top, len: 150, lenmode: "pixels" };
  const text = panel.names.map((/** @type {any} */ one) => `<span style="color:${one.colour}">■</span> ${escaped(one.text)}`).join("   ");
  return [{ xref: "paper", x: 0, xanchor: "left", yref: "paper", y: top, yanchor: "bottom", text, showarrow: false, font: { size: 11, color: token("--text") }, yshift: 3, align: "left", name: id }];
}

/** Text for plotly, which knows a few tags: none of them is wanted. @param {string} text */
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Spans of steps in which something of the site was not finite, as shapes behind the lines. @param {import("./source.js").Packed} packed @param {string} colour */
function unfinite({ header, arrays }, colour) {
  const spans = header.metrics.flatMap((/** @type {any} */ _, /** @type {number} */ i) => {
    const [first, last, values] = ["first", "last", "bad"].map((name) => arrays[`${i}.${name}`]);
    return values ? Array.from(values.keys()).filter((/** @type {any} */ c) => values[c] > 0).map((/** @type {any} */ c) => [first[c] - 0.5, last[c] + 0.5]) : [];
  }).sort((/** @type {number[]} */ a, /** @type {number[]} */ b) => a[0] - b[0]);
  /** @type {number[][]} */
  const joined = [];
  for (const [from, to] of spans) {
    const before = joined.at(-1);
    if (before && from <= before[1] + 1) before[1] = Math.max(before[1], to);
    else joined.push([from, to]);
  }
  return joined.slice(0, 200).map(([x0, x1]) => ({ type: "rect", xref: "x", yref: "paper", x0, x1, y0: 0, y1: 1, line: { width: 0 }, fillcolor: faint(colour, 0.16), layer: "below" }));
}

/** What was not finite, in words. @param {import("./source.js").Packed} packed @returns {string[]} */
function bad({ header, arrays }) {
  const found = header.metrics.flatMap((/** @type {any} */ metric, /** @type {number} */ i) => {
    const values = arrays[`${i}.bad`];
    const at = values ? values.findIndex((/** @type {number} */ one) => one > 0) : -1;
    return at < 0 ? [] : [`${metric.metric} first at step ${stepText(arrays[`${i}.first`][at])}`];
  });
  return found.length ? [`Not finite: ${found.join(", ")}; shaded, and the lines have gaps there.`] : [];
}
