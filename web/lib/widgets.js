/** Widgets of the page's own among those of a node's inputs. */

const saveDensely = new WeakSet();

/**
 * Moves an unsaved widget to a place among the others. The page saves a gap for it but reads values without gaps: they are
 * saved without, so that they stay in the order of the node's inputs, with and without this widget.
 */
export function place(node, widget, index) {
  const others = node.widgets.filter((each) => each !== widget);
  node.widgets = [...others.slice(0, index), widget, ...others.slice(index)];
  if (saveDensely.has(node)) return;
  saveDensely.add(node);
  const serialized = node.onSerialize;
  node.onSerialize = function (saved) {
    serialized?.apply(this, arguments);
    if (Array.isArray(saved.widgets_values)) saved.widgets_values = withoutGaps(saved.widgets_values); // some packs' is an object
  };
}

/** The values of a sparse array: filtering leaves its holes out. */
export const withoutGaps = (values) => values.filter(() => true);

/** Gives a new node the height that its widgets need. A loaded one gets the size it was saved with. */
export function fitHeight(node) {
  node.setSize([node.size[0], node.computeSize()[1]]);
}

/** Runs after each of a node's inputs that the user sets or links. */
export function watch(node, react) {
  for (const widget of node.widgets) {
    const { callback } = widget;
    widget.callback = function () {
      const result = callback?.apply(this, arguments);
      react();
      return result;
    };
  }
  const connected = node.onConnectionsChange;
  node.onConnectionsChange = function () {
    connected?.apply(this, arguments);
    react();
  };
}

/** Shows a hint in a text widget while it is empty: as the placeholder of Nodes 2.0's field, in brackets on the classic canvas. */
export function showWhenEmpty(widget, hint) {
  Object.defineProperty(widget.options, "placeholder", { get: hint, enumerable: true });
  Object.defineProperty(widget, "_displayValue", {
    get: () => (widget.computedDisabled ? "" : String(widget.value ?? "") || `(${hint()})`),
  });
}
