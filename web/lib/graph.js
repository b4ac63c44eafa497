/** Finding things in the page's graph. */
import { classWord, nameOf } from "./words.js";

export const CLORA = "LoRACLR_CLoRASampler";
export const CONCEPT = "LoRACLR_LoadConceptLoRA";
export const MERGE = "LoRACLR_Merge";
export const TRAIN = "LoRACLR_TrainConcept";

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
export const isLinked = (node, name) => node.inputs?.some((input) => input.widget?.name === name && input.link != null);
const [MUTED, BYPASSED] = [2, 4]; // litegraph's modes
const valueOf = (node, name) => String(widgetOf(node, name)?.value ?? "").trim();

/** The node that a message of the server is about; its id there has the subgraphs on the way to it: "5:12". */
export function nodeById(rootGraph, id) {
  const path = String(id).split(":");
  let graph = rootGraph;
  for (const part of path.slice(0, -1)) graph = graph?.getNodeById(Number(part))?.subgraph;
  return graph?.getNodeById(Number(path.at(-1))) ?? null;
}

/** The same where it is of this class: another workflow may have any node of that id. */
export function nodeOfClass(rootGraph, id, comfyClass) {
  const node = nodeById(rootGraph, id);
  return node?.comfyClass === comfyClass ? node : null;
}

/** The nodes of a graph and of the subgraphs in it. */
export function allNodes(graph) {
  return graph.nodes.flatMap((node) => [node, ...(node.subgraph ? allNodes(node.subgraph) : [])]);
}

/** Names of the concepts chained into a node's input, in their order; empty where they cannot be followed. */
export function conceptNames(node) {
  return conceptNodes(node).map(conceptName).filter(Boolean);
}

/** The nodes of the concepts that a run hands to a node's input, in their order. */
export function conceptNodes(node) {
  const nodes = chain(node);
  const active = nodes.slice(nodes.findLastIndex(({ mode }) => mode === MUTED) + 1); // a muted node hands nothing on
  return active.filter((from) => isConcept(from) && from.mode !== BYPASSED);
}

/** The same with those that are muted or bypassed now. */
export const chainedConcepts = (node) => chain(node).filter(isConcept);

/** Whether all concepts of a node are in sight: its chain leaves neither its graph nor the nodes known here. */
export function isFollowed(node) {
  const nodes = chain(node);
  const start = nodes[0] ?? node;
  return nodes.every((from) => isConcept(from) || from.type === "Reroute") && start.inputs?.[slotOf(start)]?.link == null;
}

/**
 * Whether what a node of a run has sent belongs to a node of this page: workflows share ids of nodes, and copies of a template
 * all ids. sent: as `source` in nodes/page.py makes it.
 */
export function isOf(node, sent, workflow) {
  if (sent.workflow && sent.workflow !== workflow) return false;
  const loaded = Object.values(sent.made_of).map(({ inputs }) => inputs.lora_name);
  const files = conceptNodes(node).filter((concept) => concept.comfyClass === CONCEPT);
  return files.every((concept) => isLinked(concept, "lora_name") || loaded.includes(valueOf(concept, "lora_name")));
}

/** The other concepts in the chains that a concept's node is in. */
export function siblings(concept) {
  const chains = (concept.graph?.nodes ?? []).map((node) => [...chainedConcepts(node), node]);
  const others = chains.filter((chain) => chain.includes(concept)).flat();
  return [...new Set(others)].filter((node) => node.comfyClass === CONCEPT && node !== concept);
}

/** As the node names it: its name, else after its class word, else after its trigger. A training's name is its file's. */
export function conceptName(node) {
  return (node.comfyClass !== TRAIN && valueOf(node, "name")) || nameOf(valueOf(node, "trigger"), conceptClassWord(node));
}

/** Its class word, else that of its trigger. */
export function conceptClassWord(node) {
  return valueOf(node, "class_word") || classWord(valueOf(node, "trigger"));
}

const isConcept = ({ comfyClass }) => comfyClass === CONCEPT || comfyClass === TRAIN;

/** The nodes chained into a node's input, in their order. */
function chain(node) {
  const nodes = [];
  for (let from = upstream(node); from && !nodes.includes(from); from = upstream(from)) nodes.unshift(from);
  return nodes;
}

function slotOf(node) {
  return node.inputs?.findIndex((input) => input.type === "LORACLR_CONCEPTS" || node.type === "Reroute") ?? -1;
}

function upstream(node) {
  const slot = slotOf(node);
  return slot < 0 ? null : node.getInputNode(slot);
}
