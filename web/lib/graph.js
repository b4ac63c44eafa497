/** Finding things in the page's graph. */
import { classWord, nameOf } from "./words.js";

export const CLORA = "LoRACLR_CLoRASampler";
export const CONCEPT = "LoRACLR_LoadConceptLoRA";
export const MERGE = "LoRACLR_Merge";

export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);
const valueOf = (node, name) => String(widgetOf(node, name)?.value ?? "").trim();

/** The node that a message of the server is about; its id there has the subgraphs on the way to it: "5:12". */
export function nodeById(rootGraph, id) {
  const path = String(id).split(":");
  let graph = rootGraph;
  for (const part of path.slice(0, -1)) graph = graph?.getNodeById(Number(part))?.subgraph;
  return graph?.getNodeById(Number(path.at(-1))) ?? null;
}

/** Names of the concepts chained into a node's input, in their order; empty where they cannot be followed. */
export function conceptNames(node) {
  const names = [];
  const seen = new Set();
  for (let from = upstream(node); from && !seen.has(from); from = upstream(from)) {
    seen.add(from);
    if (from.comfyClass === CONCEPT) names.unshift(conceptName(from));
  }
  return names.filter(Boolean);
}

/** As the node names it: its name, else after its class word, else after its trigger. */
export function conceptName(node) {
  const trigger = valueOf(node, "trigger");
  return valueOf(node, "name") || nameOf(trigger, valueOf(node, "class_word") || classWord(trigger));
}

function upstream(node) {
  const slot = node.inputs?.findIndex((input) => input.type === "LORACLR_CONCEPTS" || node.type === "Reroute") ?? -1;
  return slot < 0 ? null : node.getInputNode(slot);
}
