/** Findings as a list of sentences; each goes to its place. */

import { el } from "./dom.js";
import { step as stepText } from "./format.js";

export const SEVERITIES = ["info", "warning", "error"];

/** @param {any} finding */
export function severityOf(finding) {
  return SEVERITIES.includes(finding.severity) ? finding.severity : "warning";
}

/** @param {any} found the answer of `findings`, or nothing yet @param {(finding: any) => void} jump */
export function findingsList(found, jump) {
  const list = found?.findings || [];
  const title = el("h2", {}, "Findings", list.length ? el("span", { class: "count", text: list.length }) : null);
  if (!found) return el("section", {}, title, el("p", { class: "hint", text: "Looking…" }));
  if (!list.length) {
    return el("section", {}, title, el("p", { class: "hint", text: found.error || "None: every gradient that was watched stayed finite, and none was silent." }));
  }
  return el("section", { class: "grow" }, title, el("ol", { class: "findings" }, ...list.slice(0, 200).map((/** @type {any} */ one) =>
    el("li", {}, el("button", { class: `finding ${severityOf(one)}`, on: { click: () => jump(one) } },
      el("span", { class: "finding-head" }, el("i", { class: `dot ${severityOf(one)}`, title: severityOf(one) }), el("b", { text: String(one.kind || "").replaceAll("_", " ") }), el("span", { class: "finding-step", text: `step ${stepText(one.step)}` })),
      el("span", { class: "finding-text", text: one.message }),
      one.advice ? el("span", { class: "finding-advice", text: one.advice }) : null)))),
    list.length > 200 && el("p", { class: "hint", text: `${list.length - 200} more are in the file.` }));
}
