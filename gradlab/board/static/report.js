/**
 * The page of a report: answers come out of the file that the page itself is in. `html_report.py` writes that file.
 *
 * @import { Answers, Heat, HeatArrays, ScalarArrays, Scalars, Query } from "../answers"
 * @import { Plotly } from "./chart.js"
 * @import { Source } from "./source.js"
 */

import { App } from "./app.js";
import { BoardError, loadedPlotly, parseJson, unpack } from "./source.js";

/** @param {string} name of the run */
export async function open(name) {
  const buffer = await inflated("gl-data");
  const app = new App(new FileSource(buffer), document.body);
  app.stamp.textContent = name;
  await app.start();
}

/** Answers out of a report's own data. @implements {Source} */
class FileSource {
  live = false;
  /** @type {Promise<Plotly> | null} */
  #plotly = null;
  /** @type {{[Name in keyof Answers]: (query: Query) => Answers[Name]}} */
  #answers = {
    index: () => this.#json("index"),
    heat: (query) => this.#heat(query),
    layer: ({ site }) => this.#packed(`layer ${site}`, `There is no site “${site}” in this report.`),
    scalars: ({ tag = [] }) => this.#scalars(tag),
    findings: () => this.#json("findings"),
    jacobian: ({ name = "", step = null }) => this.#jacobian(name, step),
    profile: () => this.#json("profile"),
    health: () => this.#json("health"),
  };

  /** @param {ArrayBuffer} buffer */
  constructor(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    this.buffer = buffer;
    this.start = 8 + length;
    /**
     * For each answer where it begins, counted from `start`, and its bytes.
     * @type {Record<string, [number, number]>}
     */
    this.places = parseJson(buffer, 8, length);
  }

  /**
   * @template {keyof Answers} Name
   * @param {Name} name @param {Query} [query] @returns {Promise<Answers[Name]>}
   */
  async request(name, query = {}) {
    return this.#answers[name](query);
  }

  loadPlotly() {
    this.#plotly ??= inflated("gl-plotly").then((buffer) => {
      const script = document.createElement("script");
      script.textContent = new TextDecoder().decode(buffer);
      document.head.append(script);
      return loadedPlotly();
    });
    return this.#plotly;
  }

  traceLink() {
    return null;
  }

  /** @param {string} key */
  #json(key) {
    const [at, length] = this.#place(key, "This report does not hold that.");
    const found = parseJson(this.buffer, this.start + at, length);
    if (found.error) throw new BoardError(found.error);
    return found;
  }

  /**
   * An answer with arrays, or the sentence that says why there is none.
   * @param {string} key @param {string} otherwise
   */
  #packed(key, otherwise) {
    const [at] = this.#place(key, otherwise);
    const isJson = new DataView(this.buffer).getUint8(this.start + at) === "{".charCodeAt(0);
    return isJson ? this.#json(key) : unpack(this.buffer, this.start + at);
  }

  /** @param {string} key @param {string} otherwise */
  #place(key, otherwise) {
    const place = this.places[key];
    if (!place) throw new BoardError(otherwise);
    return place;
  }

  /** The columns of a heat map between two steps. @param {Query} query @returns {Heat} */
  #heat({ metric, start = null, end = null }) {
    /** @type {Heat} */
    const whole = this.#packed(`heat ${metric}`, `There is no metric “${metric}” in this report.`);
    if (start === null && end === null) return whole;
    const { first, last } = whole.arrays;
    const [from, to] = [start ?? -Infinity, end ?? Infinity];
    const keep = Array.from(first.keys()).filter((column) => last[column] >= from && first[column] <= to);
    const entries = Object.entries(whole.arrays).map(([name, array]) => [name, keptColumns(array, keep)]);
    return { header: whole.header, arrays: /** @type {HeatArrays} */ (Object.fromEntries(entries)) };
  }

  /** @param {string[]} tags @returns {Scalars} */
  #scalars(tags) {
    /** @type {ScalarArrays} */
    const arrays = {};
    tags.forEach((tag, i) => {
      /** @type {Scalars} */
      const one = this.#packed(`scalar ${tag}`, `There is no scalar “${tag}” in this report.`);
      arrays[`${i}.steps`] = one.arrays["0.steps"];
      arrays[`${i}.values`] = one.arrays["0.values"];
    });
    return { header: { tags }, arrays };
  }

  /** The block at the step nearest to `step`, or at the last one. @param {string} name @param {number | null} step */
  #jacobian(name, step) {
    const prefix = `jacobian ${name} `;
    const keys = Object.keys(this.places).filter((key) => key.startsWith(prefix));
    const steps = keys.map((key) => Number(key.slice(prefix.length))).filter(Number.isFinite);
    if (!steps.length) throw new BoardError(`There is no Jacobian “${name}” in this report.`);
    const nearest = (/** @type {number} */ to) => steps.reduce((a, b) => (Math.abs(b - to) < Math.abs(a - to) ? b : a));
    return this.#packed(prefix + (step === null ? Math.max(...steps) : nearest(step)), "");
  }
}

/**
 * Some columns of an array, [columns] or [sites, columns].
 * @param {HeatArrays["first" | "mean"] | NonNullable<HeatArrays["bad"]>} array @param {number[]} keep
 */
function keptColumns(array, keep) {
  const numColumns = array.shape[array.shape.length - 1];
  const numRows = array.length / numColumns;
  const values = Array.from({ length: numRows }, (_, row) => keep.map((column) => array[row * numColumns + column]));
  const Kind = /** @type {Float64ArrayConstructor} */ (array.constructor);
  return Object.assign(Kind.from(values.flat()), { shape: [...array.shape.slice(0, -1), keep.length] });
}

/** The bytes that a script element holds as base64 of gzip. @param {string} id */
async function inflated(id) {
  const text = document.getElementById(id)?.textContent || "";
  const raw = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}
