import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { classWord, nameOf, unlike } from "../../web/lib/words.js";

/** The tables that tests/core/test_words.py holds the server to. */
const table = (name) => JSON.parse(readFileSync(new URL(`../words/${name}.json`, import.meta.url), "utf-8"));

for (const { trigger, class_word, name } of table("triggers")) {
  test(`the class word and name of ${trigger}`, () => {
    assert.deepEqual([classWord(trigger), nameOf(trigger, classWord(trigger))], [class_word, name]);
  });
}

test("a name that is taken gets the first number that is free", () => {
  assert.equal(unlike("cat", ["cat"]), "cat 2");
  assert.equal(unlike("cat", ["cat", "cat 2", "cat 4"]), "cat 3");
});
