/**
 * Names of sites: the block that each belongs to, patterns, and the rows that a heat map has for them.
 *
 * @typedef {{name: string, sites: number[], block: number, folded: boolean}} Row a site, or all sites of a folded block
 * @typedef {{name: string, first: number, count: number, folded: boolean}} Block neighbouring rows: the first, how many
 */

/**
 * The block of a site: up to and with its first numbered part, as `encoder.layers.3` of `encoder.layers.3.attn.weight`.
 * @param {string} site
 */
export function blockOf(site) {
  const [path] = site.split(/[/:]/);
  const names = path.split(".");
  const at = names.findIndex((name) => /^\d/.test(name));
  if (at >= 0) return names.slice(0, at + 1).join(".").replace(/[[#].*$/, "");
  if (!path) return "(model)";
  return names.length > 1 ? names[0] : path.replace(/[[#].*$/, "");
}

/** A site's name without that of its block. @param {string} site @param {string} block */
export function nameInBlock(site, block) {
  if (site === block || !site.startsWith(block)) return site;
  const rest = site.slice(block.length);
  return rest.startsWith(".") ? rest.slice(1) : rest;
}

/**
 * A function that says whether a name fits a pattern with `*` and `?`; one without them fits anywhere in the name.
 * @param {string} pattern
 * @returns {(name: string) => boolean}
 */
export function matcher(pattern) {
  if (!pattern) return () => true;
  if (!/[*?]/.test(pattern)) {
    const low = pattern.toLowerCase();
    return (name) => name.toLowerCase().includes(low);
  }
  const source = pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".");
  const expression = new RegExp(`^${source}$`, "i");
  return (name) => expression.test(name);
}

/**
 * The rows of a heat map: a row a site, those of one block together; a folded block is one row.
 * @param {string[]} sites
 * @param {(site: string) => boolean} fits
 * @param {Set<string>} folded names of blocks
 */
export function arrange(sites, fits, folded) {
  /** @type {Row[]} */
  const rows = [];
  /** @type {Block[]} */
  const blocks = [];
  sites.forEach((site, index) => {
    if (!fits(site)) return;
    const name = blockOf(site);
    let block = blocks.at(-1);
    if (!block || block.name !== name) {
      block = { name, first: rows.length, count: 0, folded: folded.has(name) };
      blocks.push(block);
    }
    if (block.folded && block.count) rows[block.first].sites.push(index);
    else {
      rows.push({ name: block.folded ? name : site, sites: [index], block: blocks.length - 1, folded: block.folded });
      block.count += 1;
    }
  });
  return { rows, blocks };
}
