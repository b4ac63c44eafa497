/** Marks a node that samples with CLoRA's conditioning on a model that is not CLoRA's, before it runs. */
import { app } from "../../scripts/app.js";
import { say, unsay } from "./lib/sentence.js";
import { allNodes, wrongWires } from "./lib/wires.js";

const EVERY = 300; // milliseconds: no event of the page tells of all that changes a wire, such as bypassing a node

let marked = [];

function mark() {
  const wrong = wrongWires(allNodes(app.rootGraph ?? app.graph));
  for (const node of marked) if (!wrong.some((wire) => wire.node === node)) unsay(node, "wire");
  for (const { node, sampler: { title }, conditioning, model } of wrong) {
    say(node, "wire", `⚠ ${model} is not from “${title}”, but ${conditioning} is. Connect that node's MODEL here.`);
  }
  marked = wrong.map((wire) => wire.node);
}

app.registerExtension({
  name: "loraclr.wires",
  setup() {
    setInterval(mark, EVERY);
  },
});
