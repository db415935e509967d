/**
 * Time by module in a window of the profiler: an icicle, in which a module is as wide as its time and has the modules
 * inside it below, and a table of those with the most time of their own.
 *
 * @import { ModuleRow, Summary } from "../answers"
 * @typedef {"forward" | "backward"} Pass
 * @typedef {object} IcicleNode a module in the icicle
 * @property {string} name
 * @property {string} label
 * @property {string} kind its class
 * @property {number} ms its time with the modules inside it
 * @property {number} own its time without them
 * @property {number} inside the time of the modules inside it
 * @property {number} calls
 * @property {number} hue the number of its colour, one for each class
 * @property {IcicleNode[]} children
 */

import { el, put } from "./dom.js";
import { bytes, milliseconds, number, percent } from "./format.js";

const ROW_HEIGHT = 22;
const MOST_DEPTH = 9;
const LEAST_WIDTH = 1.5;
/** The widths from which a module has its name, and its time too. */
const NAME_WIDTH = 18;
const TIME_WIDTH = 46;
/** @type {Pass[]} */
const PASSES = ["forward", "backward"];

/**
 * The card, with a place for the icicle; null where the summary has no modules.
 * @param {Summary} summary @param {HTMLElement} icicle @param {Pass} shown @param {(pass: Pass) => void} choose
 */
export function modulesCard(summary, icicle, shown, choose) {
  if (!summary.modules?.length) return null;
  const buttons = PASSES.map((pass) => {
    const click = () => choose(pass);
    return el("button", { class: "quiet", "aria-pressed": String(pass === shown), text: pass, on: { click } });
  });
  const where = summary.device ? "device" : "host";
  const about = `${where} time a step; the width of a module is its time with the modules inside it`;
  return el("div", { class: "card" },
    el("div", { class: "card-head" },
      el("h2", { text: "Time by module" }),
      el("div", { class: "seg", role: "group", "aria-label": "Pass" }, ...buttons)),
    el("div", { class: "sub", text: about }),
    icicle,
    el("div", { class: "overflow" }, moduleTable(summary.modules, summary, shown)));
}

/**
 * A time of a module on the device, or on the host where there is no device.
 * @param {Summary} summary @param {Pass} pass
 */
function timeOf({ device }, pass) {
  const prefix = device ? "device_" : "";
  return {
    whole: (/** @type {ModuleRow} */ row) => row[/** @type {const} */ (`${prefix}${pass}_ms`)] || 0,
    own: (/** @type {ModuleRow} */ row) => row[/** @type {const} */ (`${prefix}${pass}_self_ms`)] || 0,
  };
}

/** @param {HTMLElement} box on the page @param {Summary} summary @param {Pass} pass @param {string[]} colours */
export function drawIcicle(box, summary, pass, colours) {
  /** @type {HTMLElement[]} */
  const nodes = [];
  let deepest = 0;
  /** @param {IcicleNode} node @param {number} x @param {number} width @param {number} depth */
  const place = (node, x, width, depth) => {
    if (width < LEAST_WIDTH || depth > MOST_DEPTH) return;
    deepest = Math.max(deepest, depth);
    nodes.push(nodeElement(node, x, width, depth, colours[node.hue % (colours.length - 1)]));
    let at = x;
    for (const child of node.children) {
      const share = (width * child.ms) / Math.max(node.ms, node.inside || 1e-12);
      place(child, at, share, depth + 1);
      at += share;
    }
  };
  place(moduleTree(summary, pass), 0, box.clientWidth || 900, 0);
  box.style.height = `${(deepest + 1) * ROW_HEIGHT}px`;
  put(box, ...nodes);
}

/** @param {IcicleNode} node @param {number} x @param {number} width @param {number} depth @param {string} colour */
function nodeElement(node, x, width, depth, colour) {
  const ms = milliseconds(node.ms);
  const own = `${ms} a step, ${milliseconds(node.own)} of its own, ${number(node.calls)} calls`;
  let text = "";
  if (width > TIME_WIDTH) text = `${node.label}  ${ms}`;
  else if (width > NAME_WIDTH) text = node.label;
  return el("div", {
    style: {
      left: `${x}px`, width: `${Math.max(1, width - 1)}px`,
      top: `${depth * ROW_HEIGHT}px`, height: `${ROW_HEIGHT - 2}px`,
      background: `color-mix(in oklab, ${colour} ${depth ? 38 - 3 * depth : 22}%, var(--page))`,
    },
    title: `${node.name || "(model)"} · ${node.kind}\n${own}`,
    text,
  });
}

/** Modules as a tree by their names. @param {Summary} summary @param {Pass} pass */
function moduleTree(summary, pass) {
  const { modules = [] } = summary;
  const time = timeOf(summary, pass);
  const kinds = [...new Set(modules.map((one) => one.kind))];
  /** @type {Map<string, IcicleNode>} */
  const byName = new Map(modules.map((one) => {
    const label = one.name.split(".").at(-1) || one.kind;
    const hue = kinds.indexOf(one.kind);
    const { name, kind, calls } = one;
    return [name, { name, label, kind, ms: time.whole(one), own: time.own(one), calls, hue, inside: 0, children: [] }];
  }));
  const unnamed = { name: "", label: "model", kind: "", ms: 0, own: 0, calls: 1, hue: 0, inside: 0, children: [] };
  const root = byName.get("") || unnamed;
  for (const node of byName.values()) {
    if (node === root) continue;
    const path = node.name.split(".");
    const outer = path.map((_, i) => path.slice(0, -i - 1).join(".")).filter(Boolean);
    const parent = byName.get(outer.find((name) => byName.has(name)) || "") || root;
    if (parent === root) node.label = node.name;
    parent.children.push(node);
    parent.inside += node.ms;
  }
  root.ms = Math.max(root.ms, root.inside);
  return root;
}

/** @param {ModuleRow[]} modules @param {Summary} summary @param {Pass} pass */
function moduleTable(modules, summary, pass) {
  const { own } = timeOf(summary, pass);
  const rows = [...modules].sort((a, b) => own(b) - own(a)).slice(0, 10).filter((one) => own(one) > 0);
  if (!rows.length) return el("p", { class: "hint", text: `No time of a module was seen in the ${pass} pass.` });
  const hasMemory = rows.some((one) => one.retained_bytes !== null && one.retained_bytes !== undefined);
  const [forward, backward] = PASSES.map((one) => timeOf(summary, one).whole);
  /** @type {[string, (row: ModuleRow) => string][]} */
  const columns = [
    ["of its own", (row) => milliseconds(own(row))],
    ["of a step", (row) => percent(own(row) / summary.mean.ms)],
    ["forward", (row) => milliseconds(forward(row))],
    ["backward", (row) => milliseconds(backward(row))],
  ];
  if (hasMemory) {
    columns.push(["kept for backward", (row) => bytes(row.retained_bytes)], ["peak", (row) => bytes(row.peak_bytes)]);
  }
  const head = columns.map(([text]) => el("th", { class: "num", text }));
  const body = rows.map((row) => el("tr", {},
    el("td", {}, el("code", { text: row.name || "(model)" })),
    el("td", { text: row.kind }),
    ...columns.map(([, text]) => el("td", { class: "num", text: text(row) }))));
  return el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, el("th", { text: "module" }), el("th", { text: "class" }), ...head)),
    el("tbody", {}, ...body));
}
