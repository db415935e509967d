/** TensorBoard around the page: its theme, its address. In a report there is none, and the system's theme holds. */

const PREFIX = "p.gradlab.";

export class Host {
  /** @type {"light" | "dark"} */
  theme = "light";

  /** @param {() => void} onTheme called when the theme has changed */
  constructor(onTheme) {
    this.onTheme = onTheme;
  }

  begin() {
    const outer = this.#outer();
    const look = () => {
      const dark = outer ? outer.document.body.classList.contains("dark-mode") : matchMedia("(prefers-color-scheme: dark)").matches;
      const theme = dark ? "dark" : "light";
      if (theme !== this.theme || document.body.dataset.theme !== theme) {
        this.theme = theme;
        document.body.dataset.theme = theme;
        this.onTheme();
      }
    };
    if (outer) new outer.MutationObserver(look).observe(outer.document.body, { attributes: true, attributeFilter: ["class"] });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);
    look();
  }

  /** What the address says to this plugin: `#gradlab&p.gradlab.run=...`. @returns {Record<string, string>} */
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

  /** @param {Record<string, string>} values */
  setAddress(values) {
    const where = this.#outer() || window;
    const parts = Object.entries(values).map(([key, value]) => `${PREFIX}${key}=${encodeURIComponent(value)}`);
    const hash = [this.#outer() ? "gradlab" : "", ...parts].filter(Boolean).join("&");
    try {
      where.history.replaceState(where.history.state, "", `${where.location.pathname}${where.location.search}#${hash}`);
    } catch {
      // A page from a file may not change its address everywhere.
    }
  }

  /** Go to another tab of TensorBoard. @param {string} tab */
  open(tab) {
    const outer = this.#outer();
    if (outer) outer.location.hash = tab;
  }

  /** TensorBoard's own window, where this page is inside one. @returns {any} */
  #outer() {
    try {
      return window.parent !== window && window.parent.document.body ? window.parent : null;
    } catch {
      return null;
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
