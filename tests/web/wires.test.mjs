import assert from "node:assert/strict";
import { test } from "node:test";
import { CLORA } from "../../web/lib/graph.js";
import { allNodes, wrongWires } from "../../web/lib/wires.js";

const [MODEL, CONDITIONING, LATENT] = ["MODEL", "CONDITIONING", "LATENT"];

/** A graph as litegraph has them, as far as these functions look. */
class Graph {
  constructor() {
    this.nodes = [];
    this.links = [];
    this.subgraphs = new Map();
  }

  add(comfyClass, inputs, outputs, more = {}) {
    const slot = (type) => ({ type, name: type.toLowerCase(), link: null });
    const node = { id: this.nodes.length, comfyClass, title: comfyClass, mode: 0, graph: this, ...more };
    Object.assign(node, { inputs: inputs.map(slot), outputs: outputs.map(slot) });
    this.nodes.push(node);
    return node;
  }

  connect(from, output, to, input) {
    this.links.push({ origin_id: from.id, origin_slot: output });
    to.inputs[input].link = this.links.length - 1;
  }

  getLink = (id) => this.links[id];
  getNodeById = (id) => this.nodes.find((node) => node.id === id);
}

/** A checkpoint, CLoRA and a sampler with CLoRA's conditioning; its model is not connected. */
function graphOf() {
  const graph = new Graph();
  const checkpoint = graph.add("CheckpointLoaderSimple", [], [MODEL, "CLIP"]);
  const clora = graph.add(CLORA, [MODEL, "CLIP"], [MODEL, CONDITIONING, CONDITIONING]);
  const sampler = graph.add("KSampler", [MODEL, CONDITIONING, CONDITIONING], [LATENT]);
  graph.connect(checkpoint, 0, clora, 0);
  graph.connect(clora, 1, sampler, 1);
  graph.connect(clora, 2, sampler, 2);
  return { graph, checkpoint, clora, sampler };
}

const wrong = (graph) => wrongWires(allNodes(graph)).map(({ node }) => node);

test("a sampler with the checkpoint's model is found, with the names to say", () => {
  const { graph, checkpoint, clora, sampler } = graphOf();
  graph.connect(checkpoint, 0, sampler, 0);
  const [{ node, ...words }] = wrongWires(allNodes(graph));
  assert.equal(node, sampler);
  assert.deepEqual(words, { sampler: clora, conditioning: "conditioning", model: "model" });
});

test("the right wire, and no wire, are not", () => {
  const { graph, clora, sampler } = graphOf();
  assert.deepEqual(wrong(graph), []);
  graph.connect(clora, 0, sampler, 0);
  assert.deepEqual(wrong(graph), []);
});

test("a node that changes the model on the way is followed", () => {
  for (const first of ["checkpoint", "clora"]) {
    const { graph, sampler, ...nodes } = graphOf();
    const lora = graph.add("LoraLoaderModelOnly", [MODEL], [MODEL]);
    graph.connect(nodes[first], 0, lora, 0);
    graph.connect(lora, 0, sampler, 0);
    assert.deepEqual(wrong(graph), first === "clora" ? [] : [sampler]);
  }
});

test("the model of another CLoRA sampler is wrong", () => {
  const { graph, checkpoint, sampler } = graphOf();
  const other = graph.add(CLORA, [MODEL, "CLIP"], [MODEL, CONDITIONING, CONDITIONING]);
  graph.connect(checkpoint, 0, other, 0);
  graph.connect(other, 0, sampler, 0);
  assert.deepEqual(wrong(graph), [sampler]);
});

test("conditioning is followed through nodes with one of it, or with as many inputs as outputs", () => {
  const { graph, checkpoint, clora, sampler } = graphOf();
  const text = graph.add("CLIPTextEncode", ["CLIP"], [CONDITIONING]);
  const mask = graph.add("ConditioningSetMask", [CONDITIONING, "MASK"], [CONDITIONING]);
  const control = graph.add("ControlNetApplyAdvanced", [CONDITIONING, CONDITIONING], [CONDITIONING, CONDITIONING]);
  graph.connect(checkpoint, 0, sampler, 0);
  graph.connect(clora, 1, mask, 0);
  graph.connect(text, 0, control, 0);
  graph.connect(mask, 0, control, 1);
  graph.connect(text, 0, sampler, 1);
  graph.connect(control, 0, sampler, 2);
  assert.deepEqual(wrong(graph), []);
  graph.connect(control, 1, sampler, 2);
  assert.deepEqual(wrong(graph), [sampler]);
});

test("nothing is said of what a mix or a switch gives", () => {
  const { graph, checkpoint, clora, sampler } = graphOf();
  const text = graph.add("CLIPTextEncode", ["CLIP"], [CONDITIONING]);
  const either = graph.add("Switch", [CONDITIONING, CONDITIONING], [CONDITIONING]);
  graph.connect(checkpoint, 0, sampler, 0);
  graph.connect(clora, 1, either, 0);
  graph.connect(text, 0, either, 1);
  graph.connect(either, 0, sampler, 1);
  graph.connect(either, 0, sampler, 2);
  assert.deepEqual(wrong(graph), []);
  graph.connect(clora, 2, either, 1);
  assert.deepEqual(wrong(graph), [sampler]);
});

test("nothing is said where the model may come in a pipe, or out of a virtual node that does not tell", () => {
  const piped = graphOf();
  const [pack, unpack] = [
    piped.graph.add("ToBasicPipe", [MODEL], ["BASIC_PIPE"]),
    piped.graph.add("FromBasicPipe", ["BASIC_PIPE"], [MODEL]),
  ];
  piped.graph.connect(piped.clora, 0, pack, 0);
  piped.graph.connect(pack, 0, unpack, 0);
  piped.graph.connect(unpack, 0, piped.sampler, 0);
  assert.deepEqual(wrong(piped.graph), []);
  const { graph, sampler } = graphOf();
  const get = graph.add(undefined, [], ["*"], { isVirtualNode: true });
  graph.connect(get, 0, sampler, 0);
  assert.deepEqual(wrong(graph), []);
});

test("a node that hands model or conditioning on, or gives no picture, does not count as one that samples", () => {
  for (const outputs of [[MODEL, LATENT], [CONDITIONING, LATENT], ["BASIC_PIPE"]]) {
    const { graph, checkpoint, clora } = graphOf();
    const node = graph.add("Other", [MODEL, CONDITIONING], outputs);
    graph.connect(checkpoint, 0, node, 0);
    graph.connect(clora, 1, node, 1);
    assert.deepEqual(wrong(graph), []);
  }
});

test("reroutes and bypassed nodes are wires; muted ones say nothing", () => {
  for (const [mode, expected] of [[0, 1], [4, 1], [2, 0]]) {
    const { graph, checkpoint, clora, sampler } = graphOf();
    const reroute = graph.add(undefined, ["*"], ["*"], { isVirtualNode: true });
    reroute.getInputLink = (slot) => graph.getLink(reroute.inputs[slot].link);
    const mask = graph.add("ConditioningSetMask", ["MASK", CONDITIONING], [CONDITIONING], { mode });
    graph.connect(checkpoint, 0, reroute, 0);
    graph.connect(reroute, 0, sampler, 0);
    graph.connect(clora, 1, mask, 1);
    graph.connect(mask, 0, sampler, 1);
    graph.connect(mask, 0, sampler, 2);
    assert.equal(wrong(graph).length, expected);
  }
});

test("a bypassed or muted sampler does not sample", () => {
  for (const mode of [2, 4]) {
    const { graph, checkpoint, sampler } = graphOf();
    graph.connect(checkpoint, 0, sampler, 0);
    sampler.mode = mode;
    assert.deepEqual(wrong(graph), []);
  }
});

test("wires are followed into subgraphs and out of them", () => {
  for (const right of [false, true]) {
    const { graph, checkpoint, clora, sampler } = graphOf();
    const inner = new Graph();
    const lora = inner.add("LoraLoaderModelOnly", [MODEL], [MODEL], { id: 7 });
    inner.links.push({ origin_id: -10, origin_slot: 0 }, { origin_id: 7, origin_slot: 0 });
    lora.inputs[0].link = 0;
    inner.outputs = [{ linkIds: [1] }];
    const holder = graph.add("uuid", [MODEL], [MODEL], { subgraph: inner });
    graph.subgraphs.set("uuid", inner);
    graph.connect(right ? clora : checkpoint, 0, holder, 0);
    graph.connect(holder, 0, sampler, 0);
    assert.deepEqual(wrong(graph), right ? [] : [sampler]);
  }
});

test("a subgraph used twice has other wires each time: nothing is said of what is inside", () => {
  const { graph, checkpoint, clora } = graphOf();
  const inner = new Graph();
  const sampler = inner.add("KSampler", [MODEL, CONDITIONING], [LATENT], { id: 7 });
  inner.links.push({ origin_id: -10, origin_slot: 0 }, { origin_id: -10, origin_slot: 1 });
  sampler.inputs.forEach((input, slot) => (input.link = slot));
  graph.subgraphs.set("uuid", inner);
  for (const expected of [[sampler], []]) {
    const holder = graph.add("uuid", [MODEL, CONDITIONING], [LATENT], { subgraph: inner });
    graph.connect(checkpoint, 0, holder, 0);
    graph.connect(clora, 1, holder, 1);
    assert.deepEqual(wrong(graph), expected);
  }
});

test("a circle of wires ends", () => {
  const { graph, checkpoint, sampler } = graphOf();
  const mask = graph.add("ConditioningSetMask", [CONDITIONING], [CONDITIONING]);
  graph.connect(checkpoint, 0, sampler, 0);
  graph.connect(mask, 0, mask, 0);
  graph.connect(mask, 0, sampler, 1);
  graph.connect(mask, 0, sampler, 2);
  assert.deepEqual(wrong(graph), []);
});
