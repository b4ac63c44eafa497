import assert from "node:assert/strict";
import { test } from "node:test";
import { duration, smooth } from "../../web/lib/curves.js";

test("a smoothed curve begins at its first value and follows slowly", () => {
  const curve = smooth([4, 0, 0, 0], 1);
  assert.equal(curve[0], 4);
  assert.ok(Math.abs(curve[1] - 4 / 3) < 1e-9);
  assert.ok(curve[3] < curve[2] && curve[3] > 0);
});

test("equal values stay as they are, and gaps stay gaps", () => {
  assert.deepEqual(smooth([2, null, 2, 2]), [2, null, 2, 2]);
});

test("times are in the unit that one reads at a glance", () => {
  assert.deepEqual([41.6, 300, 7500].map(duration), ["42 s", "5 min", "2 h 5 min"]);
});
