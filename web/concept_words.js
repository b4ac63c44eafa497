/** Load Concept LoRA: choosing a file fills in the trigger and class word that its metadata give. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { CONCEPT, widgetOf } from "./lib/graph.js";
import { classWordIn, trainedWords } from "./lib/trained_words.js";
import { classWord } from "./lib/words.js";

/** The metadata of a LoRA file, from the host; empty where it has none. */
async function metadataOf(file) {
  const answer = await api.fetchApi(`/view_metadata/loras?filename=${encodeURIComponent(file)}`);
  return answer.ok ? await answer.json() : {};
}

app.registerExtension({
  name: "loraclr.concept_words",
  nodeCreated(node) {
    if (node.comfyClass !== CONCEPT) return;
    const file = widgetOf(node, "lora_name");
    const filled = {}; // what this put in, and may put something else for
    const fill = (name, value) => {
      const widget = widgetOf(node, name);
      if (widget.value && widget.value !== filled[name]) return;
      filled[name] = widget.value = value;
    };
    const chosen = file.callback;
    file.callback = async function (value) {
      chosen?.apply(this, arguments);
      const metadata = await metadataOf(value);
      const trigger = trainedWords(metadata);
      if (file.value !== value) return; // another file was chosen meanwhile
      fill("trigger", trigger);
      fill("class_word", classWordIn(metadata) || classWord(trigger));
      node.setDirtyCanvas?.(true, true);
    };
  },
});
