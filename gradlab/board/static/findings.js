/**
 * Findings as a list of sentences; a click on one goes to its step and site.
 *
 * @import { Finding } from "../answers"
 * @typedef {{findings: Finding[], error?: string}} FoundFindings `error` where the server could not answer
 */

import { el } from "./dom.js";
import { step as stepText } from "./format.js";

const MOST = 200;
const NONE = "None: every gradient that was watched stayed finite, and none was silent.";

/** From the mildest to the worst. */
export const SEVERITIES = ["info", "warning", "error"];

/** @param {Finding} finding */
export function severityOf({ severity = "" }) {
  return SEVERITIES.includes(severity) ? severity : "warning";
}

/**
 * @param {FoundFindings | null} found null where the answer is not here yet @param {(finding: Finding) => void} jump
 */
export function findingsList(found, jump) {
  const list = found?.findings || [];
  const title = el("h2", {}, "Findings", list.length ? el("span", { class: "count", text: list.length }) : null);
  if (!found) return el("section", {}, title, el("p", { class: "hint", text: "Looking…" }));
  if (!list.length) return el("section", {}, title, el("p", { class: "hint", text: found.error || NONE }));
  const items = list.slice(0, MOST).map((one) => el("li", {}, button(one, jump)));
  const more = list.length > MOST && el("p", { class: "hint", text: `${list.length - MOST} more are in the file.` });
  return el("section", { class: "grow" }, title, el("ol", { class: "findings" }, ...items), more);
}

/** @param {Finding} finding @param {(finding: Finding) => void} jump */
function button(finding, jump) {
  const severity = severityOf(finding);
  return el("button", { class: `finding ${severity}`, on: { click: () => jump(finding) } },
    el("span", { class: "finding-head" },
      el("i", { class: `dot ${severity}`, title: severity }),
      el("b", { text: String(finding.kind || "").replaceAll("_", " ") }),
      el("span", { class: "finding-step", text: `step ${stepText(finding.step)}` })),
    el("span", { class: "finding-text", text: finding.message }),
    finding.advice ? el("span", { class: "finding-advice", text: finding.advice }) : null);
}
