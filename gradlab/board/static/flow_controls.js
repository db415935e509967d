/**
 * The controls of the flow: which run, metric, sites and colours; and the ends of the colour map, to be typed over.
 *
 * @import { Run } from "../answers"
 * @import { App } from "./app.js"
 * @import { Choice } from "./choice.js"
 * @import { Statistic } from "./heat.js"
 * @import { Scale } from "./metric.js"
 */

import { debounced, el, fillSelect, labelled, select } from "./dom.js";
import { parseMetric, sortMetrics } from "./metric.js";

/** Which share of the values is cut off at each end of the colour map. */
const CUTS = [
  { value: "0", text: "all values" },
  { value: "0.005", text: "0.5 to 99.5 %" },
  { value: "0.02", text: "2 to 98 %" },
  { value: "0.1", text: "10 to 90 %" },
  { value: "fixed", text: "fixed" },
];
const STATISTICS = [
  { value: "high", text: "largest" },
  { value: "mean", text: "mean" },
  { value: "low", text: "smallest" },
];
const ROW_HEIGHTS = [
  { value: "fit", text: "fit to page" },
  { value: "read", text: "readable" },
];

export class FlowControls {
  /** The scale whose ends are in the inputs. @type {Scale | null} */
  #scale = null;

  /** @param {App} app */
  constructor(app) {
    this.app = app;
    this.runs = select([], "", (run) => app.choose({ run }));
    this.metrics = select([], "", (metric) => app.choose({ metric, low: null, high: null }));
    this.others = select([], "", (minus) => app.choose({ minus, low: null, high: null }));
    this.search = el("input", {
      type: "search", placeholder: "blocks.3.* or attn", spellcheck: "false",
      on: { input: debounced(() => app.choose({ match: this.search.value.trim() }), 180) },
    });
    this.cut = select([], "", (cut) => (cut === "fixed" ? this.#fix() : app.choose({ cut, low: null, high: null })));
    this.pixel = select(STATISTICS, "high", (pixel) => app.choose({ pixel: /** @type {Statistic} */ (pixel) }));
    this.rows = select(ROW_HEIGHTS, "fit", (rows) => app.choose({ rows }));
    this.bar = el("div", { class: "bar" },
      labelled("Run", this.runs, "wide"), labelled("Metric", this.metrics, "wide"),
      labelled("Compared with", this.others), labelled("Sites", this.search),
      labelled("Colours", this.cut), labelled("Pixel shows", this.pixel), labelled("Rows", this.rows));
    this.low = this.#input("Lowest value on the colour map");
    this.high = this.#input("Highest value on the colour map");
    this.range = el("div", { class: "range" },
      el("span", { text: "from" }), this.low, el("span", { text: "to" }), this.high);
  }

  /** @param {string} label */
  #input(label) {
    const change = () => this.#fix();
    return el("input", { type: "text", inputmode: "decimal", size: 7, "aria-label": label, on: { change } });
  }

  /** @param {Choice} choice @param {Run} run */
  update(choice, run) {
    this.app.fillRunSelect(this.runs);
    this.runs.title = choice.run;
    const metrics = sortMetrics(Object.keys(run.metrics)).filter((name) => !run.metrics[name].hist);
    const named = metrics.map((value) => ({ value, text: value, group: parseMetric(value).group }));
    fillSelect(this.metrics, named, choice.metric);
    const others = this.app.runs.filter((one) => one.name !== choice.run && choice.metric in one.metrics);
    const options = others.map(({ name }) => ({ value: name, text: name }));
    fillSelect(this.others, [{ value: "", text: "no run" }, ...options], choice.minus);
    this.others.disabled = !others.length;
    if (document.activeElement !== this.search) this.search.value = choice.match;
    const isFixed = choice.low !== null || choice.high !== null;
    fillSelect(this.cut, CUTS, isFixed ? "fixed" : choice.cut);
    this.pixel.value = choice.pixel;
    this.rows.value = choice.rows;
  }

  /** Put the ends of a scale into the inputs, but not where the user is typing. @param {Scale} scale */
  showScale(scale) {
    this.#scale = scale;
    if (document.activeElement !== this.low) this.low.value = inputText(scale.low);
    if (document.activeElement !== this.high) this.high.value = inputText(scale.high);
  }

  /** Take the ends of the colour map from the inputs; what is no range is put back. */
  #fix() {
    const [low, high] = [Number(this.low.value), Number(this.high.value)];
    if (Number.isFinite(low) && Number.isFinite(high) && low < high) this.app.choose({ low, high });
    else if (this.#scale) {
      this.low.value = inputText(this.#scale.low);
      this.high.value = inputText(this.#scale.high);
    }
  }
}

/** A number for an input. @param {number} value */
function inputText(value) {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}
