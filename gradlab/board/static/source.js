/**
 * Where the page gets its answers: from TensorBoard, or (in a report) from the file itself.
 *
 * @import { Answers, Query } from "../answers"
 * @import { Plotly } from "./chart.js"
 * @typedef {{ request<Name extends keyof Answers>(name: Name, query?: Query): Promise<Answers[Name]>, readonly live:
 *   boolean, loadPlotly(): Promise<Plotly>, traceLink(run: string, window: string, name: string): string | null, }}
 *   Source `live` where there may be new data later; `traceLink` is the address of a trace file, null where it has none
 */

const ARRAYS = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

/** A sentence from the server, or about it. */
export class BoardError extends Error {}

/**
 * Header and arrays of an answer: the inverse of `gradlab.board.wire.pack`.
 * @param {ArrayBuffer} buffer
 * @param {number} [offset] where the answer begins; a multiple of 8
 * @returns {any} one of the packed answers; that it is what answers.d.ts says is not checked
 */
export function unpack(buffer, offset = 0) {
  const length = new DataView(buffer).getUint32(offset, true);
  const header = parseJson(buffer, offset + 4, length);
  /** @type {[string, [keyof ARRAYS, number[], number]][]} */
  const places = Object.entries(header.arrays);
  const arrays = Object.fromEntries(places.map(([name, [kind, shape, at]]) => {
    const size = shape.reduce((a, b) => a * b, 1);
    return [name, Object.assign(new ARRAYS[kind](buffer, offset + 4 + length + at, size), { shape })];
  }));
  return { header, arrays };
}

/** The JSON value in a part of a buffer. @param {ArrayBuffer} buffer @param {number} at @param {number} length */
export function parseJson(buffer, at, length) {
  return JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, at, length)));
}

/** plotly.js, after its script has run. */
export function loadedPlotly() {
  return /** @type {Window & {Plotly: Plotly}} */ (/** @type {unknown} */ (window)).Plotly;
}

/** Answers from the plugin's routes. @implements {Source} */
export class HttpSource {
  live = true;
  /** @type {Promise<Plotly> | null} */
  #plotly = null;
  /** @type {Partial<Record<keyof Answers, Promise<Response>>>} */
  #early;

  /**
   * @param {Partial<Record<keyof Answers, Promise<Response>>>} early requests under way; each is used for one answer
   */
  constructor(early = {}) {
    this.#early = early;
  }

  /**
   * @template {keyof Answers} Name
   * @param {Name} name @param {Query} [query] @returns {Promise<Answers[Name]>}
   */
  async request(name, query = {}) {
    let response;
    try {
      const early = this.#early[name];
      delete this.#early[name];
      response = await (early ?? fetch(`./${name}?${encoded(query)}`));
    } catch {
      throw new BoardError("TensorBoard does not answer. Is it still running?");
    }
    if (!response.ok) throw new BoardError(await problem(response));
    if ((response.headers.get("content-type") || "").includes("json")) return response.json();
    return unpack(await response.arrayBuffer());
  }

  loadPlotly() {
    this.#plotly ??= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = "./static/plotly.min.js";
      script.onload = () => resolve(loadedPlotly());
      script.onerror = () => reject(new BoardError("plotly.js could not be loaded: is the package plotly installed?"));
      document.head.append(script);
    });
    return this.#plotly;
  }

  /** @param {string} run @param {string} window @param {string} name */
  traceLink(run, window, name) {
    return `./trace?${new URLSearchParams({ run, window, name })}`;
  }
}

/** @param {Query} query */
function encoded(query) {
  const found = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") found.append(key, String(one));
    }
  }
  return found;
}

/** @param {Response} response @returns {Promise<string>} */
async function problem(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `TensorBoard answered ${response.status} ${response.statusText}.`;
  }
}
