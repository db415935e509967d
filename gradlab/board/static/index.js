/** The entry: TensorBoard's plugin page imports this module and calls `render`. Everything is asked for at once. */

const MODULES = ["app", "chart", "colour", "dom", "findings", "flow", "format", "heat", "host", "jacobian", "layer", "legend", "metric", "profile", "runs", "sites", "source", "stepaxis"];

export async function render() {
  const early = { index: fetch("./index?") };
  const style = document.createElement("link");
  style.rel = "stylesheet";
  style.href = "./static/style.css";
  const styled = new Promise((resolve) => (style.onload = style.onerror = resolve));
  document.head.append(style);
  for (const name of MODULES) {
    const link = document.createElement("link");
    link.rel = "modulepreload";
    link.href = `./static/${name}.js`;
    document.head.append(link);
  }
  document.documentElement.lang = "en";
  const [{ App }, { HttpSource }] = await Promise.all([import("./app.js"), import("./source.js"), styled]);
  new App(new HttpSource(early), document.body).start();
}
