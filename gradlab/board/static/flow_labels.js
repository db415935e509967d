/**
 * The names beside the heat map: those of blocks, with a triangle that folds them, and those of sites, as many as there
 * is room for.
 *
 * @import { HeatMap } from "./heat.js"
 * @import { Block } from "./sites.js"
 * @typedef {object} Pen what the functions below draw with: the font and the colours of the theme
 * @property {CanvasRenderingContext2D} context
 * @property {HeatMap} heat laid out
 * @property {string} font
 * @property {string} muted
 * @property {string} text
 * @property {string} rule
 */

import { cssVariable, sizeCanvas } from "./dom.js";
import { count } from "./format.js";
import { nameInBlock } from "./sites.js";

/** The width of the names in CSS pixels. */
export const GUTTER = 228;
/** The least distance between the middles of two names. */
const LINE = 12;
const BLOCK_X = 16;
const SITE_X = 102;

/** @param {HTMLCanvasElement} canvas @param {HeatMap} heat laid out @param {number} height in CSS pixels */
export function drawLabels(canvas, heat, height) {
  const context = sizeCanvas(canvas, GUTTER, height);
  context.textBaseline = "middle";
  const [font, muted, text, rule] = ["--font", "--muted", "--text", "--line-strong"].map(cssVariable);
  const pen = { context, heat, font, muted, text, rule };
  const hasBlocks = heat.blocks.length !== heat.rows.length;
  let last = -Infinity; // the middle of the last name at BLOCK_X
  for (const block of heat.blocks) {
    if (hasBlocks) {
      drawBracket(pen, block);
      last = drawBlockName(pen, block, last);
    }
    const isSingle = block.count === 1 && !block.folded;
    if (isSingle) last = drawSingleSite(pen, block, last);
    else drawSites(pen, block);
  }
}

/** Top and bottom of a block in CSS pixels. @param {HeatMap} heat @param {Block} block */
function extent(heat, block) {
  const top = heat.tops[block.first] / heat.ratio;
  const bottom = heat.bottom(block.first + block.count - 1) / heat.ratio;
  return { top, bottom, height: bottom - top };
}

/** The middle of a row in CSS pixels. @param {HeatMap} heat @param {number} row */
function middle(heat, row) {
  return (heat.tops[row] + heat.bottom(row)) / 2 / heat.ratio;
}

/** A line beside the rows of a block. @param {Pen} pen @param {Block} block */
function drawBracket({ context, heat, rule }, block) {
  const { top, height } = extent(heat, block);
  if (height <= 3 || block.count === 1) return;
  context.fillStyle = rule;
  context.fillRect(94, top + 1, 1.5, height - 2);
}

/**
 * The name of a block of several sites, where there is room below `last`; returns the middle of the last name then.
 * @param {Pen} pen @param {Block} block @param {number} last
 */
function drawBlockName(pen, block, last) {
  const { context, heat, font, text } = pen;
  const { top, bottom, height } = extent(heat, block);
  const nearTop = Math.max(top + 6, Math.min((top + bottom) / 2, top + 9));
  if (height < 4 || nearTop - last < LINE || (block.count === 1 && !block.folded)) return last;
  const y = height < 18 ? (top + bottom) / 2 : nearTop;
  context.font = `600 11px ${font}`;
  context.fillStyle = text;
  context.fillText(clipped(context, block.name, 74), BLOCK_X, y);
  if (block.count > 1 || heat.rows[block.first].sites.length > 1) drawTriangle(pen, 6, y, block.folded);
  return y;
}

/**
 * The whole name of a site that is alone in its block.
 * @param {Pen} pen @param {Block} block @param {number} last
 */
function drawSingleSite(pen, block, last) {
  const { heat } = pen;
  const y = middle(heat, block.first);
  if (y - last < LINE) return last;
  drawName(pen, heat.rows[block.first].name, BLOCK_X, y, GUTTER - 24);
  return y;
}

/**
 * The names of the sites of a block, or of every so many of them; of a folded block how many it has.
 * @param {Pen} pen @param {Block} block
 */
function drawSites(pen, block) {
  const { heat } = pen;
  const rowHeight = extent(heat, block).height / block.count;
  if (rowHeight < 5) return;
  const every = Math.max(1, Math.ceil(LINE / rowHeight));
  for (let row = block.first; row < block.first + block.count; row += every) {
    const { name, sites } = heat.rows[row];
    const text = block.folded ? count(sites.length, "site") : nameInBlock(name, block.name);
    drawName(pen, text, SITE_X, middle(heat, row), GUTTER - SITE_X - 10);
  }
}

/** @param {Pen} pen @param {string} name @param {number} x @param {number} y @param {number} room */
function drawName({ context, font, muted }, name, x, y, room) {
  context.font = `11px ${font}`;
  context.fillStyle = muted;
  context.fillText(clipped(context, name, room), x, y);
}

/**
 * Text shortened in its middle to a width.
 * @param {CanvasRenderingContext2D} context @param {string} text @param {number} room
 */
function clipped(context, text, room) {
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

/** @param {Pen} pen @param {number} x @param {number} y @param {boolean} isFolded */
function drawTriangle({ context, muted }, x, y, isFolded) {
  const points = isFolded ? [[-2, -4], [3, 0], [-2, 4]] : [[-4, -2], [4, -2], [0, 3]];
  context.fillStyle = muted;
  context.beginPath();
  for (const [dx, dy] of points) context.lineTo(x + dx, y + dy);
  context.fill();
}
