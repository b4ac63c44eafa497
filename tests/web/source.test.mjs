import assert from "node:assert/strict";
import { test } from "node:test";
import { sourceOf } from "../../web/lib/source.js";

const prompt = {
  1: { class_type: "Checkpoint", inputs: { ckpt_name: "base" } },
  2: { class_type: "Concept", inputs: { lora_name: "cat", model: ["1", 0] } },
  3: { class_type: "Sampler", inputs: { model: ["1", 0], concepts: ["2", 0], strength: 0 } },
  4: { class_type: "Save", inputs: { images: ["3", 0], seed: 1 } },
};

/** The same graph with other ids. */
function renumbered(graph) {
  const link = (value) => (Array.isArray(value) ? [`7:${value[0]}`, value[1]] : value);
  const moved = ([id, { class_type, inputs }]) => [
    `7:${id}`,
    { class_type, inputs: Object.fromEntries(Object.entries(inputs).reverse().map(([name, value]) => [name, link(value)])) },
  ];
  return Object.fromEntries(Object.entries(graph).map(moved));
}

test("the same nodes, values and links are the same source under other ids", () => {
  assert.equal(sourceOf(prompt, "3"), sourceOf(renumbered(prompt), "7:3"));
});

test("what comes after a node is not part of its source", () => {
  const later = { ...prompt, 4: { class_type: "Save", inputs: { images: ["3", 0], seed: 2 } } };
  assert.equal(sourceOf(prompt, "3"), sourceOf(later, "3"));
});

test("another value, another link or another node upstream is another source", () => {
  const change = (id, inputs) => ({ ...prompt, [id]: { ...prompt[id], inputs: { ...prompt[id].inputs, ...inputs } } });
  for (const other of [change(2, { lora_name: "dog" }), change(3, { strength: 0.5 }), change(2, { model: ["1", 1] })]) {
    assert.notEqual(sourceOf(prompt, "3"), sourceOf(other, "3"));
  }
});

test("a node that reaches another by two ways is written once", () => {
  const chain = { 0: { class_type: "Loader", inputs: {} } };
  for (let id = 1; id < 60; id++) chain[id] = { class_type: "LoRA", inputs: { model: [`${id - 1}`, 0], clip: [`${id - 1}`, 1] } };
  assert.ok(sourceOf(chain, "59").length < 6000);
});

test("a node that is not in the prompt has no source", () => {
  assert.equal(sourceOf(prompt, "9"), "[]");
});
