/**
 * Elements of the page. Text goes in as text: nothing here or elsewhere parses HTML.
 * @typedef {string | number | Node | null | undefined | false} Child
 */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element.
 * @param {string} tag
 * @param {Record<string, any>} [props] `on` holds listeners, `style` properties, `text` the text; the rest are attributes.
 * @param {...Child} children
 * @returns {any}
 */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** An element of a drawing. @param {string} tag @param {Record<string, any>} [props] @param {...Child} children */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

/** @param {any} node @param {Record<string, any>} props @param {Child[]} children */
function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = String(value);
    else if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "style") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** Replace what is in `node`. @param {Element} node @param {...Child} children */
export function put(node, ...children) {
  node.replaceChildren(
    ...children.filter((one) => one !== null && one !== undefined && one !== false).map((one) => (one instanceof Node ? one : String(one))),
  );
}

let numControls = 0;

/**
 * A control with its label above it.
 * @param {string} label
 * @param {HTMLElement} control
 * @param {string} [extra] a class
 */
export function labelled(label, control, extra = "") {
  if (!control.id) control.id = `gl-control-${(numControls += 1)}`;
  return el("div", { class: `control ${extra}` }, el("label", { for: control.id, text: label }), control);
}

/**
 * A list to choose from.
 * @param {{value: string, text: string, group?: string}[]} options
 * @param {string} value
 * @param {(value: string) => void} onChange
 */
export function select(options, value, onChange) {
  const node = el("select", { on: { change: () => onChange(node.value) } });
  fillSelect(node, options, value);
  return node;
}

/** @param {HTMLSelectElement} node @param {{value: string, text: string, group?: string}[]} options @param {string} value */
export function fillSelect(node, options, value) {
  /** @type {Map<string, any>} */
  const groups = new Map();
  node.replaceChildren();
  for (const one of options) {
    const option = el("option", { value: one.value, text: one.text });
    if (!one.group) {
      node.append(option);
      continue;
    }
    if (!groups.has(one.group)) groups.set(one.group, node.appendChild(el("optgroup", { label: one.group })));
    groups.get(one.group).append(option);
  }
  node.value = value;
}

/** A sentence in place of a view that has nothing to show. @param {string} title @param {string} text @param {...Child} more */
export function empty(title, text, ...more) {
  return el("div", { class: "empty" }, el("div", { class: "empty-title", text: title }), el("p", { text }), ...more);
}

/** A canvas of a size in CSS pixels, sharp on every screen. @param {HTMLCanvasElement} canvas @param {number} width @param {number} height */
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** The value of a CSS variable of the page. @param {string} name */
export function token(name) {
  return getComputedStyle(document.body).getPropertyValue(name).trim();
}

/** A function that runs once, a little after the last call. @param {() => void} run @param {number} wait in milliseconds */
export function settled(run, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = window.setTimeout(run, wait);
  };
}
