/** Shows the sentence of an error on the node that ended with it, below the field that it is about. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeOfClass, widgetOf } from "./lib/graph.js";
import { said, say, unsay } from "./lib/sentence.js";
import { isOurs, mentioned, refusals, sentence } from "./lib/told.js";

const EVERY = 300; // milliseconds: the page has no event for what the server refuses, nor for all that changes a value

const shown = new Map(); // node -> the state that its sentence is about, and whether the server refused it
let refused = null;

/** The value of the widget that a sentence is about, or all that is set on the node and connected to it. */
function stateOf(node, widget) {
  if (widget) return widget.value;
  return JSON.stringify([node.widgets.map(({ value }) => value), node.inputs.map(({ link }) => link)]);
}

function show(id, comfyClass, text, widget, isRefusal = false) {
  const node = nodeOfClass(app.rootGraph ?? app.graph, id, comfyClass);
  if (!node || said(node, "wire")) return; // the wire's own mark says it
  const below = widget(node);
  say(node, "error", text, below);
  shown.set(node, { below, state: stateOf(node, below), isRefusal });
  if (node.graph !== app.canvas.graph) sayOutside(node, text);
}

/** On a subgraph's own node there is no place for words. */
function sayOutside({ title }, text) {
  app.extensionManager.toast.add({ severity: "error", summary: title, detail: text });
}

function hide(node) {
  unsay(node, "error");
  shown.delete(node);
}

const hideAll = () => [...shown.keys()].forEach(hide);
const hideRefusals = () => [...shown.keys()].filter((node) => shown.get(node).isRefusal).forEach(hide);

function showRefusals(errors) {
  for (const [id, node] of Object.entries(errors ?? {})) {
    const told = refusals(node);
    const text = told.map((refusal) => refusal.text).join("\n");
    if (told.length) show(id, node.class_type, text, (on) => widgetOf(on, told[0].input) ?? null, true);
  }
}

function watch() {
  for (const [node, { below, state }] of shown) if (stateOf(node, below) !== state) hide(node);
  if (app.lastNodeErrors === refused) return;
  refused = app.lastNodeErrors; // older pages set it anew after each run, too
  hideRefusals();
  showRefusals(refused);
}

app.registerExtension({
  name: "loraclr.node_errors",
  setup() {
    api.addEventListener("execution_start", hideAll);
    api.addEventListener("execution_error", ({ detail }) => {
      if (!isOurs(detail)) return;
      const text = sentence(detail);
      show(detail.node_id, detail.node_type, text, (node) => mentioned(text, node.widgets));
    });
    setInterval(watch, EVERY);
  },
});
