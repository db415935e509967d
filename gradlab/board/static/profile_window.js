/**
 * The cards of a window of the profiler, one for each part of its summary but the modules; null where it lacks that
 * part.
 *
 * @import { Idle, StepTimes, Summary } from "../answers"
 * @typedef {{name: string, value: number, text: string}} Bar `text` is the value as it is written
 */

import { el } from "./dom.js";
import { bytes, count, milliseconds, number, percent, step as stepText } from "./format.js";
import { key } from "./legend.js";

/**
 * The phases of a step, and the number of each one's colour.
 * @type {[Exclude<keyof StepTimes, "ms">, string, number][]}
 */
const PHASES = [
  ["data_ms", "waiting for data", 5],
  ["forward_ms", "forward", 0],
  ["backward_ms", "backward", 1],
  ["optimizer_ms", "optimizer", 2],
  ["other_ms", "other", 7],
];
/** Why a device is idle. @type {[Exclude<keyof Idle, "gaps">, string][]} */
const IDLE = [
  ["data_ms", "waiting for a batch"],
  ["sync_ms", "host had waited for the device"],
  ["host_ms", "host launched late"],
  ["queue_ms", "dependencies and launch gaps"],
];
const MOST_STEPS = 12;
const MOST_BARS = 12;
const MOST_MODULES = 10;
const MOST_GAPS = 10;

/** What bounds the run, and what to try. @param {Summary} summary */
export function verdictCard({ verdict, mean, device, memory, reason, notes = [] }) {
  if (!verdict) return null;
  const [bound, ...rest] = String(verdict.sentence).split(":");
  const facts = [
    ["a step", milliseconds(mean.ms)],
    ["steps a second", number(1000 / mean.ms)],
    ["waiting for data", percent(mean.data_ms / mean.ms)],
  ];
  if (device) facts.push(["device busy", percent(device.busy_share)]);
  if (memory) facts.push([`peak memory, ${memory.device}`, bytes(memory.peak_bytes)]);
  const hints = [...notes];
  if (reason && reason.kind !== "schedule") {
    const detail = reason.detail ? `, ${reason.detail}` : "";
    hints.unshift(`Opened because of: ${String(reason.kind).replaceAll("_", " ")}${detail}`);
  }
  return el("div", { class: "card" },
    factsRow(facts),
    el("div", { class: "verdict" },
      el("b", { text: `${capitalized(bound)}.` }), rest.length ? ` ${capitalized(rest.join(":").trim())}` : "",
      el("ul", { class: "attempts" }, ...(verdict.attempts || []).map((text) => el("li", { text })))),
    ...hints.map((text) => el("p", { class: "hint", text })));
}

/** The phases of each step. @param {Summary} summary @param {string[]} colours */
export function stepsCard({ steps, mean }, colours) {
  const longest = Math.max(...steps.map((one) => one.ms));
  const shown = steps.slice(0, MOST_STEPS);
  const rows = shown.flatMap((row) => phaseRow(`step ${stepText(row.step)}`, row, longest, colours));
  const keys = PHASES.map(([field, text, hue]) => key(colours[hue], `${text} ${percent(mean[field] / mean.ms)}`));
  return card("Time by step", "",
    el("div", { class: "rows" }, ...phaseRow("mean", mean, longest, colours), ...rows),
    el("div", { class: "keys" }, ...keys));
}

/** The phases of each rank's mean step. @param {Summary} summary @param {string[]} colours */
export function ranksCard({ ranks }, colours) {
  if (!ranks?.length) return null;
  const longest = Math.max(...ranks.map((one) => one.ms));
  const rows = ranks.flatMap((row) => phaseRow(`rank ${row.rank}`, row, longest, colours));
  return card(count(ranks.length, "rank"), "", el("div", { class: "rows" }, ...rows));
}

/** @param {Summary} summary */
export function operatorsCard({ operators = [], device }) {
  const where = device ? "device" : "host";
  const rows = operators.map((row) => ({ ...row, ms: device ? row.device_ms : row.host_self_ms }));
  const longest = rows.filter((row) => row.ms > 0).sort((a, b) => b.ms - a.ms).slice(0, MOST_BARS);
  const shown = longest.map((row) => timeBar(`${row.name} × ${number(row.calls)}`, row.ms));
  return card("Operators", `${where} time a step, of their own`,
    shown.length ? bars(shown) : el("p", { class: "hint", text: "None was seen." }));
}

/** @param {Summary} summary */
export function kernelsCard({ kernels }) {
  if (!kernels?.length) return null;
  const name = (/** @type {typeof kernels[0]} */ row) => `${row.name}${row.tensor_cores ? " · tensor cores" : ""}`;
  const shown = kernels.slice(0, MOST_BARS).map((row) => timeBar(name(row), row.ms));
  return card("Kernels", "device time a step", bars(shown));
}

/** What the memory holds at its peak; else what modules keep for the backward. @param {Summary} summary */
export function memoryCard({ memory, modules = [] }) {
  if (memory?.categories) {
    const where = `${bytes(memory.peak_bytes)} on ${memory.device} in step ${stepText(memory.peak_step)}`;
    const rows = Object.entries(memory.categories).sort((a, b) => b[1] - a[1]);
    const shown = rows.map(([name, size]) => sizeBar(name.replaceAll("_", " "), size));
    return card("Memory at its peak", where, bars(shown));
  }
  const rows = modules.flatMap(({ name, retained_bytes: size }) => {
    const isOuter = name && modules.some((other) => other.name !== name && other.name.startsWith(`${name}.`));
    return size && size > 0 && !isOuter ? [{ name, size }] : [];
  });
  if (!rows.length) return null;
  const largest = rows.sort((a, b) => b.size - a.size).slice(0, MOST_MODULES);
  const shown = largest.map(({ name, size }) => sizeBar(name || "(model)", size));
  return card("Memory kept for the backward", "by module, without the modules around it", bars(shown));
}

/** How busy the device is, and why it is idle. @param {Summary} summary */
export function deviceCard({ device, collectives_ms: collectives }) {
  if (!device) return null;
  const { tensor_core_share: tensorCores, copies_ms: copies, idle } = device;
  const facts = [["busy", percent(device.busy_share)], ["kernels", milliseconds(device.ms)]];
  if (tensorCores !== undefined) facts.push(["on tensor cores", percent(tensorCores)]);
  if (copies !== undefined) facts.push(["copies", milliseconds(copies)]);
  if (collectives) facts.push(["collectives", milliseconds(collectives)]);
  const causes = idle ? IDLE.map(([field, text]) => timeBar(text, idle[field] || 0)) : [];
  const gaps = (idle?.gaps || []).slice(0, MOST_GAPS).map(({ cause, step, before, module, ms }) => {
    return timeBar(`${cause}, step ${step}: before ${before}${module ? ` in ${module}` : ""}`, ms);
  });
  return card(`Device${device.name ? `: ${device.name}` : ""}`, "", factsRow(facts),
    ...(causes.length ? [el("h3", { text: "Why it stood still, a step" }), bars(causes)] : []),
    ...(gaps.length ? [el("h3", { text: "The longest gaps" }), bars(gaps)] : []));
}

/** @param {string} title @param {string} about @param {...HTMLElement} children */
function card(title, about, ...children) {
  return el("div", { class: "card" },
    el("h2", { text: title }), about ? el("div", { class: "sub", text: about }) : null, ...children);
}

/** @param {string[][]} facts name and value of each */
function factsRow(facts) {
  return el("div", { class: "facts" }, ...facts.map(([name, text]) => {
    return el("div", { class: "fact" }, el("span", { text: name }), el("b", { text }));
  }));
}

/**
 * A name, a bar of the phases, and the whole time.
 * @param {string} name @param {StepTimes} times @param {number} longest @param {string[]} colours
 */
function phaseRow(name, times, longest, colours) {
  const label = PHASES.map(([field, text]) => `${text} ${milliseconds(times[field])}`).join(", ");
  const parts = PHASES.map(([field, text, hue]) => {
    const ms = times[field] || 0;
    const title = `${text}: ${milliseconds(ms)} (${percent(ms / times.ms)})`;
    return el("i", { style: { width: `${(100 * ms) / longest}%`, background: colours[hue] }, title });
  });
  return [
    el("div", { class: "name", text: name }),
    el("div", { class: "stack", role: "img", "aria-label": label }, ...parts),
    el("div", { class: "num", text: milliseconds(times.ms) }),
  ];
}

/** @param {string} name @param {number} value @returns {Bar} */
function timeBar(name, value) {
  return { name, value, text: milliseconds(value) };
}

/** @param {string} name @param {number} value @returns {Bar} */
function sizeBar(name, value) {
  return { name, value, text: bytes(value) };
}

/** Bars as long as their values, the largest over the whole width. @param {Bar[]} shown */
function bars(shown) {
  const largest = Math.max(...shown.map((one) => one.value)) || 1;
  return el("div", { class: "rows" }, ...shown.flatMap(({ name, value, text }) => [
    el("div", { class: "name", title: name, text: name }),
    el("div", { class: "stack" },
      el("i", { style: { width: `${(100 * value) / largest}%`, background: "var(--accent)" } })),
    el("div", { class: "num", text }),
  ]));
}

/** @param {string} text */
function capitalized(text) {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}
