import assert from "node:assert/strict";
import { test } from "node:test";
import {
  allNodes,
  CONCEPT,
  chainedConcepts,
  conceptName,
  conceptNames,
  isFollowed,
  isOf,
  nodeById,
  nodeOfClass,
  siblings,
  TRAIN,
} from "../../web/lib/graph.js";

/** A node as litegraph has them, as far as these functions look. */
function node(values, from = null, type = CONCEPT) {
  const widgets = Object.entries(values).map(([name, value]) => ({ name, value }));
  const inputs = [{ type: type === "Reroute" ? "*" : "LORACLR_CONCEPTS", link: from && 1 }];
  return { type, comfyClass: type, widgets, inputs, getInputNode: () => from };
}

test("a concept is called by its name, its class word, or its trigger", () => {
  assert.equal(conceptName(node({ name: "tom", class_word: "cat", trigger: "sks cat" })), "tom");
  assert.equal(conceptName(node({ name: "", class_word: "cat", trigger: "sks kitten" })), "cat");
  assert.equal(conceptName(node({ name: "", class_word: "", trigger: "sks cat" })), "cat");
  assert.equal(conceptName(node({ name: "", class_word: "", trigger: "sks" })), "sks");
  assert.equal(conceptName(node({ name: "", class_word: "", trigger: "" })), "");
});

test("the chain is followed to its start, through reroutes, in its order", () => {
  const chain = node({ name: "dog" }, node({}, node({ name: "cat" }), "Reroute"));
  assert.deepEqual(conceptNames(node({}, chain, "LoRACLR_CLoRASampler")), ["cat", "dog"]);
  assert.deepEqual(conceptNames(node({}, null, "LoRACLR_CLoRASampler")), []);
});

test("a trained concept is in the chain, called by its class word: its name is its file's", () => {
  const trained = node({ name: "loraclr/{trigger}", class_word: "cat", trigger: "sks cat" }, node({ name: "dog" }), TRAIN);
  const sampler = node({}, trained, "LoRACLR_CLoRASampler");
  assert.deepEqual(conceptNames(sampler), ["dog", "cat"]);
  assert.ok(isOf(node({}, node({ class_word: "cat" }, null, TRAIN)), { workflow: "a", made_of: {} }, "a"), "it has no file");
});

test("ids lead through subgraphs", () => {
  const inner = { id: 12 };
  const subgraph = { getNodeById: (id) => (id === 12 ? inner : null) };
  const root = { getNodeById: (id) => (id === 5 ? { subgraph } : null) };
  assert.equal(nodeById(root, "5:12"), inner);
  assert.equal(nodeById(root, "5:13"), null);
  assert.equal(nodeById(root, "7:12"), null);
});

test("what another workflow's node with the same id has sent is told apart", () => {
  const view = node({}, node({ lora_name: "cat.safetensors" }), "LoRACLR_CLoRASampler");
  const sent = (workflow, file) => ({ workflow, made_of: { 1: { inputs: { lora_name: file } }, 2: { inputs: {} } } });
  assert.ok(isOf(view, sent("a", "cat.safetensors"), "a"));
  assert.ok(isOf(view, sent(null, "cat.safetensors"), "a"), "a run that no page has sent");
  assert.ok(!isOf(view, sent("b", "cat.safetensors"), "a"));
  assert.ok(!isOf(view, sent("a", "dog.safetensors"), "a"), "a copy of the same template");
});

test("a graph's nodes are also those of its subgraphs", () => {
  const inner = { id: 2 };
  const outer = { id: 1, subgraph: { nodes: [inner] } };
  assert.deepEqual(allNodes({ nodes: [outer] }), [outer, inner]);
});

test("siblings are the other concepts of a concept's chains, before and after it", () => {
  const [cat, stray] = [node({ name: "cat" }), node({ name: "stray" })];
  const dog = node({ name: "dog" }, cat);
  const sampler = node({}, dog, "LoRACLR_CLoRASampler");
  cat.graph = dog.graph = stray.graph = { nodes: [cat, dog, stray, sampler] };
  assert.deepEqual(siblings(cat), [dog]);
  assert.deepEqual(siblings(dog), [cat]);
  assert.deepEqual(siblings(stray), []);
  assert.deepEqual(siblings(node({})), []);
});

test("a bypassed concept takes no part, a muted one ends the chain, and prompts still follow their names", () => {
  const cat = node({ name: "cat", lora_name: "cat.safetensors" });
  const off = node({ name: "dog", lora_name: "dog.safetensors" }, cat);
  const sampler = node({}, off, "LoRACLR_CLoRASampler");
  const sent = { workflow: "a", made_of: { 1: { inputs: { lora_name: "cat.safetensors" } } } };
  assert.ok(!isOf(sampler, sent, "a"));
  off.mode = 4;
  assert.deepEqual(conceptNames(sampler), ["cat"]);
  assert.ok(isOf(sampler, sent, "a"), "the run never has the bypassed file");
  off.mode = 2;
  assert.deepEqual(conceptNames(sampler), []);
  assert.deepEqual(chainedConcepts(sampler), [cat, off]);
});

test("a chain that leaves its graph is not followed", () => {
  const sampler = (from) => node({}, from, "LoRACLR_CLoRASampler");
  assert.ok(isFollowed(sampler(null)));
  assert.ok(isFollowed(sampler(node({}, node({}, null, "Reroute")))));
  const inside = sampler(null);
  inside.inputs[0].link = 7; // the subgraph's own input: no node is there
  assert.ok(!isFollowed(inside));
  assert.ok(!isFollowed(sampler(node({}, null, "a subgraph's id"))));
});

test("an error's node is the one of its class", () => {
  const sampler = { comfyClass: "KSampler" };
  const root = { getNodeById: (id) => (id === 7 ? sampler : null) };
  assert.equal(nodeOfClass(root, "7", "KSampler"), sampler);
  assert.equal(nodeOfClass(root, "7", "LoRACLR_Merge"), null, "another workflow's");
  assert.equal(nodeOfClass(root, "8", "KSampler"), null);
});
