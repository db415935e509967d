/**
 * Elements of the page. Text goes in as text: nothing here or elsewhere parses HTML.
 *
 * @typedef {string | number | Node | null | undefined | false} Child null, undefined and false are left out
 * @typedef {{[Name in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[Name]) => void}} Listeners
 * @typedef {{text?: string | number, on?: Listeners, style?: Record<string, string>} & Record<string, unknown>} Props
 *   `on` holds listeners, `style` CSS properties, `text` the text; the rest are attributes, left out where null,
 *   undefined or false
 * @typedef {{value: string, text: string, group?: string}} Option
 */

/**
 * An element.
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Props} [props]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  const { text, on = {}, style = {}, ...attributes } = props;
  if (text !== null && text !== undefined) node.textContent = String(text);
  for (const [event, listener] of Object.entries(on)) {
    node.addEventListener(event, /** @type {EventListener} */ (listener));
  }
  for (const [name, value] of Object.entries(style)) node.style.setProperty(name, value);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...nodes(children));
  return node;
}

/** Replace what is in `node`. @param {Element} node @param {...Child} children */
export function put(node, ...children) {
  node.replaceChildren(...nodes(children));
}

/** @param {Child[]} children @returns {(Node | string)[]} */
function nodes(children) {
  return children.flatMap((one) => {
    if (one === null || one === undefined || one === false) return [];
    return [one instanceof Node ? one : String(one)];
  });
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
 * @param {Option[]} options
 * @param {string} value
 * @param {(value: string) => void} onChange
 */
export function select(options, value, onChange) {
  const node = el("select", { on: { change: () => onChange(node.value) } });
  fillSelect(node, options, value);
  return node;
}

/** @param {HTMLSelectElement} node @param {Option[]} options @param {string} value */
export function fillSelect(node, options, value) {
  /** @type {Map<string, HTMLOptGroupElement>} */
  const groups = new Map();
  node.replaceChildren();
  for (const one of options) {
    const option = el("option", { value: one.value, text: one.text });
    if (!one.group) {
      node.append(option);
      continue;
    }
    let group = groups.get(one.group);
    if (!group) {
      group = node.appendChild(el("optgroup", { label: one.group }));
      groups.set(one.group, group);
    }
    group.append(option);
  }
  node.value = value;
}

/**
 * A sentence in place of a view that has nothing to show.
 * @param {string} title @param {string} text @param {...Child} more
 */
export function emptyState(title, text, ...more) {
  return el("div", { class: "empty" }, el("div", { class: "empty-title", text: title }), el("p", { text }), ...more);
}

/** The drawing context of a canvas. @param {HTMLCanvasElement} canvas */
export function context2d(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}

/**
 * Give a canvas a size in CSS pixels, sharp on every screen, and clear it.
 * @param {HTMLCanvasElement} canvas @param {number} width @param {number} height
 */
export function sizeCanvas(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = context2d(canvas);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** The value of a CSS variable of the page, such as a colour of the theme. @param {string} name */
export function cssVariable(name) {
  return getComputedStyle(document.body).getPropertyValue(name).trim();
}

/**
 * A function that calls `run` once, `wait` milliseconds after its own last call.
 * @param {() => void} run @param {number} wait
 */
export function debounced(run, wait) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = window.setTimeout(run, wait);
  };
}
