/** Load Concept LoRA: its words come from the file, an empty field shows the word in effect, and prompts follow its name. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { chainedConcepts, CLORA, CONCEPT, conceptClassWord, conceptName, isLinked, siblings, widgetOf } from "./lib/graph.js";
import { renamed } from "./lib/prompt.js";
import { classWordIn, trainedWords } from "./lib/trained_words.js";
import { showWhenEmpty, watch } from "./lib/widgets.js";
import { classWord, unlike } from "./lib/words.js";

const WORDS = ["trigger", "class_word", "name"];
const FILLED = "loraclr_words_of_the_file";

/** The metadata of a LoRA file, from the host; empty where it has none. */
async function metadataOf(file) {
  const answer = await api.fetchApi(`/view_metadata/loras?filename=${encodeURIComponent(file)}`);
  return answer.ok ? await answer.json() : {};
}

const baseName = (file) => String(file).split(/[\\/]/).at(-1);

class ConceptWords {
  constructor(node) {
    this.node = node;
    this.widgets = Object.fromEntries(WORDS.map((name) => [name, widgetOf(node, name)]));
    this.hints = {
      trigger: () => "from the file",
      class_word: () => conceptClassWord(node) || "what it is: cat, woman",
      name: () => conceptName(node) || "short, for prompts",
    };
    for (const name of WORDS) showWhenEmpty(this.widgets[name], this.hints[name]);
    this.begin();
    const configured = node.onConfigure;
    node.onConfigure = (...args) => {
      configured?.apply(node, args);
      this.begin();
    };
    const file = widgetOf(node, "lora_name");
    const chosen = file.callback;
    file.callback = async (value, ...rest) => {
      chosen?.call(file, value, ...rest);
      const metadata = await metadataOf(value);
      if (file.value === value) this.fill(value, metadata); // else another one was chosen meanwhile
    };
    watch(node, () => this.follow());
  }

  /** With the words that the node is made or loaded with. Those of a file that is not here, such as a template's, are that file's. */
  begin() {
    const { value, options } = widgetOf(this.node, "lora_name");
    const files = typeof options.values === "function" ? options.values() : options.values;
    this.absent = files && !files.includes(value) ? value : null;
    // Words of a file, which another file's may replace; all others are the user's. Saved with the node.
    this.filled = { ...this.node.properties?.[FILLED] };
    if (this.absent) for (const name of WORDS) this.filled[name] = this.widgets[name].value;
    this.name = conceptName(this.node); // as prompts have it
    this.shown = this.hintTexts();
  }

  fill(file, metadata) {
    const trigger = trainedWords(metadata);
    if (this.absent && baseName(this.absent) === baseName(file)) this.filled = {}; // the same file, elsewhere
    this.absent = null;
    this.put("trigger", trigger);
    this.put("class_word", classWordIn(metadata) || classWord(trigger));
    this.put("name", "");
    const name = conceptName(this.node);
    const others = siblings(this.node).map(conceptName);
    if (others.includes(name)) this.put("name", unlike(name, others));
    this.follow();
  }

  put(name, value) {
    const widget = this.widgets[name];
    if (widget.value && widget.value !== this.filled[name]) return;
    this.filled[name] = widget.value = value;
    this.node.setProperty(FILLED, { ...this.filled });
  }

  /** Renames the concept in the prompts that name it, and shows the words in effect. */
  follow() {
    const name = conceptName(this.node);
    if (name && name !== this.name && !siblings(this.node).map(conceptName).includes(name)) {
      if (this.name) this.rename(this.name, name);
      this.name = name;
    }
    const hints = this.hintTexts();
    if (hints !== this.shown) this.node.widgets = [...this.node.widgets]; // Nodes 2.0 reads them only when the list is set
    this.shown = hints;
    this.node.setDirtyCanvas?.(true, true);
  }

  rename(before, after) {
    for (const node of this.node.graph?.nodes ?? []) {
      if (node.comfyClass !== CLORA || isLinked(node, "prompt") || !chainedConcepts(node).includes(this.node)) continue;
      const prompt = widgetOf(node, "prompt");
      prompt.value = renamed(prompt.value, before, after);
    }
  }

  hintTexts() {
    return WORDS.map((name) => this.hints[name]()).join("\n");
  }
}

app.registerExtension({
  name: "loraclr.concept_words",
  nodeCreated(node) {
    if (node.comfyClass === CONCEPT) new ConceptWords(node);
  },
});
