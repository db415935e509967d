/**
 * Where the page gets its answers: TensorBoard, or (in a report) the file itself.
 * @typedef {{header: any, arrays: Record<string, any>}} Packed
 * @typedef {{ask(name: string, params?: Record<string, any>): Promise<any>, readonly live: boolean,
 *   loadPlotly(): Promise<any>, traceLink(run: string, window: string, name: string): string | null}} Source
 */

const ARRAYS = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };

/** A sentence from the server, or about it. */
export class BoardError extends Error {}

/**
 * Header and arrays of an answer: the inverse of `gradlab.board.wire.pack`.
 * @param {ArrayBuffer} buffer
 * @param {number} [offset] where the answer begins; a multiple of 8
 * @returns {Packed}
 */
export function unpack(buffer, offset = 0) {
  const length = new DataView(buffer).getUint32(offset, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, offset + 4, length)));
  /** @type {Record<string, any>} */
  const arrays = {};
  for (const [name, [kind, shape, at]] of Object.entries(/** @type {Record<string, [keyof ARRAYS, number[], number]>} */ (header.arrays))) {
    const size = shape.reduce((a, b) => a * b, 1);
    arrays[name] = new ARRAYS[kind](buffer, offset + 4 + length + at, size);
    arrays[name].shape = shape;
  }
  return { header, arrays };
}

/** Answers from the plugin's routes. @implements {Source} */
export class HttpSource {
  live = true;
  /** @type {Promise<any> | null} */
  #plotly = null;
  /** @type {Record<string, Promise<Response>>} */
  #early;

  /** @param {Record<string, Promise<Response>>} early requests that are under way already; each answers one question once */
  constructor(early = {}) {
    this.#early = early;
  }

  /** @param {string} name @param {Record<string, any>} [params] */
  async ask(name, params = {}) {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(params)) {
      for (const one of Array.isArray(value) ? value : [value]) {
        if (one !== null && one !== undefined && one !== "") query.append(key, String(one));
      }
    }
    let response;
    try {
      const early = this.#early[name];
      delete this.#early[name];
      response = await (early ?? fetch(`./${name}?${query}`));
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
      script.onload = () => resolve(/** @type {any} */ (window).Plotly);
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

/** @param {Response} response */
async function problem(response) {
  try {
    return (await response.json()).error;
  } catch {
    return `TensorBoard answered ${response.status} ${response.statusText}.`;
  }
}
