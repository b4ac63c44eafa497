/** The live view on CLoRA Attention Contrast Sampler: the growing picture under each concept's mask or attention. */
import { follow } from "./lib/follow.js";
import { colourOf, css, line, overlay, sizeOf, unpack } from "./lib/frame.js";
import { CLORA, isLinked, widgetOf } from "./lib/graph.js";
import { addPanel } from "./lib/panel.js";

const EVENT = "loraclr.clora"; // nodes/clora.py
const MODES = ["masks", "attention", "picture"];
const STRONGEST = 0.6;
const LOSS = { width: 200, height: 28 };
const HEIGHT = 260;
const PROMISE = "While it samples, the picture grows here: first the plain one, then each concept’s area in a colour.";

class LiveView {
  constructor(node) {
    this.node = node;
    this.mode = MODES[0];
    this.hidden = new Set();
    this.root = document.createElement("div");
    this.root.className = "loraclr-panel loraclr-view loraclr-empty";
    this.root.innerHTML = `
      <div class="loraclr-promise">${PROMISE}</div>
      <div class="loraclr-row">
        <span class="loraclr-legend"></span>
        <span class="loraclr-when"></span>
        <button type="button" class="loraclr-mode" title="Switch between masks, attention and the picture alone"></button>
      </div>
      <div class="loraclr-stage"><canvas></canvas></div>
      <div class="loraclr-row">
        <span class="loraclr-step"></span>
        <svg viewBox="0 -2 ${LOSS.width} ${LOSS.height + 4}" preserveAspectRatio="none">
          <title>Separation loss: lower means the concepts are further apart</title><polyline fill="none"/>
        </svg>
        <span class="loraclr-loss"></span>
      </div>`;
    this.find = (selector) => this.root.querySelector(selector);
    this.find(".loraclr-mode").addEventListener("click", () => {
      this.mode = MODES[(MODES.indexOf(this.mode) + 1) % MODES.length];
      this.draw();
    });
    const isOn = () => this.isOn();
    addPanel(node, "live_view_panel", this.root, { height: HEIGHT, below: widgetOf(node, "negative"), isOn });
    const setting = widgetOf(node, "live_view");
    const { callback } = setting;
    setting.callback = (...values) => {
      callback?.apply(setting, values);
      this.refresh();
    };
  }

  isOn() {
    return isLinked(this.node, "live_view") || widgetOf(this.node, "live_view").value;
  }

  /** Takes the panel away while the setting is off. */
  refresh() {
    this.root.hidden = !this.isOn();
    this.node.setDirtyCanvas?.(true, true);
  }

  /** when: said of a frame that is not of the run going on. */
  show(frame, when = "") {
    this.root.classList.remove("loraclr-empty");
    this.newest = frame;
    this.say(when);
    const picture = new Image();
    const drawWith = (shown) => {
      if (this.newest !== frame) return; // a later one came while this one's picture was read
      this.frame = frame;
      this.picture = shown;
      this.draw();
    };
    picture.onload = () => drawWith(picture);
    picture.onerror = () => drawWith(null);
    if (frame.picture) picture.src = frame.picture;
    else drawWith(null); // there is none of this model's latents
  }

  say(when) {
    this.find(".loraclr-when").textContent = this.newest ? when : "";
  }

  /** The run has been stopped: its picture is not finished. */
  stopped() {
    const { step, steps, masks } = this.newest ?? {};
    if (!this.find(".loraclr-when").textContent && !(masks && step === steps)) this.say("cancelled");
  }

  draw() {
    const { frame, picture } = this;
    if (!frame) return;
    const canvas = this.find("canvas");
    [canvas.width, canvas.height] = sizeOf(frame, picture);
    const context = canvas.getContext("2d");
    if (picture) context.drawImage(picture, 0, 0);
    const plain = !frame.masks; // the picture without LoRAs, which is made first
    if (this.mode !== "picture" && !plain) context.drawImage(this.drawnMaps(), 0, 0, canvas.width, canvas.height);

    this.find(".loraclr-mode").textContent = this.mode;
    this.find(".loraclr-step").textContent = `${plain ? "plain picture " : ""}${frame.step} / ${frame.steps}`;
    this.find("polyline").setAttribute("points", line(frame.losses, LOSS.width, LOSS.height));
    this.find(".loraclr-loss").textContent = frame.losses.at(-1)?.toFixed(2) ?? "";
    this.find(".loraclr-legend").replaceChildren(...frame.names.map((name, concept) => this.chip(name, concept)));
  }

  /** The chosen maps of the concepts that are not hidden, on a canvas of the maps' own size. */
  drawnMaps() {
    const { frame } = this;
    const [maps, [height, width]] =
      this.mode === "masks" ? [frame.masks, frame.mask_size] : [frame.heat, frame.heat_size];
    const concepts = frame.names.map((_, concept) => concept).filter((concept) => !this.hidden.has(concept));
    const shown = concepts.map((concept) => unpack(maps[concept]));
    const canvas = new OffscreenCanvas(width, height);
    if (shown.length) {
      const pixels = overlay(shown, concepts, STRONGEST);
      canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
    }
    return canvas;
  }

  chip(name, concept) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "loraclr-chip";
    chip.textContent = name;
    chip.title = `Show or hide ${name}`;
    chip.style.setProperty("--concept", css(colourOf(concept)));
    chip.setAttribute("aria-pressed", String(!this.hidden.has(concept)));
    chip.addEventListener("click", () => {
      if (!this.hidden.delete(concept)) this.hidden.add(concept);
      this.draw();
    });
    return chip;
  }
}

follow({ name: "loraclr.clora_view", event: EVENT, comfyClass: CLORA, create: (node) => new LiveView(node) });
