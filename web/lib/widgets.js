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
    saved.widgets_values &&= withoutGaps(saved.widgets_values);
  };
}

/** The values of a sparse array: filtering leaves its holes out. */
export const withoutGaps = (values) => values.filter(() => true);

/** Gives a new node the height that its widgets need. A loaded one gets the size it was saved with. */
export function fitHeight(node) {
  node.setSize([node.size[0], node.computeSize()[1]]);
}
