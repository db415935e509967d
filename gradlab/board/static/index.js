/** The entry: TensorBoard's plugin page imports this module and calls `render`. */

import { App } from "./app.js";
import { HttpSource } from "./source.js";

export function render() {
  const style = document.createElement("link");
  style.rel = "stylesheet";
  style.href = "./static/style.css";
  document.head.append(style);
  document.documentElement.lang = "en";
  const app = new App(new HttpSource(), document.body);
  style.addEventListener("load", () => app.resize());
  app.start();
}
