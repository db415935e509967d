/** The flow: a metric of all sites over all steps, with findings above it and the numbers of a cell beside it. */

import { el, empty, fillSelect, labelled, put, select, settled, sized, token } from "./dom.js";
import { findingsList, severityOf, SEVERITIES } from "./findings.js";
import { count, number, step as stepText, withUnit } from "./format.js";
import { HeatMap, table } from "./heat.js";
import { legend } from "./legend.js";
import { makeScale, parts, sorted } from "./metric.js";
import { arrange, matcher, within } from "./sites.js";
import { drawLine, drawStepAxis } from "./stepaxis.js";

const GUTTER = 228;
const MARKS = 24;
const LOSS = 40;
const CUTS = [
  ["0", "all values"],
  ["0.005", "0.5 to 99.5 %"],
  ["0.02", "2 to 98 %"],
  ["0.1", "10 to 90 %"],
];
const MOST_ROWS = 4000;

export class FlowView {
  /** @type {Set<string>} */
  folded = new Set();
  #asked = 0;
  #drag = -1;
  /** The cell under the keys: row and step. @type {{row: number, step: number} | null} */
  #cursor = null;

  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.#build();
  }

  /** @param {import("./app.js").Choice} choice @param {any} run */
  update(choice, run) {
    this.choice = choice;
    this.info = run;
    this.#controls();
    if (!choice.metric) {
      put(this.stage, empty("Nothing to paint in this run", "It has no metric over sites: taps of gradlab.watch bring them. Jacobians and profiles may be in the other views."));
      return;
    }
    this.#findings();
    this.#load();
  }

  // What stands on the page

  #build() {
    const app = this.app;
    this.runSelect = select([], "", (run) => app.choose({ run }));
    this.metricSelect = select([], "", (metric) => app.choose({ metric, low: null, high: null }));
    this.minusSelect = select([], "", (minus) => app.choose({ minus, low: null, high: null }));
    this.search = el("input", { type: "search", placeholder: "blocks.3.* or attn", spellcheck: "false", on: { input: settled(() => app.choose({ match: this.search.value.trim() }), 180) } });
    this.cut = select([], "", (cut) => (cut === "fixed" ? this.#fix() : app.choose({ cut, low: null, high: null })));
    this.low = el("input", { type: "text", inputmode: "decimal", size: 7, "aria-label": "Lowest value on the colour map", on: { change: () => this.#fix() } });
    this.high = el("input", { type: "text", inputmode: "decimal", size: 7, "aria-label": "Highest value on the colour map", on: { change: () => this.#fix() } });
    this.pixel = select([{ value: "high", text: "largest" }, { value: "mean", text: "mean" }, { value: "low", text: "smallest" }], "high", (pixel) => app.choose({ pixel }));
    this.rowsSelect = select([{ value: "fit", text: "fit to page" }, { value: "read", text: "readable" }], "fit", (rows) => app.choose({ rows }));
    this.foldButton = el("button", { class: "quiet", text: "Fold all", on: { click: () => this.#foldAll() } });
    this.bar = el("div", { class: "bar" },
      labelled("Run", this.runSelect, "wide"), labelled("Metric", this.metricSelect, "wide"), labelled("Compared with", this.minusSelect),
      labelled("Sites", this.search), labelled("Colours", this.cut), labelled("Pixel shows", this.pixel), labelled("Rows", this.rowsSelect));
    this.canvas = el("canvas", { class: "heat", tabindex: 0, role: "img" });
    this.heat = new HeatMap(this.canvas);
    this.labels = el("canvas", { class: "labels", "aria-hidden": "true", on: { click: (/** @type {any} */ e) => this.#foldAt(e.offsetY) } });
    this.marks = el("div", { class: "marks", role: "list", "aria-label": "Findings over steps" });
    this.loss = el("canvas", { class: "loss", "aria-hidden": "true" });
    this.axis = el("canvas", { class: "axis", "aria-hidden": "true" });
    this.vline = el("div", { class: "cross v" });
    this.hline = el("div", { class: "cross h" });
    this.pin = el("div", { class: "pin" });
    this.span = el("div", { class: "span" });
    this.tip = el("div", { class: "tip", role: "presentation" });
    this.said = el("div", { class: "said", "aria-live": "polite" });
    this.lossName = el("div", { class: "loss-name" });
    this.plot = el("div", { class: "plot" }, this.canvas, this.vline, this.hline, this.pin, this.span);
    this.scroll = el("div", { class: "scroll" }, el("div", { class: "heat-line" }, this.labels, this.plot));
    this.head = el("div", { class: "flow-head" });
    this.foot = el("div", { class: "flow-foot" });
    this.stage = el("div", { class: "stage" });
    this.picture = [
      this.head,
      el("div", { class: "line" }, el("div", { class: "strip-name", text: "findings" }), this.marks),
      el("div", { class: "line loss-line" }, this.lossName, this.loss),
      this.scroll,
      el("div", { class: "line" }, el("div", { class: "strip-name", text: "step" }), this.axis),
      this.foot,
    ];
    this.side = el("aside", { class: "side", "aria-label": "Numbers of a cell, findings" });
    this.root = el("div", { class: "flow" }, this.bar, el("div", { class: "flow-body" }, this.stage, this.side), this.tip, this.said);
    this.#listen();
  }

  #listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ e) => this.#hover(e.offsetX, e.offsetY, e.clientX, e.clientY));
    canvas.addEventListener("pointerleave", () => this.#leave());
    canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ e) => {
      this.#drag = e.offsetX;
      canvas.setPointerCapture(e.pointerId);
    });
    canvas.addEventListener("pointerup", (/** @type {PointerEvent} */ e) => this.#drop(e.offsetX, e.offsetY));
    canvas.addEventListener("dblclick", () => this.app.choose({ start: null, end: null }));
    canvas.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => this.#key(e));
    canvas.addEventListener("blur", () => this.#leave());
  }

  #controls() {
    const { index } = this.app;
    const { choice, info } = this;
    const names = index.runs.map((/** @type {any} */ one) => one.name);
    fillSelect(this.runSelect, names.map((/** @type {string} */ value) => ({ value, text: value })), choice.run);
    this.runSelect.title = choice.run;
    const metrics = sorted(Object.keys(info.metrics)).filter((name) => !info.metrics[name].hist);
    fillSelect(this.metricSelect, metrics.map((value) => ({ value, text: value, group: parts(value).group })), choice.metric);
    const others = names.filter((/** @type {string} */ name) => name !== choice.run && choice.metric in (this.app.run(name)?.metrics || {}));
    fillSelect(this.minusSelect, [{ value: "", text: "no run" }, ...others.map((/** @type {string} */ value) => ({ value, text: value }))], choice.minus);
    this.minusSelect.disabled = !others.length;
    if (document.activeElement !== this.search) this.search.value = choice.match;
    const fixed = choice.low !== null || choice.high !== null;
    fillSelect(this.cut, [...CUTS.map(([value, text]) => ({ value, text })), { value: "fixed", text: "fixed" }], fixed ? "fixed" : choice.cut);
    this.pixel.value = choice.pixel;
    this.rowsSelect.value = choice.rows;
  }

  // What is shown

  async #load() {
    const { choice, app } = this;
    const asked = (this.#asked += 1);
    const width = this.#width();
    const ratio = window.devicePixelRatio || 1;
    const metric = this.info.metrics[choice.metric];
    const many = app.sites(metric).length > MOST_ROWS;
    const params = { run: choice.run, metric: choice.metric, minus: choice.minus, columns: Math.round(width * ratio), start: choice.start, end: choice.end, match: many ? choice.match : null };
    let packed;
    try {
      packed = await app.ask("heat", params);
    } catch (error) {
      if (asked === this.#asked) put(this.stage, empty("This picture could not be made", /** @type {Error} */ (error).message));
      return;
    }
    if (asked !== this.#asked) return;
    const fresh = this.packed !== packed;
    this.packed = packed;
    if (!packed.arrays.first.length) {
      put(this.stage, empty("No steps here", choice.start !== null || choice.end !== null
        ? "Nothing was logged between these steps." : `${choice.metric} has no values yet; it is looked at again every few seconds.`,
        choice.start !== null && el("button", { text: "Show all steps", on: { click: () => app.choose({ start: null, end: null }) } })));
      return;
    }
    if (this.stage.firstChild !== this.head) put(this.stage, ...this.picture);
    if (fresh) {
      this.heat.data = table(packed, choice.start, choice.end);
      this.heat.changed();
    }
    this.#paint();
    this.#strip();
    this.#inspect();
  }

  #width() {
    return Math.max(200, (this.stage.clientWidth || this.app.main.clientWidth - 304) - GUTTER - 36);
  }

  #paint() {
    const { choice, heat, packed } = this;
    const theme = this.app.host.theme;
    const width = this.#width();
    const { rows, blocks } = arrange(packed.header.sites, matcher(choice.match), this.folded);
    heat.rows = rows;
    heat.blocks = blocks;
    heat.scale = makeScale(choice.metric, packed.header.quantiles, { cut: Number(choice.cut), low: choice.low, high: choice.high, unit: packed.header.unit, difference: packed.header.scale });
    const room = Math.max(160, this.app.main.getBoundingClientRect().bottom - this.stage.getBoundingClientRect().top - this.#around());
    const height = heat.layout(width, room, choice.rows === "read" ? 15 : 0, 44);
    this.scroll.style.maxHeight = `${room}px`;
    heat.draw(theme, /** @type {any} */ (choice.pixel));
    this.#labels(height);
    this.#head();
    const data = /** @type {any} */ (heat.data);
    drawStepAxis(this.axis, width, data.from, data.to);
    this.marks.style.width = `${width}px`;
    this.#marks();
    put(this.foot, ...this.#foot(theme));
    this.#pin();
    const what = `${choice.metric} of ${count(rows.length, "row")}, steps ${stepText(data.from)} to ${stepText(data.to - 1)}`;
    this.canvas.setAttribute("aria-label", `${what}. Arrow keys move from cell to cell, Enter opens the site, plus and minus zoom, space folds a block.`);
  }

  /** What stands above and below the picture, in pixels. */
  #around() {
    return 34 + MARKS + (this.hasLoss ? LOSS + 6 : 0) + 30 + 58 + 16;
  }

  #head() {
    const { choice, packed, heat } = this;
    const { header } = packed;
    const data = /** @type {any} */ (heat.data);
    const name = parts(choice.metric);
    const subject = header.minus ? `${header.scale} of ${choice.run} to ${header.minus}` : name.meaning;
    const shown = heat.rows.reduce((sum, row) => sum + row.sites.length, 0);
    const bits = [
      shown < header.sites.length ? `${shown} of ${count(header.sites.length, "site")}` : count(header.num_sites, "site"),
      `steps ${stepText(data.from)} – ${stepText(data.to - 1)}`,
    ];
    if (header.block > 1) bits.push(`blocks of ${header.block} logged steps`);
    if (header.sampled) bits.push(`a sample of the steps: TensorBoard keeps ${count(this.app.index.kept_steps, "step")}`);
    if (header.sites_a_row > 1) bits.push(`${number(header.sites_a_row)} sites a row; search to see fewer`);
    const zoomed = choice.start !== null || choice.end !== null;
    put(this.head,
      el("div", { class: "flow-title" }, el("code", { text: choice.metric }), el("span", { text: subject })),
      el("div", { class: "flow-facts", text: bits.join(" · ") }),
      zoomed && el("button", { class: "quiet", text: "Show all steps", on: { click: () => this.app.choose({ start: null, end: null }) } }),
      this.heat.blocks.length > 1 && this.foldButton);
    this.foldButton.textContent = this.heat.blocks.some((one) => !one.folded && one.count > 1) ? "Fold all" : "Unfold all";
    if (!shown) put(this.head, el("div", { class: "flow-title", text: `No site fits “${choice.match}”.` }), el("button", { class: "quiet", text: "Show all sites", on: { click: () => this.app.choose({ match: "" }) } }));
  }

  /** @param {"light" | "dark"} theme */
  #foot(theme) {
    const { heat, choice, packed } = this;
    const scale = /** @type {import("./metric.js").Scale} */ (heat.scale);
    if (document.activeElement !== this.low) this.low.value = plain(scale.low);
    if (document.activeElement !== this.high) this.high.value = plain(scale.high);
    const title = packed.header.scale || choice.metric + (packed.header.unit === "fraction" ? "" : packed.header.unit ? ` in ${packed.header.unit}` : "");
    return [
      legend(scale, theme, { title }),
      el("div", { class: "range" }, el("span", { text: "from" }), this.low, el("span", { text: "to" }), this.high),
    ];
  }

  #labels(height) {
    const { heat } = this;
    const context = sized(this.labels, GUTTER, height);
    const [font, muted, text, rule] = [token("--font"), token("--muted"), token("--text"), token("--line-strong")];
    const ratio = heat.ratio;
    context.textBaseline = "middle";
    let free = -Infinity;
    const alone = heat.blocks.length === heat.rows.length;
    heat.blocks.forEach((block) => {
      const top = heat.tops[block.first] / ratio;
      const bottom = heat.bottom(block.first + block.count - 1) / ratio;
      const middle = (top + bottom) / 2;
      if (!alone && bottom - top > 3 && block.count > 1) {
        context.fillStyle = rule;
        context.fillRect(94, top + 1, 1.5, bottom - top - 2);
      }
      const many = heat.rows[block.first].sites.length > 1 || block.count > 1;
      const at = Math.max(top + 6, Math.min(middle, top + 9));
      const row = (bottom - top) / block.count;
      if (!alone && bottom - top >= 4 && at - free >= 12 && (block.count > 1 || block.folded)) {
        context.font = `600 11px ${font}`;
        context.fillStyle = text;
        const y = bottom - top < 18 ? middle : at;
        context.fillText(clip(context, block.name, 74), 16, y);
        if (many) triangle(context, 6, y, block.folded, muted);
        free = y;
      }
      context.font = `11px ${font}`;
      for (let i = block.first; i < block.first + block.count; i += 1) {
        const y = (heat.tops[i] + heat.bottom(i)) / 2 / ratio;
        const every = Math.max(1, Math.ceil(12 / row));
        const whole = block.count === 1 && !block.folded;
        if (!whole && (row < 5 || (i - block.first) % every)) continue;
        context.fillStyle = muted;
        const name = block.folded ? count(heat.rows[i].sites.length, "site") : whole ? heat.rows[i].name : within(heat.rows[i].name, block.name);
        if (whole && y - free < 12) continue;
        if (whole) free = y;
        const room = whole ? GUTTER - 24 : GUTTER - 112;
        context.fillText(clip(context, name, room), whole ? 16 : 102, y);
      }
    });
  }

  /** @param {number} y */
  #foldAt(y) {
    const row = this.heat.rowAt(y);
    if (row < 0) return;
    this.#fold(this.heat.blocks[this.heat.rows[row].block].name);
  }

  /** @param {string} block */
  #fold(block) {
    if (!this.folded.delete(block)) this.folded.add(block);
    this.#paint();
  }

  #foldAll() {
    const open = this.heat.blocks.some((one) => !one.folded && one.count > 1);
    this.folded = new Set(open ? arrange(this.packed.header.sites, () => true, new Set()).blocks.filter((one) => one.count > 1).map((one) => one.name) : []);
    this.#paint();
  }

  // The strips above

  async #strip() {
    const tag = lossTag(this.info.scalars);
    const before = this.hasLoss;
    this.hasLoss = Boolean(tag);
    if (before !== this.hasLoss) this.#paint();
    this.lossName.parentElement?.classList.toggle("gone", !tag);
    if (!tag) return;
    const { choice, heat } = this;
    const found = await this.app.ask("scalars", { run: choice.run, tag: [tag], columns: 1000 }).catch(() => null);
    if (!found || !heat.data || this.choice !== choice) return;
    const [steps, values] = [found.arrays["0.steps"], found.arrays["0.values"]];
    const log = spreads(values);
    drawLine(this.loss, this.#width(), LOSS, steps, values, heat.data.from, heat.data.to, token("--accent"), log);
    put(this.lossName, el("span", { text: log ? `${tag} (log)` : tag }), el("b", { text: number(values[values.length - 1]) }));
  }

  async #findings() {
    const { choice } = this;
    const found = await this.app.ask("findings", { run: choice.run }).catch((error) => ({ findings: [], broken: 0, error: error.message }));
    if (this.choice.run !== choice.run) return;
    this.found = found;
    this.#marks();
    this.#inspect();
  }

  #marks() {
    const { heat } = this;
    if (!heat.data) return;
    const width = this.#width();
    const nodes = [];
    for (const { step, sites } of heat.badColumns()) {
      nodes.push(el("div", { class: "tick", style: { left: `${heat.x(step + 0.5)}px` }, title: `step ${stepText(step)}: not finite in ${count(sites, "site")}` }));
    }
    const groups = new Map();
    for (const one of this.found?.findings || []) {
      const x = heat.x(one.step + 0.5);
      if (x < 0 || x > width) continue;
      const place = Math.round(x / 12);
      if (!groups.has(place)) groups.set(place, []);
      groups.get(place).push(one);
    }
    for (const group of groups.values()) {
      const worst = group.reduce((/** @type {any} */ a, /** @type {any} */ b) => (SEVERITIES.indexOf(severityOf(b)) > SEVERITIES.indexOf(severityOf(a)) ? b : a));
      const more = group.length > 1 ? ` (and ${group.length - 1} more nearby)` : "";
      nodes.push(el("button", {
        class: `mark ${severityOf(worst)}`, role: "listitem", style: { left: `${heat.x(worst.step + 0.5)}px` },
        "aria-label": `${severityOf(worst)} at step ${worst.step}: ${worst.message}${more}`, title: `step ${stepText(worst.step)}: ${worst.message}${more}`,
        on: { click: () => this.#jump(worst) },
      }));
    }
    put(this.marks, ...nodes);
  }

  /** Go to the place of a finding. @param {any} finding */
  #jump(finding) {
    const block = arrange([finding.site || ""], () => true, new Set()).blocks[0]?.name;
    if (block) this.folded.delete(block);
    const metrics = Object.keys(finding.evidence || {}).filter((name) => name in this.info.metrics);
    const change = { step: finding.step, site: finding.site || this.choice.site };
    const metric = metrics[0] || this.choice.metric;
    const data = /** @type {any} */ (this.heat.data);
    const outside = finding.step < data.from || finding.step >= data.to;
    this.app.choose({ ...change, metric, match: "", ...(outside ? { start: null, end: null } : {}) });
  }

  // The pointer and the keys

  /** @param {number} x @param {number} y @param {number} clientX @param {number} clientY */
  #hover(x, y, clientX, clientY) {
    const { heat } = this;
    if (!heat.data) return;
    if (this.#drag >= 0 && Math.abs(x - this.#drag) > 4) {
      Object.assign(this.span.style, { display: "block", left: `${Math.min(x, this.#drag)}px`, width: `${Math.abs(x - this.#drag)}px` });
    }
    const row = heat.rowAt(y);
    if (row < 0) return this.#leave();
    const step = heat.stepAt(x);
    this.#cross(row, x);
    this.#tell(row, step);
    this.tip.style.display = "block";
    const box = this.root.getBoundingClientRect();
    const [left, top] = [clientX - box.left, clientY - box.top];
    const flip = left > box.width * 0.55;
    this.tip.style.transform = `translate(${Math.round(flip ? left - this.tip.offsetWidth - 14 : left + 14)}px, ${Math.round(Math.min(top + 14, box.height - this.tip.offsetHeight - 6))}px)`;
    return undefined;
  }

  /** @param {number} row @param {number} x */
  #cross(row, x) {
    const { heat } = this;
    const [top, bottom] = [heat.tops[row] / heat.ratio, heat.bottom(row) / heat.ratio];
    Object.assign(this.hline.style, { display: "block", top: `${top}px`, height: `${Math.max(1, bottom - top)}px` });
    Object.assign(this.vline.style, { display: "block", left: `${x}px` });
  }

  /** Put what a cell holds into the tip. @param {number} row @param {number} step */
  #tell(row, step) {
    const { heat, packed } = this;
    const unit = packed.header.unit;
    const { cell, column } = heat.cell(row, step);
    const data = /** @type {any} */ (heat.data);
    const name = heat.rows[row].folded ? `${heat.rows[row].name} (${count(heat.rows[row].sites.length, "site")})` : heat.rows[row].name;
    const [first, last] = cell ? [cell.first, cell.last] : [data.first[column], data.last[column]];
    const lines = [el("div", { class: "tip-site", text: name }), el("div", { class: "tip-step", text: first === last ? `step ${stepText(first)}` : `steps ${stepText(first)} – ${stepText(last)}` })];
    if (cell && heat.rows[row].folded) lines.push(el("div", { class: "tip-step", text: cell.site }));
    lines.push(el("div", { class: "tip-value", text: cell ? value(cell, unit, first === last, packed.header.scale) : "no value" }));
    if (cell && first !== last && !Number.isNaN(cell.mean)) lines.push(el("div", { class: "tip-step", text: `mean ${withUnit(cell.mean, unit)}` }));
    if (cell && cell.bad) lines.push(el("div", { class: "tip-bad", text: first === last ? "not finite" : `not finite in ${count(cell.bad, "step")}` }));
    put(this.tip, ...lines);
    return lines.map((line) => line.textContent).join(", ");
  }

  #leave() {
    for (const one of [this.tip, this.vline, this.hline]) one.style.display = "none";
  }

  /** @param {number} x @param {number} y */
  #drop(x, y) {
    const from = this.#drag;
    this.#drag = -1;
    this.span.style.display = "none";
    const { heat } = this;
    if (from < 0 || !heat.data) return;
    if (Math.abs(x - from) > 6) {
      const [a, b] = [Math.floor(heat.stepAt(Math.min(x, from))), Math.ceil(heat.stepAt(Math.max(x, from)))];
      this.app.choose({ start: Math.max(heat.data.from, a), end: Math.min(heat.data.to - 1, b) });
      return;
    }
    const row = heat.rowAt(y);
    if (row >= 0) this.#select(row, heat.stepAt(x));
  }

  /** @param {number} row @param {number} step */
  #select(row, step) {
    const { heat } = this;
    const { cell, column } = heat.cell(row, step);
    const data = /** @type {any} */ (heat.data);
    this.app.choose({ site: cell ? cell.site : data.sites[heat.rows[row].sites[0]], step: cell ? cell.last : data.last[column] });
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const { heat } = this;
    if (!heat.data) return;
    const data = heat.data;
    const at = this.#cursor || { row: Math.max(0, heat.rows.findIndex((row) => row.name === this.choice.site)), step: this.choice.step ?? data.from };
    let column = heat.columnAt(at.step);
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e9], End: [0, 1e9] };
    const by = /** @type {any} */ (moves)[event.key];
    if (by) {
      const row = Math.min(heat.rows.length - 1, Math.max(0, at.row + by[0]));
      column = Math.min(data.columns - 1, Math.max(0, column + by[1] * (event.shiftKey ? 10 : 1)));
      this.#cursor = { row, step: data.first[column] };
      const box = this.canvas.getBoundingClientRect();
      const [x, y] = [heat.x(data.first[column] + 0.5), (heat.tops[row] + heat.bottom(row)) / 2 / heat.ratio];
      this.#hover(x, y, box.left + x, box.top + y);
      this.said.textContent = this.#tell(row, data.first[column]);
    } else if (event.key === "Enter") {
      this.#select(at.row, at.step);
      this.app.choose({ view: "layer" });
    } else if (event.key === " ") this.#fold(heat.blocks[heat.rows[at.row].block].name);
    else if (event.key === "+" || event.key === "-") this.#zoom(at.step, event.key === "+" ? 0.5 : 2);
    else if (event.key === "Escape") this.app.choose({ start: null, end: null, step: null, site: "" });
    else return;
    event.preventDefault();
  }

  /** @param {number} around @param {number} by */
  #zoom(around, by) {
    const { from, to } = /** @type {any} */ (this.heat.data);
    const half = Math.max(4, ((to - from) * by) / 2);
    const last = this.packed.header.last_step;
    const [start, end] = [Math.floor(Math.max(0, around - half)), Math.ceil(Math.min(last, around + half))];
    this.app.choose(start <= 0 && end >= last ? { start: null, end: null } : { start, end });
  }

  /** The user's own limits of the colours. */
  #fix() {
    const [low, high] = [Number(this.low.value), Number(this.high.value)];
    if (Number.isFinite(low) && Number.isFinite(high) && low < high) this.app.choose({ low, high });
    else {
      this.low.value = plain(/** @type {any} */ (this.heat.scale).low);
      this.high.value = plain(/** @type {any} */ (this.heat.scale).high);
    }
  }

  // The numbers of a cell

  #pin() {
    const { heat, choice } = this;
    const row = heat.rows.findIndex((one) => one.sites.some((i) => /** @type {any} */ (heat.data).sites[i] === choice.site));
    const data = /** @type {any} */ (heat.data);
    if (row < 0 || choice.step === null || choice.step < data.from || choice.step >= data.to) {
      this.pin.style.display = "none";
      return;
    }
    const [top, bottom] = [heat.tops[row] / heat.ratio, heat.bottom(row) / heat.ratio];
    Object.assign(this.pin.style, { display: "block", left: `${heat.x(choice.step + 0.5)}px`, top: `${(top + bottom) / 2}px` });
    if (choice.rows === "read") this.pin.scrollIntoView({ block: "nearest" });
  }

  async #inspect() {
    const { choice } = this;
    const nodes = [];
    if (choice.site && choice.step !== null) {
      if (this.side.querySelector(".site-name")?.textContent !== choice.site) {
        put(this.side, el("section", {}, el("h2", { class: "site-name", text: choice.site }), el("p", { class: "hint", text: "Reading…" })), findingsList(this.found, (one) => this.#jump(one)));
      }
      const found = await this.app.ask("layer", { run: choice.run, site: choice.site, columns: 600, hist: 0 }).catch(() => null);
      if (this.choice !== choice) return;
      nodes.push(found ? this.#numbers(found) : el("section", {}, el("h2", { text: choice.site }), el("p", { class: "hint", text: "This site is not in this run." })));
    } else {
      nodes.push(el("section", {}, el("h2", { text: "Numbers" }), el("p", { class: "hint", text: "Click a cell to see every number of its site at that step. Drag to zoom, double click to see all steps." })));
    }
    nodes.push(findingsList(this.found, (one) => this.#jump(one)));
    put(this.side, ...nodes);
  }

  /** @param {import("./source.js").Packed} found */
  #numbers(found) {
    const { choice } = this;
    const step = /** @type {number} */ (choice.step);
    const rows = found.header.metrics.flatMap((/** @type {any} */ one, /** @type {number} */ i) => (one.edges.length ? [] : [this.#numberRow(one, i, found.arrays, step)]));
    return el("section", {},
      el("h2", { class: "site-name", text: choice.site }),
      el("div", { class: "sub", text: `step ${stepText(step)} · ${choice.run}` }),
      el("table", { class: "numbers" }, el("tbody", {}, ...rows)),
      el("button", { class: "primary", text: "Open this site", on: { click: () => this.app.choose({ view: "layer" }) } }));
  }

  /** @param {any} metric @param {number} i @param {Record<string, any>} arrays @param {number} step */
  #numberRow(metric, i, arrays, step) {
    const { first, last, mean, high = mean, bad = null } = Object.fromEntries(["first", "last", "mean", "high", "bad"].map((name) => [name, arrays[`${i}.${name}`]]));
    let at = -1;
    for (let c = 0; c < first.length && first[c] <= step; c += 1) if (!Number.isNaN(mean[c]) || (bad && bad[c])) at = c;
    const isHere = at >= 0 && step <= last[at];
    const canvas = el("canvas", { class: "spark", "aria-hidden": "true" });
    const log = ["log"].includes(makeScale(metric.metric, { all: [1], positive: [1], negative: false }, { cut: 0, unit: "" }).kind);
    requestAnimationFrame(() => first.length && drawLine(canvas, 56, 20, first, mean, first[0], last[last.length - 1] + 1, token("--accent"), log));
    const shown = at < 0 ? "–" : bad && bad[at] ? (Number.isFinite(high[at]) ? "not finite" : number(mean[at])) : withUnit(mean[at], metric.unit);
    const note = at >= 0 && !isHere ? `from step ${stepText(last[at])}` : at >= 0 && first[at] !== last[at] ? `mean of steps ${stepText(first[at])} – ${stepText(last[at])}` : "";
    const nodes = [el("button", { class: "link", title: parts(metric.metric).meaning, on: { click: () => this.app.choose({ metric: metric.metric, low: null, high: null }) } }, ...breakable(metric.metric))];
    return el("tr", { class: metric.metric === choiceMetric(this) ? "on" : "" }, el("td", {}, ...nodes), el("td", {}, canvas),
      el("td", { class: bad && at >= 0 && bad[at] ? "value bad" : "value", title: note, text: shown + (note && at >= 0 && !isHere ? " *" : "") }));
  }
}

/** A metric's name, which may go on in a new line at its stage. @param {string} name */
function breakable(name) {
  return name.split(/(?=@)/).flatMap((piece, i) => (i ? [el("wbr"), piece] : [piece]));
}

/** @param {FlowView} view */
function choiceMetric(view) {
  return view.choice.metric;
}

/** The loss among the scalars of a run. @param {string[]} tags */
export function lossTag(tags) {
  return ["train/loss", "train_loss", "loss/train", "loss", "Loss/train"].find((tag) => tags.includes(tag)) || tags.find((tag) => /loss/i.test(tag) && !/val|test|eval|jacobian|^perf\//i.test(tag)) || "";
}

/** Whether values reach over so many powers of ten that a line of them says more on a log scale. @param {ArrayLike<number>} values */
export function spreads(values) {
  const finite = Array.from(values).filter(Number.isFinite);
  const low = finite.reduce((a, b) => Math.min(a, b), Infinity);
  return low > 0 && finite.reduce((a, b) => Math.max(a, b), 0) / low > 300;
}

/** @param {any} cell @param {string} unit @param {boolean} single @param {string | undefined} difference */
function value(cell, unit, single, difference) {
  if (difference === "log2 ratio") return Number.isNaN(cell.mean) ? "not comparable" : `× ${number(2 ** cell.mean)} (log2 ${number(cell.mean)})`;
  if (single || cell.low === cell.high) return withUnit(cell.mean, unit);
  if (Number.isNaN(cell.high)) return "no finite value";
  return `${withUnit(cell.low, unit)} – ${withUnit(cell.high, unit)}`;
}

/** A number for an input. @param {number} value */
function plain(value) {
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}

/** Shorten text to a width, in the middle. @param {CanvasRenderingContext2D} context @param {string} text @param {number} room */
function clip(context, text, room) {
  if (context.measureText(text).width <= room) return text;
  let keep = text.length;
  while (keep > 4) {
    keep -= 1;
    const head = Math.ceil(keep * 0.4);
    const short = `${text.slice(0, head)}…${text.slice(text.length - (keep - head))}`;
    if (context.measureText(short).width <= room) return short;
  }
  return text.slice(0, 3);
}

/** @param {CanvasRenderingContext2D} context @param {number} x @param {number} y @param {boolean} folded @param {string} colour */
function triangle(context, x, y, folded, colour) {
  context.fillStyle = colour;
  context.beginPath();
  if (folded) context.moveTo(x - 2, y - 4), context.lineTo(x + 3, y), context.lineTo(x - 2, y + 4);
  else context.moveTo(x - 4, y - 2), context.lineTo(x + 4, y - 2), context.lineTo(x, y + 3);
  context.fill();
}
