/**
 * The cells of a heat map: which step and value each shows, before any colour or pixel.
 *
 * @import { Heat } from "../answers"
 * @typedef {object} Table the arrays of an answer, with what is derived from them
 * @property {string[]} sites
 * @property {Float64Array} first the first step of each column
 * @property {Float64Array} last the last step of each column
 * @property {Float32Array} mean [sites, columns]
 * @property {Float32Array | null} low
 * @property {Float32Array | null} high
 * @property {Uint16Array | null} bad how many values of a cell were not finite
 * @property {number} columns
 * @property {number} from the first step that is shown
 * @property {number} to the step after the last one that is shown
 * @property {Int32Array} shown [sites, columns]: the column whose value a cell shows, -1 for none
 */

/**
 * @param {Heat} answer
 * @param {number | null} [start] the first step that the user wants to see, null for the first there is
 * @param {number | null} [end] the last one
 * @returns {Table}
 */
export function toTable({ header, arrays }, start = null, end = null) {
  const { first, last, mean, low = null, high = null, bad = null } = arrays;
  const columns = first.length;
  const from = start ?? (columns ? first[0] : 0);
  const to = Math.max((end ?? (columns ? last[columns - 1] : 0)) + 1, from + 1);
  const isPresent = (/** @type {number} */ at) => !Number.isNaN(mean[at]) || (bad !== null && bad[at] > 0);
  const shown = shownColumns(header.sites.length, first, isPresent);
  return { sites: header.sites, first, last, mean, low, high, bad, columns, from, to, shown };
}

/**
 * For each cell the column whose value it shows: its own; in a row that has values every so many steps only, the one
 * before, for as long as until the next is due.
 * @param {number} numSites @param {Float64Array} first @param {(at: number) => boolean} isPresent
 */
function shownColumns(numSites, first, isPresent) {
  const columns = first.length;
  const found = new Int32Array(numSites * columns).fill(-1);
  for (let row = 0; row < numSites; row += 1) {
    const base = row * columns;
    let [count, begin, end] = [0, -1, -1];
    for (let c = 0; c < columns; c += 1) {
      if (!isPresent(base + c)) continue;
      found[base + c] = c;
      if (begin < 0) begin = c;
      end = c;
      count += 1;
    }
    if (count < 2 || count > columns * 0.75) continue;
    const hold = (1.25 * (first[end] - first[begin])) / (count - 1);
    let previous = -1;
    for (let c = 0; c < columns; c += 1) {
      if (found[base + c] === c) previous = c;
      else if (previous >= 0 && first[c] - first[previous] < hold) found[base + c] = previous;
    }
  }
  return found;
}

/** The column that is shown at a step. @param {Table} table @param {number} step */
export function columnAt({ first, columns }, step) {
  let [low, high] = [0, columns - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (first[middle] <= step) low = middle;
    else high = middle - 1;
  }
  return low;
}

/**
 * What some sites show in a column: of several the most telling, not finite first, then the largest.
 * @param {Table} table @param {number[]} sites @param {number} column
 */
export function cellOf(table, sites, column) {
  let best = null;
  for (const site of sites) {
    const at = table.shown[site * table.columns + column];
    if (at < 0) continue;
    const place = site * table.columns + at;
    const mean = table.mean[place];
    const one = {
      site: table.sites[site],
      first: table.first[at],
      last: table.last[at],
      mean,
      low: table.low === null ? mean : table.low[place],
      high: table.high === null ? mean : table.high[place],
      bad: table.bad === null ? 0 : table.bad[place],
    };
    if (!best || one.bad > best.bad || (one.bad === best.bad && one.high > best.high)) best = one;
  }
  return best;
}

/**
 * The columns in which something is not finite: the first step of each, and at how many of these sites.
 * @param {Table} table @param {number[]} sites
 */
export function nonfiniteColumns(table, sites) {
  const { bad, columns, first } = table;
  if (bad === null) return [];
  const counts = Array.from(first, (_, c) => sites.filter((site) => bad[site * columns + c] > 0).length);
  return counts.flatMap((count, c) => (count ? [{ step: first[c], sites: count }] : []));
}
