/**
 * TensorBoard around the page: its theme, its address. In a report there is none, and the system's theme holds.
 *
 * @import { Theme } from "./colour.js"
 */

const PREFIX = "p.gradlab.";

export class Host {
  /** @type {Theme} */
  theme = "light";

  /** @param {() => void} onTheme called when the theme has changed */
  constructor(onTheme) {
    this.onTheme = onTheme;
  }

  /** Take over the theme, now and whenever it changes. */
  followTheme() {
    const outer = this.#outer();
    const system = matchMedia("(prefers-color-scheme: dark)");
    const follow = () => {
      const isDark = outer ? outer.document.body.classList.contains("dark-mode") : system.matches;
      const theme = isDark ? "dark" : "light";
      if (theme !== this.theme || document.body.dataset.theme !== theme) {
        this.theme = theme;
        document.body.dataset.theme = theme;
        this.onTheme();
      }
    };
    if (outer) {
      const changes = { attributes: true, attributeFilter: ["class"] };
      new outer.MutationObserver(follow).observe(outer.document.body, changes);
    }
    system.addEventListener("change", follow);
    follow();
  }

  /** What the address holds for this plugin: `#gradlab&p.gradlab.run=...`. */
  address() {
    const where = this.#outer() || window;
    /** @type {Record<string, string>} */
    const found = {};
    for (const part of where.location.hash.slice(1).split("&")) {
      const at = part.indexOf("=");
      if (at > 0 && part.startsWith(PREFIX)) found[part.slice(PREFIX.length, at)] = decode(part.slice(at + 1));
    }
    return found;
  }

  /** Put values into the address, without a new entry in the history. @param {Record<string, string>} values */
  setAddress(values) {
    const where = this.#outer() || window;
    const parts = Object.entries(values).map(([key, value]) => `${PREFIX}${key}=${encodeURIComponent(value)}`);
    const hash = [this.#outer() ? "gradlab" : "", ...parts].filter(Boolean).join("&");
    const { pathname, search } = where.location;
    try {
      where.history.replaceState(where.history.state, "", `${pathname}${search}#${hash}`);
    } catch {
      // Some browsers do not let a page from a file change its address.
    }
  }

  /** Go to another tab of TensorBoard. @param {string} tab */
  open(tab) {
    const outer = this.#outer();
    if (outer) outer.location.hash = tab;
  }

  /** TensorBoard's window, where the page is in a frame of it. */
  #outer() {
    const parent = /** @type {Window & typeof globalThis} */ (window.parent);
    try {
      return parent !== window && parent.document.body ? parent : null;
    } catch {
      return null; // A frame of another origin.
    }
  }
}

/** @param {string} text */
function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
