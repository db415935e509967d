/**
 * All metrics of one site: the arrays of each in the answer `layer`, and where something was not finite.
 *
 * @import { Layer } from "../answers"
 */

import { step as stepText } from "./format.js";

/** The arrays of a metric. @param {Layer} answer @param {number} i its number among the metrics of the header */
export function metricColumns({ arrays }, i) {
  return {
    first: arrays[/** @type {const} */ (`${i}.first`)],
    last: arrays[/** @type {const} */ (`${i}.last`)],
    mean: arrays[/** @type {const} */ (`${i}.mean`)],
    low: arrays[/** @type {const} */ (`${i}.low`)],
    high: arrays[/** @type {const} */ (`${i}.high`)],
    bad: arrays[/** @type {const} */ (`${i}.bad`)],
  };
}

/**
 * The counts of a histogram, [columns, bins], and the first step of each column.
 * @param {Layer} answer @param {number} i
 */
export function histogramColumns({ arrays }, i) {
  return {
    first: arrays[/** @type {const} */ (`${i}.first`)],
    counts: arrays[/** @type {const} */ (`${i}.counts`)],
  };
}

/** The spans of steps in which any metric of the site was not finite, joined where they touch. @param {Layer} answer */
export function nonfiniteSpans(answer) {
  const spans = answer.header.metrics.flatMap((_, i) => {
    const { first, last, bad } = metricColumns(answer, i);
    return bad ? Array.from(bad.keys()).filter((c) => bad[c] > 0).map((c) => [first[c] - 0.5, last[c] + 0.5]) : [];
  });
  /** @type {number[][]} */
  const joined = [];
  for (const [from, to] of spans.sort((a, b) => a[0] - b[0])) {
    const before = joined.at(-1);
    if (before && from <= before[1] + 1) before[1] = Math.max(before[1], to);
    else joined.push([from, to]);
  }
  return joined;
}

/** For each metric that was not finite: its name, and when it was so first. @param {Layer} answer */
export function firstNonfinite(answer) {
  return answer.header.metrics.flatMap(({ metric }, i) => {
    const { first, bad } = metricColumns(answer, i);
    const at = bad ? bad.findIndex((one) => one > 0) : -1;
    return at < 0 ? [] : [`${metric} first at step ${stepText(first[at])}`];
  });
}
