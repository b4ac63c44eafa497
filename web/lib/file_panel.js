/** What lies beside a LoRA: its picture, and the phrases to choose its trigger from. Takes no room where there is neither. */
import { addPanel } from "./panel.js";

const HEIGHT = 150;

export class FilePanel {
  /** choose: takes the phrase that was clicked on. */
  constructor(node, choose) {
    Object.assign(this, { node, choose, root: null, isOn: false });
  }

  show({ phrases, picture }) {
    const isOn = Boolean(phrases.length || picture);
    if (isOn) this.root ??= this.add();
    if (!this.root) return;
    const before = this.node.computeSize()[1];
    this.isOn = isOn;
    this.root.hidden = !isOn;
    this.root.replaceChildren(...(picture ? [image(picture)] : []), ...(phrases.length ? [this.choices(phrases)] : []));
    const [width, height] = this.node.size;
    this.node.setSize([width, Math.max(height, height + this.node.computeSize()[1] - before)]);
  }

  add() {
    const root = document.createElement("div");
    root.className = "loraclr-panel loraclr-file";
    addPanel(this.node, "file_panel", root, { height: HEIGHT, isOn: () => this.isOn });
    return root;
  }

  choices(phrases) {
    const row = document.createElement("div");
    row.className = "loraclr-phrases";
    for (const phrase of phrases) {
      const button = document.createElement("button");
      button.textContent = phrase;
      button.title = `Use “${phrase}” as the trigger`;
      button.onclick = () => this.choose(phrase);
      row.append(button);
    }
    return row;
  }
}

function image(address) {
  const picture = document.createElement("img");
  picture.src = address;
  picture.alt = "";
  return picture;
}
