/** Panels among a node's widgets, and what they showed last. */
import "./style.js";
import { place } from "./widgets.js";

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

const keyOf = (node, kind) => `${kind} ${node.graph?.rootGraph?.id ?? node.graph?.id} ${node.id}`;

/** For this tab only: a page that is loaded again shows what it showed. */
export function remember(node, kind, data) {
  try {
    sessionStorage.setItem(keyOf(node, kind), JSON.stringify(data));
  } catch {
    // Full or forbidden: then it is not remembered.
  }
}

export function recall(node, kind) {
  try {
    return JSON.parse(sessionStorage.getItem(keyOf(node, kind)));
  } catch {
    return null;
  }
}
