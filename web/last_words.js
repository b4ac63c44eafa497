/** Keeps a node's last words: newer pages take the text below a node away when the run ends. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { nodeById, widgetOf } from "./lib/graph.js";
import { say, unsay } from "./lib/sentence.js";

const KIND = "last";
const PAGES_OWN = "$$node-text-preview"; // the page's widget for such a text
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
const EVERY = 250; // milliseconds
const TIMES = 12;

const words = new Map(); // node -> its last words in this run
let running = null; // the workflow that was open when the run began

const open = () => (app.rootGraph ?? app.graph).id;

function start() {
  words.clear();
  running = open();
}

function note({ detail: { nodeId, text } }) {
  if (open() !== running) return; // another workflow may have any node of that id
  const node = nodeById(app.rootGraph ?? app.graph, nodeId);
  if (!node?.comfyClass?.startsWith("LoRACLR_")) return;
  unsay(node, KIND);
  words.set(node, text);
}

/** Says them once the page's own are gone, some time after the end. Older pages leave them where they are. */
function keep(times = TIMES) {
  for (const [node, text] of words) {
    if (node.graph && widgetOf(node, PAGES_OWN)) continue;
    if (node.graph) say(node, KIND, text);
    words.delete(node);
  }
  if (words.size && times) setTimeout(keep, EVERY, times - 1);
}

app.registerExtension({
  name: "loraclr.last_words",
  setup() {
    api.addEventListener("progress_text", note);
    api.addEventListener("execution_start", start);
    for (const end of ENDS) api.addEventListener(end, () => setTimeout(keep, EVERY));
  },
});
