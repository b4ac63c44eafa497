import assert from "node:assert/strict";
import { test } from "node:test";
import { place, withoutGaps } from "../../web/lib/widgets.js";

test("holes are left out, empty values stay", () => {
  const values = ["a", null, "", 0, false];
  values[6] = "b";
  assert.deepEqual(withoutGaps(values), ["a", null, "", 0, false, "b"]);
});

test("a node saves its values without the placed widgets, after what others have added", () => {
  const [first, second, panel, fold] = [{ value: 1 }, { value: 2 }, { serialize: false }, { serialize: false }];
  const node = { widgets: [first, second, panel, fold], onSerialize: (saved) => (saved.other = true) };
  place(node, panel, 1);
  place(node, fold, 0);
  assert.deepEqual(node.widgets, [fold, first, panel, second]);
  const saved = { widgets_values: [] };
  node.widgets.forEach((widget, i) => {
    if (widget.serialize !== false) saved.widgets_values[i] = widget.value; // as the page does
  });
  node.onSerialize(saved);
  assert.deepEqual(saved, { widgets_values: [1, 2], other: true });
});

test("values that another pack saves as an object stay as they are", () => {
  const node = { widgets: [], onSerialize: (saved) => (saved.widgets_values = { seed: 1 }) };
  place(node, {}, 0);
  const saved = {};
  node.onSerialize(saved);
  assert.deepEqual(saved, { widgets_values: { seed: 1 } });
});
