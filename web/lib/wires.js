/** Follows the graph's links, to find nodes that sample with CLoRA's conditioning on a model that is not CLoRA's. */
import { CLORA } from "./graph.js";

const [MUTED, BYPASSED] = [2, 4]; // litegraph's modes
const SUBGRAPH_INPUT = -10; // its id of the node inside a subgraph that stands for the subgraph's inputs
const SAMPLED = ["LATENT", "IMAGE", "GUIDER"];
const LONGEST = 1000; // steps along one wire: more is a circle

/** Where a wire cannot be followed, nothing is said about it. */
class Doubt extends Error {}

/** All nodes of a graph and of its subgraphs. */
export function allNodes(rootGraph) {
  const subgraphs = [...(rootGraph.subgraphs?.values() ?? [])];
  return [rootGraph, ...subgraphs].flatMap((graph) => graph.nodes);
}

/** One {node, sampler, conditioning, model} for each node that samples with a wrong model: it, the CLoRA sampler, and its inputs' names. */
export function wrongWires(nodes) {
  if (!nodes.some((node) => node.comfyClass === CLORA)) return [];
  return nodes.filter(samples).flatMap((node) => wrongWire(node, nodes) ?? []);
}

function wrongWire(node, nodes) {
  try {
    const models = linked(node, "MODEL");
    for (const slot of linked(node, "CONDITIONING")) {
      const sampler = conditioner(node, slot, nodes);
      if (!sampler || !models.length || models.some((model) => reaches(node, model, sampler, nodes))) continue;
      return { node, sampler, conditioning: nameOf(node.inputs[slot]), model: nameOf(node.inputs[models[0]]) };
    }
  } catch (error) {
    if (!(error instanceof Doubt)) throw error;
  }
  return null;
}

const nameOf = ({ label, localized_name, name }) => label || localized_name || name;

function samples(node) {
  const types = (node.outputs ?? []).map((output) => output.type);
  const hands = types.includes("MODEL") || types.includes("CONDITIONING"); // on, to nodes that may do anything
  return !node.subgraph && node.mode !== MUTED && node.mode !== BYPASSED && !hands && SAMPLED.some((type) => types.includes(type));
}

/** The slots of inputs of a type that something is connected to. */
function linked(node, type) {
  const slots = (node.inputs ?? []).map((_, slot) => slot);
  return slots.filter((slot) => node.inputs[slot].type === type && node.inputs[slot].link != null);
}

/** The CLoRA sampler whose conditioning comes to an input; null where it is another node's. */
function conditioner(node, slot, nodes, depth = 0) {
  const from = origin(node, slot, nodes, depth);
  if (!from || from.node.comfyClass === CLORA) return from?.node ?? null;
  const sources = passed(from).map((input) => conditioner(from.node, input, nodes, depth + 1));
  if (sources.some((source) => source !== sources[0])) throw new Doubt();
  return sources[0] ?? null;
}

/** The conditioning inputs that an output may hand on: where there are as many inputs as outputs, the one beside it. */
function passed({ node, slot }) {
  const outputs = node.outputs.map((_, place) => place).filter((place) => node.outputs[place].type === "CONDITIONING");
  const inputs = node.inputs.map((_, place) => place).filter((place) => node.inputs[place].type === "CONDITIONING");
  const beside = inputs.length === outputs.length ? [inputs[outputs.indexOf(slot)]] : inputs;
  return beside.filter((input) => node.inputs[input].link != null);
}

/** Whether anything of a node comes to an input, on whatever way. */
function reaches(node, slot, wanted, nodes, seen = new Set()) {
  const from = origin(node, slot, nodes);
  if (!from || seen.has(from.node)) return false;
  if (from.node === wanted) return true;
  seen.add(from.node);
  return (from.node.inputs ?? []).some(
    (input, place) => input.link != null && reaches(from.node, place, wanted, nodes, seen),
  );
}

/** The node, and its output slot, that feeds an input when the graph runs; null where nothing is connected. */
function origin(node, slot, nodes, depth = 0) {
  const id = node.inputs?.[slot]?.link;
  if (id == null) return null;
  return source(node.graph, node.graph.getLink(id), node.inputs[slot].type, nodes, depth);
}

function source(graph, link, type, nodes, depth) {
  if (!link || depth > LONGEST) throw new Doubt();
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const holders = nodes.filter((node) => node.subgraph === graph);
    if (holders.length !== 1) throw new Doubt(); // used in several places, with other wires
    return origin(holders[0], link.origin_slot, nodes, depth + 1);
  }
  const node = graph.getNodeById(link.origin_id);
  const slot = link.origin_slot;
  if (!node || node.mode === MUTED) throw new Doubt();
  if (node.mode === BYPASSED) return origin(node, bypass(node, slot, type), nodes, depth + 1);
  if (node.subgraph) {
    const [inner] = node.subgraph.outputs[slot]?.linkIds ?? [];
    const link = node.subgraph.getLink(inner);
    if (link && Number(link.origin_id) === SUBGRAPH_INPUT) return origin(node, link.origin_slot, nodes, depth + 1);
    return source(node.subgraph, link, type, nodes, depth + 1);
  }
  if (node.isVirtualNode) return source(graph, node.getInputLink?.(slot), type, nodes, depth + 1); // such as a reroute
  return { node, slot };
}

/** The input that a bypassed node's output stands for. */
function bypass(node, slot, type) {
  const fits = (input) => input?.type === type;
  const place = fits(node.inputs[slot]) ? slot : node.inputs.findIndex(fits);
  if (place < 0) throw new Doubt();
  return place;
}
