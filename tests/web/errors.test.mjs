import assert from "node:assert/strict";
import { test } from "node:test";
import { bars, percent } from "../../web/lib/errors.js";

test("errors are shares of the plain model's", () => {
  assert.deepEqual(
    bars({ base: 4, sum: 3, merged: 1 }).map(({ share }) => share),
    [1, 0.75, 0.25],
  );
  assert.deepEqual(bars({}), []);
});

test("small shares keep a digit", () => {
  assert.equal(percent(0.034), "3.4 %");
  assert.equal(percent(0.5), "50 %");
});
