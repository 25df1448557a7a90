// Computes large layouts on a thread of its own, so that the page answers meanwhile.

import { layout } from "./layout.js";

addEventListener("message", ({ data: { number, nodes, edges } }) => {
  postMessage({ number, ...layout(nodes, edges) });
});
