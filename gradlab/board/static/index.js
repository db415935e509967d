/**
 * The entry: TensorBoard's plugin page imports this module and calls `render`.
 *
 * `source` brings the server's answers, `app` holds the page and the user's choice (`choice`), and each view is a
 * module with its parts beside it: `flow` (with `heat`), `layer`, `jacobian`, `profile`, `runs`. What they share:
 * `metric`, `scalars`, `sites` and `site_metrics` know what the data means; `dom`, `chart`, `colour`, `legend`,
 * `stepaxis` and `format` how it looks. A report begins at `report` instead.
 */

/** All other modules of the page, which the browser fetches at once instead of import by import. */
const MODULES = [
  "app", "chart", "choice", "colour", "dom", "findings", "flow", "flow_controls", "flow_input", "flow_labels",
  "flow_side", "flow_strips", "format", "heat", "heat_table", "host", "jacobian", "jacobian_charts",
  "jacobian_matrix", "layer", "layer_panels", "legend", "metric", "profile", "profile_modules", "profile_steps",
  "profile_window", "runs", "scalars", "site_metrics", "sites", "source", "stepaxis",
];

export async function render() {
  const early = { index: fetch("./index?") };
  const style = link({ rel: "stylesheet", href: "./static/style.css" });
  const styled = new Promise((resolve) => (style.onload = style.onerror = resolve));
  document.head.append(style, ...MODULES.map((name) => link({ rel: "modulepreload", href: `./static/${name}.js` })));
  document.documentElement.lang = "en";
  const [{ App }, { HttpSource }] = await Promise.all([import("./app.js"), import("./source.js"), styled]);
  new App(new HttpSource(early), document.body).start();
}

/** @param {{rel: string, href: string}} attributes */
function link(attributes) {
  return Object.assign(document.createElement("link"), attributes);
}
