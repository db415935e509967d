/**
 * TensorBoard's scalars beside the metrics of sites: which of a run's is the loss or the learning rate, and their
 * values.
 *
 * @import { Scalars } from "../answers"
 */

const LOSS_TAGS = ["train/loss", "train_loss", "loss/train", "loss", "Loss/train"];

/** The training loss among the scalars of a run; "" where there is none. @param {string[]} tags */
export function lossTag(tags) {
  const known = LOSS_TAGS.find((tag) => tags.includes(tag));
  return known || tags.find((tag) => /loss/i.test(tag) && !/val|test|eval|jacobian|^perf\//i.test(tag)) || "";
}

/** The learning rate among the scalars of a run; "" where there is none. @param {string[]} tags */
export function rateTag(tags) {
  const known = tags.find((tag) => /(^|[-_/.])(lr|learning_rate)([-_/.]|$)/i.test(tag));
  return known || tags.find((tag) => /^lr/i.test(tag)) || "";
}

/**
 * The steps and values of a tag.
 * @param {Scalars} answer @param {number} i the number of the tag among those requested
 */
export function scalar({ arrays }, i) {
  return {
    steps: arrays[/** @type {const} */ (`${i}.steps`)],
    values: arrays[/** @type {const} */ (`${i}.values`)],
  };
}

/**
 * Whether values span so many powers of ten that a line of them says more on a log scale.
 * @param {ArrayLike<number>} values
 */
export function needsLogScale(values) {
  const finite = Array.from(values).filter(Number.isFinite);
  const low = finite.reduce((a, b) => Math.min(a, b), Infinity);
  const high = finite.reduce((a, b) => Math.max(a, b), 0);
  return low > 0 && high / low > 300;
}
