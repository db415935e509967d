/** A report: the page, answered out of the file that it stands in. */

import { App } from "./app.js";
import { BoardError, unpack } from "./source.js";

/** @param {string} name of the run */
export async function open(name) {
  const buffer = await inflated("gl-data");
  const app = new App(new FileSource(buffer), document.body);
  app.stamp.textContent = name;
  await app.start();
}

/** Answers out of a report's own data. @implements {import("./source.js").Source} */
class FileSource {
  live = false;
  /** @type {Promise<any> | null} */
  #plotly = null;

  /** @param {ArrayBuffer} buffer */
  constructor(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    this.buffer = buffer;
    this.start = 8 + length;
    /** @type {Record<string, [number, number]>} */
    this.places = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  }

  /** @param {string} name @param {Record<string, any>} [params] */
  async ask(name, params = {}) {
    if (name === "heat") return this.#heat(params);
    if (name === "layer") return this.#packed(`layer ${params.site}`, `There is no site “${params.site}” in this report.`);
    if (name === "scalars") return this.#scalars(params.tag);
    if (name === "jacobian") return this.#jacobian(params.name, params.step);
    return this.#json(name);
  }

  loadPlotly() {
    this.#plotly ??= inflated("gl-plotly").then((buffer) => {
      const script = document.createElement("script");
      script.textContent = new TextDecoder().decode(buffer);
      document.head.append(script);
      return /** @type {any} */ (window).Plotly;
    });
    return this.#plotly;
  }

  traceLink() {
    return null;
  }

  /** @param {string} key */
  #json(key) {
    const [at, length] = this.#place(key, "This report does not hold that.");
    const found = JSON.parse(new TextDecoder().decode(new Uint8Array(this.buffer, this.start + at, length)));
    if (found.error) throw new BoardError(found.error);
    return found;
  }

  /** @param {string} key @param {string} otherwise */
  #packed(key, otherwise) {
    const [at] = this.#place(key, otherwise);
    return new DataView(this.buffer).getUint8(this.start + at) === 123 ? this.#json(key) : unpack(this.buffer, this.start + at);
  }

  /** @param {string} key @param {string} otherwise */
  #place(key, otherwise) {
    const place = this.places[key];
    if (!place) throw new BoardError(otherwise);
    return place;
  }

  /** The part of a picture between two steps. @param {Record<string, any>} params */
  #heat({ metric, start, end }) {
    const whole = this.#packed(`heat ${metric}`, `There is no metric “${metric}” in this report.`);
    if ((start ?? null) === null && (end ?? null) === null) return whole;
    const { first, last } = whole.arrays;
    const keep = Array.from(first.keys()).filter((/** @type {number} */ c) => last[c] >= (start ?? -Infinity) && first[c] <= (end ?? Infinity));
    /** @type {Record<string, any>} */
    const arrays = {};
    for (const [name, array] of Object.entries(whole.arrays)) {
      const rows = array.shape.length === 2 ? array.shape[0] : 1;
      const part = new array.constructor(rows * keep.length);
      for (let row = 0; row < rows; row += 1) keep.forEach((c, i) => (part[row * keep.length + i] = array[row * first.length + c]));
      part.shape = array.shape.length === 2 ? [rows, keep.length] : [keep.length];
      arrays[name] = part;
    }
    return { header: whole.header, arrays };
  }

  /** @param {string[]} tags */
  #scalars(tags) {
    /** @type {Record<string, any>} */
    const arrays = {};
    tags.forEach((tag, i) => {
      const one = this.#packed(`scalar ${tag}`, `There is no scalar “${tag}” in this report.`);
      arrays[`${i}.steps`] = one.arrays["0.steps"];
      arrays[`${i}.values`] = one.arrays["0.values"];
    });
    return { header: { tags }, arrays };
  }

  /** @param {string} name @param {number | null} step */
  #jacobian(name, step) {
    const steps = Object.keys(this.places).filter((key) => key.startsWith(`jacobian ${name} `)).map((key) => Number(key.slice(`jacobian ${name} `.length))).filter(Number.isFinite);
    if (!steps.length) throw new BoardError(`There is no Jacobian “${name}” in this report.`);
    const near = (step ?? null) === null ? Math.max(...steps) : steps.reduce((a, b) => (Math.abs(b - Number(step)) < Math.abs(a - Number(step)) ? b : a));
    return this.#packed(`jacobian ${name} ${near}`, "");
  }
}

/** The bytes that a script element holds as base64 of gzip. @param {string} id @returns {Promise<ArrayBuffer>} */
async function inflated(id) {
  const text = /** @type {HTMLElement} */ (document.getElementById(id)).textContent || "";
  const raw = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}
