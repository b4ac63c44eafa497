import assert from "node:assert/strict";
import { test } from "node:test";
import { choiceProblems, completed, negativeProblems, offers, problems, renamed, togetherProblems, typing } from "../../web/lib/prompt.js";

test("a prompt that names every concept has no problems", () => {
  assert.deepEqual(problems("a photo of {cat} and { dog }", ["cat", "dog"]), []);
});

test("unknown names, stray braces and missing concepts are told", () => {
  assert.match(problems("{dgo} and {cat}", ["cat", "dog"]).join(" "), /\{dgo\}.*\{cat\}, \{dog\}.*Not in the prompt yet: \{dog\}/);
  assert.match(problems("{cat", ["cat"])[0], /partner/);
  assert.match(problems("{cat}", [])[0], /none yet/);
});

test("a prompt that chooses concepts may leave some out, or be empty, but must name one", () => {
  const names = ["cat", "dog"];
  assert.deepEqual(choiceProblems(" ", names), []);
  assert.deepEqual(choiceProblems("a {dog}", names), []);
  assert.match(choiceProblems("a dog", names)[0], /Names no concept.*\{cat\}, \{dog\}/);
  assert.match(choiceProblems("{dgo}", names).join(" "), /^No concept is called \{dgo\}\. There are: \{cat\}, \{dog\}\.$/);
});

test("every line about pictures of several concepts must name one", () => {
  const names = ["cat", "dog"];
  assert.deepEqual(togetherProblems("", names), []);
  assert.deepEqual(togetherProblems("{cat} and {dog}\n\na {dog}", names), []);
  assert.match(togetherProblems("{cat} and {dog}\na park", names)[0], /“a park” names no concept.*\{cat\}, \{dog\}/);
  assert.match(togetherProblems("{dgo}", names)[0], /No concept is called \{dgo\}/);
});

test("typing starts at an open brace and ends at a closed one", () => {
  assert.deepEqual(typing("a {ca", 5), { start: 3, typed: "ca" });
  assert.deepEqual(typing("a {", 3), { start: 3, typed: "" });
  assert.equal(typing("a {cat} b", 9), null);
  assert.equal(typing("a cat", 5), null);
});

test("offers go on from what is typed, whatever its case", () => {
  assert.deepEqual(offers("c", ["Cat", "dog", "cow"]), ["Cat", "cow"]);
  assert.deepEqual(offers("", ["cat", "dog"]), ["cat", "dog"]);
});

test("completing closes the brace once and leaves the rest", () => {
  assert.deepEqual(completed("a {c in snow", 4, "cat"), { text: "a {cat} in snow", caret: 7 });
  assert.deepEqual(completed("a {c} in snow", 4, "cat"), { text: "a {cat} in snow", caret: 7 });
  assert.deepEqual(completed("a {do and {cat}", 5, "dog"), { text: "a {dog} and {cat}", caret: 7 });
});

test("escaped braces are braces", () => {
  assert.deepEqual(problems(String.raw`\{"a": "{cat}"\}`, ["cat"]), []);
  assert.equal(typing(String.raw`a \{ca`, 6), null);
});

test("a negative prompt names no concept, and its other braces are told", () => {
  assert.deepEqual(negativeProblems(String.raw`blurry, \{cat\}`, ["cat"]), []);
  assert.match(negativeProblems("{ Cat }", ["cat"])[0], /cannot name \{ Cat \}: write plain words/);
  assert.match(negativeProblems("{a|b}", ["cat"])[0], /\{a\|b\} is taken as it stands/);
});

test("a concept's new name takes the old one's place in braces, and nowhere else", () => {
  assert.equal(renamed("a cat, {cat} and { cat }, {cat 2} and \\{cat\\}", "cat", "tom"), "a cat, {tom} and {tom}, {cat 2} and \\{cat\\}");
  assert.equal(renamed("{cat}", "cat", "$&"), "{$&}");
});

test("nothing is completed where the caret has left the brace", () => {
  assert.equal(completed("a {c", 2, "cat"), null);
});
