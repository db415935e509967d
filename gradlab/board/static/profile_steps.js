/**
 * What is measured at every step, without the profiler: the scalars `perf/*` as a chart of phases and a row of numbers.
 *
 * @import { Run } from "../answers"
 * @import { App } from "./app.js"
 */

import { axis, draw, layout, lineColours } from "./chart.js";
import { el } from "./dom.js";
import { bytes, milliseconds, number, percent } from "./format.js";
import { key } from "./legend.js";
import { scalar } from "./scalars.js";

/** The phases of a step in their order: tag, name, the number of its colour. @type {[string, string, number][]} */
const PHASES = [
  ["perf/data_ms", "waiting for data", 5],
  ["perf/h2d_ms", "copy to the device", 3],
  ["perf/forward_ms", "forward", 0],
  ["perf/loss_ms", "loss", 4],
  ["perf/backward_ms", "backward", 1],
  ["perf/optimizer_ms", "optimizer", 2],
  ["perf/callbacks_ms", "callbacks", 6],
  ["perf/other_ms", "other", 7],
];
/** The numbers: tag, name, how a value is written. @type {[string, string, (value: number) => string][]} */
const RATES = [
  ["perf/step_ms", "a step", milliseconds],
  ["perf/samples_per_second", "samples a second", number],
  ["perf/tokens_per_second", "tokens a second", number],
  ["perf/tflops_per_second", "TFLOP a second", number],
  ["perf/mfu", "model FLOP utilization", percent],
  ["perf/memory_peak_bytes", "peak device memory", bytes],
  ["perf/host_memory_bytes", "host memory", bytes],
  ["perf/gpu_utilization", "GPU utilization", percent],
];

/**
 * The card, and a function that draws its chart once the card is on the page; null where no phase was logged.
 * @param {App} app @param {Run} run
 */
export async function everyStepCard(app, run) {
  const phases = PHASES.filter(([tag]) => run.scalars.includes(tag));
  const rates = RATES.filter(([tag]) => run.scalars.includes(tag));
  if (!phases.length) return null;
  const tags = [...phases, ...rates].map(([tag]) => tag);
  const answer = await app.request("scalars", { run: run.name, tag: tags, columns: 600 }).catch(() => null);
  if (!answer) return null;
  const colours = lineColours(app.host.theme);
  const facts = rates.map(([, name, text], i) => {
    const { values } = scalar(answer, phases.length + i);
    return el("div", { class: "fact" }, el("span", { text: name }), el("b", { text: text(Number(values.at(-1))) }));
  });
  const traces = phases.map(([, name, hue], i) => {
    const { steps, values } = scalar(answer, i);
    return {
      x: Array.from(steps), y: Array.from(values), name, stackgroup: "step", mode: "lines",
      line: { width: 0.5, color: colours[hue] }, fillcolor: colours[hue], hovertemplate: "%{y:.3~g} ms",
    };
  });
  const chart = el("div", { class: "chart" });
  const node = el("div", { class: "card" },
    el("h2", { text: "Every step" }),
    el("div", { class: "sub", text: "means over ten steps, without the profiler; the last one:" }),
    el("div", { class: "facts" }, ...facts),
    chart,
    el("div", { class: "keys" }, ...phases.map(([, name, hue]) => key(colours[hue], name))));
  return {
    node,
    /** Without plotly.js there is no chart; the numbers are there. */
    draw: () => draw(app.source, chart, traces, look(chart.clientWidth || 1180)).catch(() => {}),
  };
}

/** @param {number} width */
function look(width) {
  return layout({
    height: 190, width, margin: { l: 56, r: 10, t: 10, b: 36 }, showlegend: false,
    xaxis: axis({ title: { text: "step", standoff: 4 }, tickformat: ",d" }),
    yaxis: axis({ title: { text: "ms a step", standoff: 6 }, rangemode: "tozero" }),
  });
}
