/** Sentences on any node: below the widget they are about, or below all. Neither saved nor sent with the prompt. */
import "./style.js";
import { place } from "./widgets.js";

const MARGIN = 4;
const lines = new WeakMap(); // node -> Map of kind -> line

/** Shows a sentence on a node in place of the former one of this kind. below: the widget that it is about, if any. */
export function say(node, kind, text, below = null) {
  const line = lineOf(node, kind);
  if (line.text === text && line.below === below) return;
  unsay(node, kind);
  Object.assign(line, { text, below });
  line.widget.element.textContent = text;
  line.widget.hidden = false;
  place(node, line.widget, node.widgets.indexOf(below) + 1 || node.widgets.length);
  const before = node.size[1];
  resize(node, Math.max(before, node.computeSize()[1]));
  line.grown = node.size[1] - before;
}

export function unsay(node, kind) {
  const line = lines.get(node)?.get(kind);
  if (!line?.text) return;
  line.text = "";
  line.widget.hidden = true;
  node.widgets = node.widgets.filter((widget) => widget !== line.widget); // another extension may have taken it out
  resize(node, node.size[1] - line.grown);
}

/** What is said on a node now; empty where nothing of this kind is. */
export const said = (node, kind) => lines.get(node)?.get(kind)?.text ?? "";

/** Not in Nodes 2.0, which measures its nodes by itself. */
function resize(node, height) {
  if (!node.graph) return; // it was deleted
  if (!globalThis.LiteGraph?.vueNodesMode) node.setSize([node.size[0], height]);
  node.setDirtyCanvas?.(true, true);
}

function lineOf(node, kind) {
  if (!lines.has(node)) lines.set(node, new Map());
  const kinds = lines.get(node);
  if (!kinds.has(kind)) kinds.set(kind, { text: "", below: null, grown: 0, widget: addWidget(node, kind) });
  return kinds.get(kind);
}

/** A widget of the node that waits outside of its list until it is shown. */
function addWidget(node, kind) {
  const element = document.createElement("div");
  element.className = `loraclr-sentence loraclr-${kind}`;
  element.setAttribute("role", "alert");
  const options = { serialize: false, hideOnZoom: false, margin: MARGIN, getValue: () => "", setValue: () => {} };
  const widget = node.addDOMWidget(`loraclr_${kind}`, "loraclr", element, options);
  widget.serialize = false;
  widget.hidden = true;
  widget.computeLayoutSize = undefined; // it would take its share of the node's free room
  widget.computeSize = (width = node.size[0]) => [0, heightOf(element, width - 2 * MARGIN) + 2 * MARGIN];
  node.widgets.splice(node.widgets.indexOf(widget), 1);
  return widget;
}

function heightOf(element, width) {
  const probe = element.cloneNode(true);
  Object.assign(probe.style, { position: "absolute", visibility: "hidden", height: "auto", width: `${width}px` });
  document.body.append(probe);
  const height = probe.offsetHeight;
  probe.remove();
  return height;
}
