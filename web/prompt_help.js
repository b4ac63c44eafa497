/** Help while typing prompts: `{` offers the connected concepts, and what does not fit them is said at once. */
import { app } from "../../scripts/app.js";
import { CLORA, MERGE, conceptNames, isFollowed, widgetOf } from "./lib/graph.js";
import { choiceProblems, completed, negativeProblems, offers, problems, togetherProblems, typing } from "./lib/prompt.js";
import "./lib/style.js";

/** One for the page, below the field that has the focus. */
class Popup {
  constructor() {
    this.root = document.createElement("div");
    this.root.className = "loraclr-popup";
    this.root.setAttribute("role", "listbox");
    this.root.hidden = true;
    document.body.append(this.root);
  }

  get open() {
    return !this.root.hidden;
  }

  show(field, names, notes) {
    this.field = field;
    this.names = names;
    this.chosen = 0;
    const options = names.map((name) => {
      const option = document.createElement("div");
      option.className = "loraclr-option";
      option.setAttribute("role", "option");
      option.textContent = name;
      option.addEventListener("pointerdown", (event) => {
        event.preventDefault(); // the field keeps the focus
        this.take(name);
      });
      return option;
    });
    const told = notes.map((note) => {
      const line = document.createElement("div");
      line.className = "loraclr-problem";
      line.textContent = note;
      return line;
    });
    this.root.replaceChildren(...options, ...told);
    this.mark();
    const { left, bottom, width } = field.getBoundingClientRect();
    Object.assign(this.root.style, { left: `${left}px`, top: `${bottom + 2}px`, maxWidth: `${Math.max(220, width)}px` });
    this.root.hidden = !options.length && !told.length;
  }

  hide() {
    this.root.hidden = true;
    this.names = [];
  }

  mark() {
    this.root.querySelectorAll(".loraclr-option").forEach((option, index) => {
      option.setAttribute("aria-selected", String(index === this.chosen));
    });
  }

  /** Puts a name in at the caret, as if it had been typed. */
  take(name) {
    const done = completed(this.field.value, this.field.selectionStart, name);
    if (!done) return this.hide(); // the caret has moved away since
    const { text, caret } = done;
    this.field.value = text;
    this.field.setSelectionRange(caret, caret);
    this.field.dispatchEvent(new Event("input", { bubbles: true }));
  }

  /** Whether it used the key. */
  key(key) {
    if (!this.open || !this.names.length) return false;
    if (!typing(this.field.value, this.field.selectionStart)) {
      this.hide(); // the caret has moved away since
      return false;
    }
    const move = { ArrowDown: 1, ArrowUp: -1 }[key];
    if (move) {
      this.chosen = (this.chosen + move + this.names.length) % this.names.length;
      this.mark();
    } else if (key === "Enter" || key === "Tab") {
      this.take(this.names[this.chosen]);
    } else if (key === "Escape") {
      this.hide();
    } else {
      return false;
    }
    return true;
  }
}

// By class of node and name of widget.
const PROBLEMS = {
  [CLORA]: { prompt: problems, negative: negativeProblems },
  [MERGE]: { prompt: choiceProblems, together_prompt: togetherProblems },
};

/** The node and its widget that are typed into in this field, in either renderer; or nothing. */
function typedInto(field) {
  if (!(field instanceof HTMLTextAreaElement)) return {};
  const { graph } = app.canvas;
  const id = field.closest("[data-node-id]")?.dataset.nodeId;
  const label = field.parentElement?.querySelector("label")?.textContent.trim();
  const isField = (widget) =>
    widget && (id === undefined ? widget.element === field : [widget.name, widget.label].includes(label));
  for (const node of id === undefined ? graph.nodes : [graph.getNodeById(id)]) {
    const names = Object.keys(PROBLEMS[node?.comfyClass] ?? {});
    const widget = names.map((name) => widgetOf(node, name)).find(isField);
    if (widget) return { node, widget };
  }
  return {};
}

function help(popup, field) {
  const { node, widget } = typedInto(field);
  if (!node) return;
  const names = conceptNames(node);
  const at = widget.name !== "negative" && typing(field.value, field.selectionStart);
  const found = isFollowed(node) ? PROBLEMS[node.comfyClass][widget.name](field.value, names) : [];
  field.classList.toggle("loraclr-wrong", found.length > 0);
  field.title = found.join("\n");
  if (at) popup.show(field, offers(at.typed, names), []);
  else popup.show(field, [], found);
}

app.registerExtension({
  name: "loraclr.prompt_help",
  setup() {
    const popup = new Popup();
    const capture = { capture: true };
    document.addEventListener("input", ({ target }) => help(popup, target), capture);
    document.addEventListener("focusin", ({ target }) => help(popup, target), capture);
    document.addEventListener("focusout", () => popup.hide(), capture);
    document.addEventListener(
      "keydown",
      (event) => {
        if (event.isComposing) return; // the key belongs to the input method, such as a Chinese one
        if (event.target !== popup.field || !popup.key(event.key)) return;
        event.preventDefault();
        event.stopPropagation();
      },
      capture,
    );
  },
});
