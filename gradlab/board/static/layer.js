/**
 * The view Layer: one site over steps. Every metric, the histogram, the loss and the learning rate, on one axis of
 * steps.
 *
 * @import { Layer, Run, Scalars } from "../answers"
 * @import { App } from "./app.js"
 * @import { Choice } from "./choice.js"
 * @import { Options } from "./chart.js"
 * @import { Panel } from "./layer_panels.js"
 */

import { axis, draw, layout, lineColours, withAlpha } from "./chart.js";
import { palette } from "./colour.js";
import { cssVariable, el, emptyState, fillSelect, labelled, put, select } from "./dom.js";
import { count, step as stepText } from "./format.js";
import { GUIDES, histogramPanel, metricPanels, scalarPanel } from "./layer_panels.js";
import { sortMetrics } from "./metric.js";
import { lossTag, rateTag } from "./scalars.js";
import { firstNonfinite, metricColumns, nonfiniteSpans } from "./site_metrics.js";
import { blockOf } from "./sites.js";

/** Between panels, in pixels. */
const GAP = 34;
const MOST_SPANS = 200;
const DASHES = "4px,4px";

export class LayerView {
  /** Counts requests, so that an answer to an earlier one is not shown. */
  #request = 0;
  /** @type {string[]} */
  #names = [];
  #site = "";

  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.runs = select([], "", (run) => app.choose({ run }));
    this.sites = select([], "", (site) => app.choose({ site }));
    this.bar = el("div", { class: "bar" },
      labelled("Run", this.runs, "wide"), labelled("Site", this.sites, "wide site"),
      this.#arrow("←", "Previous site", -1), this.#arrow("→", "Next site", 1),
      el("button", { text: "Back to the flow", on: { click: () => app.choose({ view: "flow" }) } }));
    this.box = el("div", { class: "scrolls" });
    this.root = el("div", { class: "view" }, this.bar, this.box);
    this.chart = el("div", { class: "chart" }, el("div", { class: "waiting", text: "Loading the chart…" }));
  }

  /** @param {string} text @param {string} title @param {number} by how many sites on */
  #arrow(text, title, by) {
    const click = () => {
      const at = this.#names.indexOf(this.#site);
      this.app.choose({ site: this.#names[(at + by + this.#names.length) % this.#names.length] });
    };
    return el("button", { text, "aria-label": title, title, on: { click } });
  }

  /** @param {Choice} choice @param {Run} run */
  async update(choice, run) {
    const { app } = this;
    app.fillRunSelect(this.runs);
    this.#names = allSites(app, run);
    if (!this.#names.length) {
      const text = "It has no metric over sites: taps of gradlab.watch bring them.";
      put(this.box, emptyState("No sites in this run", text));
      return;
    }
    const isKnown = this.#names.includes(choice.site);
    const site = isKnown ? choice.site : this.#names[0];
    const missing = choice.site && !isKnown ? `This run has no site “${choice.site}”; its first one is shown.` : "";
    this.#site = site;
    fillSelect(this.sites, this.#names.map((value) => ({ value, text: value, group: blockOf(value) })), site);
    const request = (this.#request += 1);
    const tags = [lossTag(run.scalars), rateTag(run.scalars)].filter(Boolean);
    let answer, scalars;
    try {
      [answer, scalars] = await Promise.all([
        app.request("layer", { run: choice.run, site, columns: 1200 }),
        tags.length ? app.request("scalars", { run: choice.run, tag: tags, columns: 1200 }) : null,
      ]);
    } catch (error) {
      if (request !== this.#request) return;
      put(this.box, emptyState("This site cannot be shown", /** @type {Error} */ (error).message));
      return;
    }
    if (request !== this.#request) return;
    const numMetrics = count(answer.header.metrics.length, "metric");
    const panels = this.#panels(answer, scalars, tags);
    const { traces, look } = this.#chart(answer, panels, choice.step);
    put(this.box,
      missing && el("p", { class: "hint", text: missing }),
      el("h2", { class: "site-name", text: site }),
      el("div", { class: "sub", text: `${numMetrics} · ${choice.run}` }),
      this.chart,
      el("div", { class: "guide", text: notes(answer).join(" ") }));
    try {
      await draw(app.source, this.chart, traces, look);
    } catch (error) {
      put(this.box, emptyState("The chart could not be drawn", /** @type {Error} */ (error).message));
    }
  }

  /** From top to bottom. @param {Layer} answer @param {Scalars | null} scalars @param {string[]} tags */
  #panels(answer, scalars, tags) {
    const { theme } = this.app.host;
    const colours = lineColours(theme);
    const panels = metricPanels(answer, colours);
    if (scalars) panels.push(scalarPanel(scalars, tags, colours));
    const histogram = answer.header.metrics.findIndex((one) => one.edges.length);
    if (histogram >= 0) panels.splice(Math.min(1, panels.length), 0, histogramPanel(answer, histogram, theme));
    return panels;
  }

  /**
   * One chart of all panels, one below another.
   * @param {Layer} answer @param {Panel[]} panels @param {number | null} step
   */
  #chart(answer, panels, step) {
    const total = panels.reduce((sum, one) => sum + one.height, 0) + GAP * panels.length + 40;
    const plot = total - 70;
    const muted = cssVariable("--muted");
    /** @type {Options} */
    const axes = {};
    /** @type {object[]} */
    const traces = [];
    /** @type {object[]} */
    const annotations = [];
    /** @type {object[]} */
    const shapes = [];
    let top = 1;
    panels.forEach((panel, i) => {
      const id = i ? String(i + 1) : "";
      const height = panel.height / plot;
      axes[`yaxis${id}`] = axis({
        domain: [Math.max(0, top - height), top], title: axisTitle(panel.title, 8), anchor: "x", fixedrange: false,
        ...panel.axis,
      });
      annotations.push(panelNames(panel, top, id));
      for (const trace of panel.traces(top)) traces.push({ ...trace, yaxis: `y${id}`, xaxis: "x" });
      if (panel.right) {
        const right = 90 + i;
        axes[`yaxis${right}`] = axis({
          overlaying: `y${id}`, side: "right", anchor: "x", showgrid: false, title: axisTitle(panel.right.title, 6),
          ...panel.right.axis,
        });
        for (const trace of panel.right.traces) traces.push({ ...trace, yaxis: `y${right}`, xaxis: "x" });
      }
      for (const { at, text } of panel.guides || []) {
        const line = { color: muted, width: 1, dash: DASHES };
        shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: `y${id}`, y0: at, y1: at, line });
        annotations.push({
          xref: "paper", x: 1, xanchor: "left", yref: `y${id}`, y: Math.log10(at), text, showarrow: false,
          font: { size: 11, color: muted }, xshift: 6,
        });
      }
      top -= height + GAP / plot;
    });
    shapes.push(...spanShapes(answer, palette(this.app.host.theme).css.nonfinite));
    if (step !== null) {
      const accent = cssVariable("--accent");
      const line = { color: accent, width: 1.5 };
      shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: step, x1: step, line });
      annotations.push({
        x: step, yref: "paper", y: 1, yanchor: "bottom", text: `step ${stepText(step)}`, showarrow: false,
        font: { color: accent, size: 11 }, yshift: 12,
      });
    }
    const xaxis = axis({
      title: { text: "step", standoff: 6 }, anchor: `y${panels.length > 1 ? panels.length : ""}`, tickformat: ",d",
      showspikes: true, spikemode: "across", spikesnap: "cursor", spikethickness: 1, spikecolor: muted,
      spikedash: "solid", hoverformat: ",d",
    });
    const width = Math.max(480, this.box.clientWidth - 42);
    const margin = { l: 84, r: 76, t: 30, b: 40 };
    const look = layout({ height: total, margin, showlegend: false, width, annotations, shapes, xaxis, ...axes });
    return { traces, look };
  }
}

/** Every site of a run, in forward order, once. @param {App} app @param {Run} run */
function allSites(app, run) {
  const metrics = sortMetrics(Object.keys(run.metrics));
  return [...new Set(metrics.flatMap((name) => app.sites(run.metrics[name])))];
}

/** @param {string} text @param {number} standoff */
function axisTitle(text, standoff) {
  return { text, standoff, font: { size: 11 } };
}

/**
 * The names of a panel's lines, in their colours, above it.
 * @param {Panel} panel @param {number} top @param {string} name
 */
function panelNames(panel, top, name) {
  const names = panel.names.map((one) => `<span style="color:${one.colour}">■</span> ${escaped(one.text)}`);
  return {
    xref: "paper", x: 0, xanchor: "left", yref: "paper", y: top, yanchor: "bottom", text: names.join("   "),
    showarrow: false, font: { size: 11, color: cssVariable("--text") }, yshift: 3, align: "left", name,
  };
}

/** Text for plotly.js, which reads a few tags of HTML in its texts: none is wanted. @param {string} text */
function escaped(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/**
 * The steps in which the site was not finite, as shapes behind the lines.
 * @param {Layer} answer @param {string} colour
 */
function spanShapes(answer, colour) {
  const look = { y0: 0, y1: 1, line: { width: 0 }, fillcolor: withAlpha(colour, 0.16), layer: "below" };
  const spans = nonfiniteSpans(answer).slice(0, MOST_SPANS);
  return spans.map(([x0, x1]) => ({ type: "rect", xref: "x", yref: "paper", x0, x1, ...look }));
}

/** What has to be said below the chart. @param {Layer} answer */
function notes(answer) {
  const { metrics } = answer.header;
  const used = GUIDES.filter((guide) => metrics.some((one) => one.metric === guide.metric));
  const found = used.map((one) => `Dashed: ${one.source}.`);
  if (metrics.some((_, i) => metricColumns(answer, i).low)) {
    found.push("Lines are means, bands reach from the smallest to the largest value of the steps behind a pixel.");
  }
  const bad = firstNonfinite(answer);
  if (bad.length) found.push(`Not finite: ${bad.join(", ")}; shaded, and the lines have gaps there.`);
  return found;
}
