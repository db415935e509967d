/**
 * Findings as a list of sentences, symptoms under their cause; a click on one goes to its step and site.
 *
 * @import { Finding } from "../answers"
 * @typedef {{findings: Finding[], error?: string}} FoundFindings `error` where the server could not answer
 * @typedef {{finding: Finding, symptoms: Finding[]}} Cause
 */

import { el } from "./dom.js";
import { number, step as stepText } from "./format.js";

const MOST = 200;
const MOST_SITES = 3;
const NONE = "None: every gradient that was watched stayed finite, and no rule has anything to say.";

/** From the mildest to the worst. */
export const SEVERITIES = ["info", "warning", "error"];

/** @param {Finding} finding */
export function severityOf({ severity }) {
  return SEVERITIES.includes(severity) ? severity : "warning";
}

/** Each cause with its symptoms, which come after it. @param {Finding[]} findings */
export function causesOf(findings) {
  /** @type {Cause[]} */
  const causes = [];
  for (const finding of findings) {
    const last = causes.at(-1);
    if (finding.symptom && last) last.symptoms.push(finding);
    else causes.push({ finding, symptoms: [] });
  }
  return causes;
}

/**
 * @param {FoundFindings | null} found null where the answer is not here yet @param {(finding: Finding) => void} jump
 */
export function findingsList(found, jump) {
  const list = found?.findings || [];
  const title = el("h2", {}, "Findings", list.length ? el("span", { class: "count", text: list.length }) : null);
  if (!found) return el("section", {}, title, el("p", { class: "hint", text: "Looking…" }));
  if (!list.length) return el("section", {}, title, el("p", { class: "hint", text: found.error || NONE }));
  const items = causesOf(list.slice(0, MOST)).map((cause) => causeItem(cause, jump));
  const more = list.length > MOST && el("p", { class: "hint", text: `${list.length - MOST} more are in the file.` });
  return el("section", { class: "grow" }, title, el("ol", { class: "findings" }, ...items), more);
}

/** @param {Cause} cause @param {(finding: Finding) => void} jump */
function causeItem({ finding, symptoms }, jump) {
  if (!symptoms.length) return el("li", {}, button(finding, jump));
  const items = symptoms.map((one) => el("li", {}, button(one, jump)));
  const label = `what follows from ${finding.code || finding.name}`;
  return el("li", {}, button(finding, jump), el("ol", { class: "symptoms", "aria-label": label }, ...items));
}

/** Since when, or from when to when. @param {Finding} finding */
export function whenText({ first_step: first, last_step: last, ended }) {
  if (!ended) return `since step ${stepText(first)}`;
  return last > first ? `steps ${stepText(first)} – ${stepText(last)}` : `step ${stepText(first)}`;
}

/** @param {Finding} finding @param {(finding: Finding) => void} jump */
function button(finding, jump) {
  const severity = severityOf(finding);
  const { code, name, sites, evidence } = finding;
  const where = sites.slice(0, MOST_SITES).join(", ") + (sites.length > MOST_SITES ? `, … (${sites.length})` : "");
  const numbers = Object.entries(evidence).map(([key, value]) => `${key} ${value === null ? "–" : number(value)}`);
  const facts = [where && `at ${where}`, ...numbers].filter(Boolean).join(" · ");
  const kind = `finding ${severity}${finding.ended ? " ended" : ""}${finding.symptom ? " symptom" : ""}`;
  return el("button", { class: kind, on: { click: () => jump(finding) } },
    el("span", { class: "finding-head" },
      el("i", { class: `dot ${severity}`, title: severity }),
      el("b", { text: [code, name.replaceAll("-", " ")].filter(Boolean).join(" ") }),
      el("span", { class: "finding-step", text: whenText(finding) })),
    el("span", { class: "finding-text", text: finding.message }),
    finding.remedy ? el("span", { class: "finding-advice", text: finding.remedy }) : null,
    facts ? el("span", { class: "finding-facts", text: facts }) : null);
}
