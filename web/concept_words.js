/** Load Concept LoRA: its words come from the file, an empty field shows the word in effect, and prompts follow its name. */
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { FilePanel } from "./lib/file_panel.js";
import { chainedConcepts, CLORA, CONCEPT, conceptClassWord, conceptName, isLinked, MERGE, siblings, widgetOf } from "./lib/graph.js";
import { renamed } from "./lib/prompt.js";
import { showWhenEmpty, watch } from "./lib/widgets.js";
import { classWord, unlike } from "./lib/words.js";

const WORDS = ["trigger", "class_word", "name"];
const NAMING = ["prompt", "together_prompt"]; // widgets that name concepts in braces
const FILLED = "loraclr_words_of_the_file";

const NOTHING = { trigger: "", class_word: "", others: [], picture_folder: null };

/** What a LoRA's file and those beside it say (nodes/routes.py). */
async function wordsOf(file) {
  const answer = await api.fetchApi(`/loraclr/words?lora=${encodeURIComponent(file)}`);
  return answer.ok ? await answer.json() : NOTHING;
}

/** The address of the picture beside a LoRA, which the host serves; empty where there is none. */
function pictureOf(file, { picture_folder: folder }) {
  const path = file.split("/").map(encodeURIComponent).join("/");
  return folder === null ? "" : api.apiURL(`/experiment/models/preview/loras/${folder}/${path}`);
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
    this.panel = new FilePanel(node, (phrase) => this.choose(phrase));
    this.begin();
    const configured = node.onConfigure;
    node.onConfigure = (...args) => {
      configured?.apply(node, args);
      this.begin();
      this.present(widgetOf(node, "lora_name").value);
    };
    const file = widgetOf(node, "lora_name");
    const chosen = file.callback;
    file.callback = async (value, ...rest) => {
      chosen?.call(file, value, ...rest);
      const words = await this.present(value);
      if (file.value === value) this.fill(value, words); // else another one was chosen meanwhile
    };
    watch(node, () => this.follow());
  }

  /** Shows what lies beside a file, and returns its words. */
  async present(file) {
    const words = await wordsOf(file);
    const { value } = widgetOf(this.node, "lora_name");
    const phrases = words.others.length ? [words.trigger, ...words.others].filter(Boolean) : []; // one is no choice
    if (value === file) this.panel.show({ phrases, picture: pictureOf(file, words) });
    return words;
  }

  /** Takes a phrase that the user chose. Its class word and name follow where they are not the user's own. */
  choose(phrase) {
    this.widgets.trigger.value = phrase;
    this.put("class_word", classWord(phrase));
    this.follow();
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

  fill(file, words) {
    if (this.absent && baseName(this.absent) === baseName(file)) this.filled = {}; // the same file, elsewhere
    this.absent = null;
    this.put("trigger", words.trigger);
    this.put("class_word", words.class_word);
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
      if (![CLORA, MERGE].includes(node.comfyClass) || !chainedConcepts(node).includes(this.node)) continue;
      for (const name of NAMING) {
        const prompt = widgetOf(node, name);
        if (prompt && !isLinked(node, name)) prompt.value = renamed(prompt.value, before, after);
      }
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
