/**
 * Colour maps, computed from paths through OKLCH (Ottosson, 2020): lightness rises evenly, so that order is seen in
 * grey and by colour-blind readers too. Values that are not finite have a colour that no map holds.
 *
 * @typedef {"light" | "dark"} Theme
 * @typedef {{nonfinite: string, zero: string, absent: string}} Special colours that are not on a map, as CSS has them
 * @typedef {{range: [number, number], ends: [number, number], middle: number, css: Special}} Lightness of the maps of a
 *   theme: of the sequential one from low to high, of the diverging one at both ends and in the middle
 * @typedef {{sequential: Uint32Array, diverging: Uint32Array, nonfinite: number, zero: number, absent: number,
 *   css: Special}} Palette maps of 256 colours; numbers are pixels of a canvas, 0xAABBGGRR
 */

/**
 * Points on the sequential map at equal distances, chroma and hue in degrees: violet, blue, teal, green, yellow.
 * @type {[number, number][]}
 */
const SEQUENTIAL = [
  [0.1, 305],
  [0.13, 285],
  [0.115, 255],
  [0.1, 215],
  [0.12, 170],
  [0.165, 125],
  [0.15, 102],
];

/** @type {Record<Theme, Lightness>} */
const THEMES = {
  light: {
    range: [0.24, 0.93],
    ends: [0.44, 0.6],
    middle: 0.965,
    css: { nonfinite: "#f0146e", zero: "#b4bac4", absent: "#f1f3f6" },
  },
  dark: {
    range: [0.3, 0.95],
    ends: [0.74, 0.8],
    middle: 0.3,
    css: { nonfinite: "#ff3d8b", zero: "#6c737f", absent: "#2a2d32" },
  },
};

/** @type {Map<string, Palette>} */
const made = new Map();

/** The colours of a theme, computed once. @param {Theme} theme @returns {Palette} */
export function palette(theme) {
  const known = made.get(theme);
  if (known) return known;
  const { range, ends, middle, css } = THEMES[theme];
  const sequential = new Uint32Array(256);
  const diverging = new Uint32Array(256);
  for (let i = 0; i < 256; i += 1) {
    const [chroma, hue] = along(SEQUENTIAL, i / 255);
    sequential[i] = oklch(range[0] + (i / 255) * (range[1] - range[0]), chroma, hue);
    const side = i / 127.5 - 1;
    const far = Math.abs(side);
    const end = side < 0 ? ends[0] : ends[1];
    diverging[i] = oklch(middle + (end - middle) * far, 0.155 * Math.pow(far, 0.8), side < 0 ? 255 : 52);
  }
  const [nonfinite, zero, absent] = [css.nonfinite, css.zero, css.absent].map(pixel);
  const found = { sequential, diverging, nonfinite, zero, absent, css };
  made.set(theme, found);
  return found;
}

/** Lines that colour-blind readers can tell apart (Okabe and Ito, 2008), the yellow darkened to be seen on white. */
export const LINES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#7f5fc0", "#6b7280"];
export const DARK_LINES = ["#56b4e9", "#ff9a4d", "#3ecf9e", "#e79bc7", "#9ad1f5", "#f0e442", "#b7a0f0", "#b8bec8"];

/** A pixel's colour as CSS has it. @param {number} value */
export function css(value) {
  return `rgb(${value & 255} ${(value >> 8) & 255} ${(value >> 16) & 255})`;
}

/** A map as a CSS gradient. @param {Uint32Array} map @param {string} [direction] */
export function gradient(map, direction = "to right") {
  const stops = Array.from({ length: 33 }, (_, i) => css(map[Math.round((i * 255) / 32)]));
  return `linear-gradient(${direction}, ${stops.join(", ")})`;
}

/**
 * What a path has at a place from 0 to 1, linear between its points.
 * @param {[number, number][]} path @param {number} at
 */
function along(path, at) {
  const place = at * (path.length - 1);
  const low = Math.min(Math.floor(place), path.length - 2);
  const share = place - low;
  const mix = (/** @type {0 | 1} */ i) => path[low][i] * (1 - share) + path[low + 1][i] * share;
  return [mix(0), mix(1)];
}

/**
 * The pixel of a colour; of one that sRGB does not have, with as much chroma as it can have.
 * @param {number} lightness @param {number} chroma @param {number} hue
 */
function oklch(lightness, chroma, hue) {
  for (let c = chroma; c >= 0; c -= 0.004) {
    const rgb = linear(lightness, c, (hue * Math.PI) / 180);
    if (rgb.every((one) => one >= -1e-4 && one <= 1.0001)) {
      const [r, g, b] = rgb.map((one) => Math.round(255 * encoded(Math.min(1, Math.max(0, one)))));
      return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    }
  }
  const grey = Math.round(255 * encoded(lightness ** 3));
  return ((255 << 24) | (grey << 16) | (grey << 8) | grey) >>> 0;
}

/** Linear RGB of OKLCH; the hue in radians. @param {number} lightness @param {number} c @param {number} h */
function linear(lightness, c, h) {
  const [a, b] = [c * Math.cos(h), c * Math.sin(h)];
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
}

/** sRGB's transfer function. @param {number} one */
function encoded(one) {
  return one <= 0.0031308 ? 12.92 * one : 1.055 * one ** (1 / 2.4) - 0.055;
}

/** @param {string} hex */
function pixel(hex) {
  const value = Number.parseInt(hex.slice(1), 16);
  return ((255 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
}
