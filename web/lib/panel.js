/** Panels among a node's widgets, and what they showed last. */
import { app } from "../../../scripts/app.js";
import { nodeById } from "./graph.js";
import { keep } from "./memory.js";
import { sourceOf } from "./source.js";
import "./style.js";
import { place } from "./widgets.js";

export const LAST_RUN = "last run";
const MARGIN = 10; // around an element on the classic canvas

/**
 * Adds an element to a node's widgets, at the end or below one of them, drawn at any zoom. It takes part in neither the saved
 * workflow nor the prompt. isOn: whether it takes any room.
 */
export function addPanel(node, name, element, { height, below, isOn = () => true }) {
  const widget = node.addDOMWidget(name, "loraclr", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => (isOn() ? height : 0),
    getMaxHeight: () => (isOn() ? Infinity : 0),
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  element.style.minHeight = `${height - 2 * MARGIN}px`;
  if (below) place(node, widget, node.widgets.indexOf(below) + 1);
  return widget;
}

const keyOf = (node, kind) => [kind, app.rootGraph?.id, node.graph?.id, node.id].join(" ");

/** For this tab only: a page that is loaded again shows what it showed. data.made_of: the prompt that led to it. */
export function remember(node, kind, data) {
  try {
    keep(sessionStorage, keyOf(node, kind), JSON.stringify(data));
  } catch {
    // Full or forbidden: then it is not remembered.
  }
}

/**
 * What a node showed last, where its graph would make the same again; or null. All copies of a template have the same ids:
 * what was made of other concepts stays hidden.
 */
export async function recall(node, kind) {
  try {
    return await recalled(node, kind);
  } catch {
    return null; // Forbidden, or the page cannot make a prompt of this graph: then nothing is shown.
  }
}

async function recalled(node, kind) {
  const text = sessionStorage.getItem(keyOf(node, kind));
  if (!text) return null;
  const data = JSON.parse(text);
  const { output } = await promptOfPage();
  const ids = Object.keys(output).filter((id) => nodeById(app.rootGraph ?? app.graph, id) === node);
  return ids.some((id) => sourceOf(output, id) === sourceOf(data.made_of ?? {}, data.node)) ? data : null;
}

let asked = null;

/** What the page would send to the server now; asked for once by all nodes of a workflow that has just been loaded. */
function promptOfPage() {
  asked ??= new Promise((resolve) => setTimeout(resolve)).then(() => {
    asked = null;
    return app.graphToPrompt();
  });
  return asked;
}
