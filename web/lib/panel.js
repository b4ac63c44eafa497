/** Panels below a node's widgets, and what they showed last. */
import "./style.js";

/**
 * Adds an element below a node's widgets, closed until it is opened for the first time.
 * It is neither saved with the workflow nor sent with the prompt.
 */
export function addPanel(node, name, element, height) {
  let shown = false;
  const widget = node.addDOMWidget(name, "loraclr", element, {
    serialize: false,
    getMinHeight: () => (shown ? height : 0),
    getMaxHeight: () => (shown ? Infinity : 0),
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  element.style.visibility = "hidden";
  return {
    open() {
      if (shown) return;
      shown = true;
      element.style.visibility = "";
      const [width, needed] = node.computeSize();
      node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], needed)]);
      node.setDirtyCanvas?.(true, true);
    },
  };
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
