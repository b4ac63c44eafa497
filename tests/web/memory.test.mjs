import assert from "node:assert/strict";
import { test } from "node:test";
import { keep } from "../../web/lib/memory.js";

/** As a browser's storage. */
function storage() {
  const texts = new Map();
  return {
    getItem: (key) => texts.get(key) ?? null,
    setItem: (key, text) => texts.set(key, text),
    removeItem: (key) => texts.delete(key),
  };
}

test("the newest are kept, and what the page itself stores", () => {
  const tab = storage();
  tab.setItem("page", "mine");
  for (const key of ["a", "b", "a", "c"]) keep(tab, key, `${key} now`, 2);
  assert.deepEqual(["a", "b", "c", "page"].map(tab.getItem), ["a now", null, "c now", "mine"]);
});
