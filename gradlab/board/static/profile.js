/** The profiler's windows: where a step's time and memory go, by phase, module and operator. Needs no network. */

import { axis, draw, layout, lineColours } from "./chart.js";
import { el, empty, fillSelect, labelled, put, select } from "./dom.js";
import { bytes, count, milliseconds, number, percent, step as stepText } from "./format.js";
import { key } from "./legend.js";

const PHASES = [["data_ms", "waiting for data"], ["forward_ms", "forward"], ["backward_ms", "backward"], ["optimizer_ms", "optimizer"], ["other_ms", "other"]];
const IDLE = [["data_ms", "waiting for a batch"], ["sync_ms", "host had waited for the device"], ["host_ms", "host launched late"], ["queue_ms", "dependencies and launch gaps"]];
/** The phases of every step, as `perf/*` has them, and their line colours. */
const ALWAYS = [["perf/data_ms", "waiting for data", 5], ["perf/h2d_ms", "copy to the device", 3], ["perf/forward_ms", "forward", 0], ["perf/loss_ms", "loss", 4], ["perf/backward_ms", "backward", 1], ["perf/optimizer_ms", "optimizer", 2], ["perf/callbacks_ms", "callbacks", 6], ["perf/other_ms", "other", 7]];
/** What else is always measured: scalar, name, how it is written. @type {[string, string, (value: number) => string][]} */
const RATES = [["perf/step_ms", "a step", milliseconds], ["perf/samples_per_second", "samples a second", number], ["perf/tokens_per_second", "tokens a second", number], ["perf/tflops_per_second", "TFLOP a second", number], ["perf/mfu", "model FLOP utilization", percent], ["perf/memory_peak_bytes", "peak device memory", bytes], ["perf/host_memory_bytes", "host memory", bytes], ["perf/gpu_utilization", "GPU utilization", percent]];
const ROW = 22;
/** Which line colour each phase has. */
const HUES = [5, 0, 1, 2, 7];

export class ProfileView {
  #asked = 0;

  /** @param {import("./app.js").App} app */
  constructor(app) {
    this.app = app;
    this.window = "";
    /** Draws the chart of every step, once it stands on the page. */
    this.drawAlways = () => {};
    this.pass = "forward";
    this.runSelect = select([], "", (run) => app.choose({ run }));
    this.windowSelect = select([], "", (name) => this.#choose(name));
    this.links = el("div", { class: "control links" });
    this.bar = el("div", { class: "bar" }, labelled("Run", this.runSelect, "wide"), labelled("Window", this.windowSelect), this.links);
    this.box = el("div", { class: "scrolls cards" });
    this.root = el("div", { class: "view" }, this.bar, this.box);
  }

  /** @param {string} name */
  #choose(name) {
    this.window = name;
    this.#show();
  }

  /** @param {import("./app.js").Choice} choice @param {any} run */
  async update(choice, run) {
    this.choice = choice;
    fillSelect(this.runSelect, this.app.index.runs.map((/** @type {any} */ one) => ({ value: one.name, text: one.name })), choice.run);
    const always = await this.#always(run);
    if (this.choice !== choice) return;
    if (!run.profiles.length) {
      this.windows = [];
      this.#controls();
      put(this.box, always, empty("No profile of this run", "A window of a few steps under the profiler is one argument:", el("pre", { text: "gradlab.watch(model, optimizer, profile=gradlab.Profile(wait=5, warmup=2, active=3))" }), el("p", { text: "Windows are read from the run's folder, so they are shown where the log directory is on this machine." })));
      this.drawAlways();
      return;
    }
    const asked = (this.#asked += 1);
    try {
      const found = await this.app.ask("profile", { run: choice.run });
      if (asked !== this.#asked) return;
      this.windows = found.windows;
      this.always = always;
      this.#show();
    } catch (error) {
      put(this.box, empty("The profile cannot be shown", /** @type {Error} */ (error).message));
    }
  }

  #controls() {
    const windows = this.windows || [];
    if (!windows.some((/** @type {any} */ one) => one.name === this.window)) this.window = windows.at(-1)?.name || "";
    fillSelect(this.windowSelect, windows.map((/** @type {any} */ one) => ({ value: one.name, text: windowText(one) })), this.window);
    const shown = windows.find((/** @type {any} */ one) => one.name === this.window);
    const live = this.app.source.live;
    put(this.links, el("span", { class: "label", text: "Trace" }), el("div", { class: "link-row" },
      ...(shown?.traces || []).slice(0, 4).map((/** @type {any} */ trace) => {
        const href = this.app.source.traceLink(this.choice.run, shown.name, trace.name);
        const text = `${trace.name.split(".")[0]} · ${bytes(trace.bytes)}`;
        return href ? el("a", { href, download: trace.name, title: "Save the trace; ui.perfetto.dev and chrome://tracing open it", text: `Save for Perfetto (${text})` }) : el("span", { class: "hint", text: `${trace.name} (${bytes(trace.bytes)}) lies in the run's folder` });
      }),
      live && shown?.traces.length ? el("button", { class: "link", text: "Open the PyTorch Profiler tab", on: { click: () => this.app.host.open("pytorch_profiler") } }) : null));
    this.links.hidden = !shown?.traces.length;
    return shown;
  }

  #show() {
    const shown = this.#controls();
    if (!shown) return;
    if (shown.problem) {
      put(this.box, this.always, empty("This window has no summary", shown.problem));
      return;
    }
    const s = shown.summary;
    const colours = lineColours(this.app.host.theme);
    const parts = [
      () => verdict(s), () => steps(s, colours), () => this.#modules(s, colours),
      () => el("div", { class: "two" }, operators(s), memory(s, colours) || kernels(s)),
      () => device(s, colours), () => (memory(s, colours) && kernels(s) ? kernels(s) : null), () => ranks(s, colours),
    ];
    put(this.box, this.always, ...parts.map((part) => attempt(part)));
    this.drawAlways();
    this.#icicle(s, colours);
  }

  /** Where the time of every step goes, from scalars; null where they were not logged. @param {any} run */
  async #always(run) {
    const phases = ALWAYS.filter(([tag]) => run.scalars.includes(tag));
    this.drawAlways = () => {};
    if (!phases.length) return null;
    const rates = RATES.filter(([tag]) => run.scalars.includes(tag));
    const tags = [...phases, ...rates].map(([tag]) => tag);
    const found = await this.app.ask("scalars", { run: run.name, tag: tags, columns: 600 }).catch(() => null);
    if (!found) return null;
    const series = tags.map((_, i) => ({ x: Array.from(found.arrays[`${i}.steps`]), y: Array.from(found.arrays[`${i}.values`]) }));
    const colours = lineColours(this.app.host.theme);
    const traces = phases.map(([, name, hue], i) => ({ ...series[i], name, stackgroup: "step", mode: "lines", line: { width: 0.5, color: colours[Number(hue)] }, fillcolor: colours[Number(hue)], hovertemplate: "%{y:.3~g} ms" }));
    const chart = el("div", { class: "chart" });
    const facts = rates.map(([, name, text], i) => el("div", { class: "fact" }, el("span", { text: name }), el("b", { text: text(Number(series[phases.length + i].y.at(-1))) })));
    this.drawAlways = () => draw(this.app.source, chart, traces, layout({ height: 190, width: chart.clientWidth || 1180, margin: { l: 56, r: 10, t: 10, b: 36 }, showlegend: false, xaxis: axis({ title: { text: "step", standoff: 4 }, tickformat: ",d" }), yaxis: axis({ title: { text: "ms a step", standoff: 6 }, rangemode: "tozero" }) })).catch(() => {});
    return el("div", { class: "card" }, el("h2", { text: "Every step" }), el("div", { class: "sub", text: "means over ten steps, without the profiler; the last one:" }),
      el("div", { class: "facts" }, ...facts), chart, el("div", { class: "keys" }, ...phases.map(([, name, hue]) => key(colours[Number(hue)], String(name)))));
  }

  /** @param {any} s @param {string[]} colours */
  #modules(s, colours) {
    if (!s.modules?.length) return null;
    const onDevice = Boolean(s.device);
    this.chart = el("div", { class: "icicle" });
    const chosen = (/** @type {string} */ pass) => this.pass === pass;
    const buttons = ["forward", "backward"].map((pass) => el("button", { class: "quiet", "aria-pressed": String(chosen(pass)), text: pass, on: { click: () => { this.pass = pass; this.#show(); } } }));
    return el("div", { class: "card" },
      el("div", { class: "card-head" }, el("h2", { text: "Time by module" }), el("div", { class: "seg", role: "group", "aria-label": "Pass" }, ...buttons)),
      el("div", { class: "sub", text: `${onDevice ? "device" : "host"} time a step; the width of a module is its time with the modules inside it` }), this.chart,
      el("div", { class: "overflow" }, moduleTable(s, this.pass, onDevice)));
  }

  /** @param {any} s @param {string[]} colours */
  #icicle(s, colours) {
    if (!this.chart || !s.modules?.length) return;
    const prefix = s.device ? "device_" : "";
    const field = `${prefix}${this.pass}_ms`;
    const tree = build(s.modules, field);
    const width = this.chart.clientWidth || 900;
    const nodes = [];
    let deepest = 0;
    const place = (/** @type {any} */ node, /** @type {number} */ x, /** @type {number} */ w, /** @type {number} */ depth) => {
      if (w < 1.5 || depth > 9) return;
      deepest = Math.max(deepest, depth);
      const tint = colours[node.hue % (colours.length - 1)];
      const text = w > 46 ? `${node.label}  ${milliseconds(node.ms)}` : w > 18 ? node.label : "";
      nodes.push(el("div", { style: { left: `${x}px`, width: `${Math.max(1, w - 1)}px`, top: `${depth * ROW}px`, height: `${ROW - 2}px`, background: `color-mix(in oklab, ${tint} ${depth ? 38 - 3 * depth : 22}%, var(--page))` }, title: `${node.name || "(model)"} · ${node.kind}\n${milliseconds(node.ms)} a step, ${milliseconds(node.own)} of its own, ${number(node.calls)} calls`, text }));
      let at = x;
      for (const child of node.children) {
        const share = (w * child.ms) / Math.max(node.ms, node.inside || 1e-12);
        place(child, at, share, depth + 1);
        at += share;
      }
    };
    place(tree, 0, width, 0);
    this.chart.style.height = `${(deepest + 1) * ROW}px`;
    put(this.chart, ...nodes);
  }
}

/** A part of the page, or a sentence where the file is not as expected. @param {() => any} part */
function attempt(part) {
  try {
    return part();
  } catch (error) {
    return el("div", { class: "card hint", text: `A part of this window is not as this board expects it (${/** @type {Error} */ (error).message}).` });
  }
}

/** @param {any} window */
function windowText(window) {
  const steps = window.summary?.steps;
  if (!steps?.length) return window.name;
  return steps.length === 1 ? `step ${stepText(steps[0].step)}` : `steps ${stepText(steps[0].step)} – ${stepText(steps.at(-1).step)}`;
}

/** @param {any} s */
function verdict(s) {
  if (!s.verdict) return null;
  const [bound, ...rest] = String(s.verdict.sentence).split(":");
  const why = s.reason && s.reason.kind !== "schedule" ? el("p", { class: "hint", text: `Opened because of: ${String(s.reason.kind).replaceAll("_", " ")}${s.reason.detail ? `, ${s.reason.detail}` : ""}` }) : null;
  const facts = [["a step", milliseconds(s.mean.ms)], ["steps a second", number(1000 / s.mean.ms)], ["waiting for data", percent(s.mean.data_ms / s.mean.ms)]];
  if (s.device) facts.push(["device busy", percent(s.device.busy_share)]);
  if (s.memory) facts.push([`peak memory, ${s.memory.device}`, bytes(s.memory.peak_bytes)]);
  return el("div", { class: "card" },
    el("div", { class: "facts" }, ...facts.map(([name, text]) => el("div", { class: "fact" }, el("span", { text: name }), el("b", { text })))),
    el("div", { class: "verdict" }, el("b", { text: `${capital(bound)}.` }), rest.length ? ` ${capital(rest.join(":").trim())}` : "",
      el("ul", { class: "attempts" }, ...(s.verdict.attempts || []).map((/** @type {string} */ text) => el("li", { text })))), why,
    ...(s.notes || []).map((/** @type {string} */ text) => el("p", { class: "hint", text })));
}

/** @param {string} text */
function capital(text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

/** @param {any} s @param {string[]} colours */
function steps(s, colours) {
  const longest = Math.max(...s.steps.map((/** @type {any} */ one) => one.ms));
  const bar = (/** @type {any} */ row, /** @type {string} */ name) => [
    el("div", { class: "name", text: name }),
    el("div", { class: "stack", role: "img", "aria-label": PHASES.map(([field, text]) => `${text} ${milliseconds(row[field])}`).join(", ") },
      ...PHASES.map(([field, text], i) => el("i", { style: { width: `${(100 * row[field]) / longest}%`, background: colours[HUES[i]] }, title: `${text}: ${milliseconds(row[field])} (${percent(row[field] / row.ms)})` }))),
    el("div", { class: "num", text: milliseconds(row.ms) }),
  ];
  return el("div", { class: "card" }, el("h2", { text: "Time by step" }),
    el("div", { class: "rows" }, ...bar(s.mean, "mean"), ...s.steps.slice(0, 12).flatMap((/** @type {any} */ row) => bar(row, `step ${stepText(row.step)}`))),
    el("div", { class: "keys" }, ...PHASES.map(([field, text], i) => key(colours[HUES[i]], `${text} ${percent(s.mean[field] / s.mean.ms)}`))));
}

/** Modules as a tree by their names. @param {any[]} modules @param {string} field */
function build(modules, field) {
  const own = field.replace("_ms", "_self_ms");
  /** @type {Map<string, any>} */
  const byName = new Map();
  const kinds = [...new Set(modules.map((one) => one.kind))];
  modules.forEach((one) => byName.set(one.name, { name: one.name, label: one.name.split(".").at(-1) || one.kind, kind: one.kind, ms: one[field] || 0, own: one[own] || 0, calls: one.calls, children: [], inside: 0, hue: kinds.indexOf(one.kind) }));
  const root = byName.get("") || { name: "", label: "model", kind: "", ms: 0, own: 0, calls: 1, children: [], inside: 0, hue: 0 };
  for (const node of byName.values()) {
    if (node === root) continue;
    const path = node.name.split(".");
    let parent = root;
    for (let cut = path.length - 1; cut > 0; cut -= 1) {
      const found = byName.get(path.slice(0, cut).join("."));
      if (found) {
        parent = found;
        break;
      }
    }
    if (parent === root) node.label = node.name;
    parent.children.push(node);
    parent.inside += node.ms;
  }
  root.ms = Math.max(root.ms, root.inside);
  return root;
}

/** @param {any} s @param {string} pass @param {boolean} onDevice */
function moduleTable(s, pass, onDevice) {
  const prefix = onDevice ? "device_" : "";
  const field = `${prefix}${pass}_self_ms`;
  const rows = [...s.modules].sort((a, b) => b[field] - a[field]).slice(0, 10).filter((one) => one[field] > 0);
  if (!rows.length) return el("p", { class: "hint", text: `No time of a module was seen in the ${pass} pass.` });
  const hasMemory = rows.some((one) => one.retained_bytes !== null && one.retained_bytes !== undefined);
  const total = s.mean.ms;
  const head = ["module", "class", "of its own", "of a step", "forward", "backward", ...(hasMemory ? ["kept for backward", "peak"] : [])];
  return el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, ...head.map((text, i) => el("th", { class: i > 1 ? "num" : "", text })))),
    el("tbody", {}, ...rows.map((one) => el("tr", {}, el("td", {}, el("code", { text: one.name || "(model)" })), el("td", { text: one.kind }),
      ...[milliseconds(one[field]), percent(one[field] / total), milliseconds(one[`${prefix}forward_ms`]), milliseconds(one[`${prefix}backward_ms`]), ...(hasMemory ? [bytes(one.retained_bytes), bytes(one.peak_bytes)] : [])].map((text) => el("td", { class: "num", text }))))));
}

/** @param {any[]} rows @param {(row: any) => number} value @param {(row: any) => string} name @param {(value: number) => string} text */
function bars(rows, value, name, text) {
  const largest = Math.max(...rows.map(value)) || 1;
  return el("div", { class: "rows" }, ...rows.flatMap((row) => [el("div", { class: "name", title: name(row), text: name(row) }), el("div", { class: "stack" }, el("i", { style: { width: `${(100 * value(row)) / largest}%`, background: "var(--accent)" } })), el("div", { class: "num", text: text(value(row)) })]));
}

/** @param {any} s */
function operators(s) {
  const onDevice = Boolean(s.device);
  const value = (/** @type {any} */ row) => (onDevice ? row.device_ms : row.host_self_ms);
  const rows = [...(s.operators || [])].sort((a, b) => value(b) - value(a)).slice(0, 12).filter((row) => value(row) > 0);
  return el("div", { class: "card" }, el("h2", { text: "Operators" }), el("div", { class: "sub", text: `${onDevice ? "device" : "host"} time a step, of their own` }),
    rows.length ? bars(rows, value, (row) => `${row.name} × ${number(row.calls)}`, milliseconds) : el("p", { class: "hint", text: "None was seen." }));
}

/** @param {any} s */
function kernels(s) {
  if (!s.kernels?.length) return null;
  return el("div", { class: "card" }, el("h2", { text: "Kernels" }), el("div", { class: "sub", text: "device time a step" }), bars(s.kernels.slice(0, 12), (row) => row.ms, (row) => `${row.name}${row.tensor_cores ? " · tensor cores" : ""}`, milliseconds));
}

/** @param {any} s @param {string[]} colours */
function memory(s, colours) {
  if (s.memory?.categories) {
    const rows = Object.entries(s.memory.categories).sort((a, b) => b[1] - a[1]);
    return el("div", { class: "card" }, el("h2", { text: "Memory at its peak" }), el("div", { class: "sub", text: `${bytes(s.memory.peak_bytes)} on ${s.memory.device} in step ${stepText(s.memory.peak_step)}` }),
      bars(rows, (row) => row[1], (row) => row[0].replaceAll("_", " "), bytes));
  }
  const rows = (s.modules || []).filter((/** @type {any} */ one) => one.retained_bytes > 0 && !s.modules.some((/** @type {any} */ other) => other !== one && one.name && other.name.startsWith(`${one.name}.`))).sort((/** @type {any} */ a, /** @type {any} */ b) => b.retained_bytes - a.retained_bytes).slice(0, 10);
  if (!rows.length) return null;
  return el("div", { class: "card" }, el("h2", { text: "Memory kept for the backward" }), el("div", { class: "sub", text: "by module, without the modules around it" }), bars(rows, (row) => row.retained_bytes, (row) => row.name || "(model)", bytes));
}

/** @param {any} s @param {string[]} colours */
function device(s, colours) {
  if (!s.device) return null;
  const idle = s.device.idle;
  const facts = [["busy", percent(s.device.busy_share)], ["kernels", milliseconds(s.device.ms)], ...(s.device.tensor_core_share !== undefined ? [["on tensor cores", percent(s.device.tensor_core_share)]] : []), ...(s.device.copies_ms !== undefined ? [["copies", milliseconds(s.device.copies_ms)]] : []), ...(s.collectives_ms ? [["collectives", milliseconds(s.collectives_ms)]] : [])];
  return el("div", { class: "card" }, el("h2", { text: `Device${s.device.name ? `: ${s.device.name}` : ""}` }),
    el("div", { class: "facts" }, ...facts.map(([name, text]) => el("div", { class: "fact" }, el("span", { text: name }), el("b", { text: String(text) })))),
    idle && el("h3", { text: "Why it stood still, a step" }), idle && bars(IDLE.map(([field, text]) => ({ text, ms: idle[field] || 0 })), (row) => row.ms, (row) => row.text, milliseconds),
    idle?.gaps?.length && el("h3", { text: "The longest gaps" }), idle?.gaps?.length && bars(idle.gaps.slice(0, 10), (row) => row.ms, (row) => `${row.cause}, step ${row.step}: before ${row.before}${row.module ? ` in ${row.module}` : ""}`, milliseconds));
}

/** @param {any} s @param {string[]} colours */
function ranks(s, colours) {
  if (!s.ranks?.length) return null;
  const longest = Math.max(...s.ranks.map((/** @type {any} */ one) => one.ms));
  return el("div", { class: "card" }, el("h2", { text: count(s.ranks.length, "rank") }), el("div", { class: "rows" }, ...s.ranks.flatMap((/** @type {any} */ row) => [
    el("div", { class: "name", text: `rank ${row.rank}` }),
    el("div", { class: "stack" }, ...PHASES.map(([field, text], i) => el("i", { style: { width: `${(100 * (row[field] || 0)) / longest}%`, background: colours[HUES[i]] }, title: `${text}: ${milliseconds(row[field])}` }))),
    el("div", { class: "num", text: milliseconds(row.ms) })])));
}
