/** The view on Train Concept LoRA: loss and preservation as curves, and previews with and without the trigger. */
import { duration, smooth } from "./lib/curves.js";
import { follow } from "./lib/follow.js";
import { colourOf, css, line } from "./lib/frame.js";
import { TRAIN } from "./lib/graph.js";
import { addPanel } from "./lib/panel.js";

const EVENT = "loraclr.train"; // nodes/train.py
const CURVES = [
  { key: "loss", title: "How far the model is from the concept's pictures" },
  { key: "preservation", title: "How far the model is from the base model without the trigger; lower is better" },
  { key: "outside", title: "How far the model is from the base model around the subject; lower is better" },
];
const CHART = { width: 200, height: 60 };
const HEIGHT = 260;
const PROMISE = "While it trains, this shows its losses as curves, and pictures with and without the trigger.";

class TrainView {
  constructor(node) {
    this.root = document.createElement("div");
    this.root.className = "loraclr-panel loraclr-train loraclr-empty";
    this.root.innerHTML = `
      <div class="loraclr-promise">${PROMISE}</div>
      <div class="loraclr-row"><span class="loraclr-legend"></span><span class="loraclr-when"></span></div>
      <svg viewBox="0 -2 ${CHART.width} ${CHART.height + 4}" preserveAspectRatio="none"></svg>
      <div class="loraclr-previews"></div>
      <div class="loraclr-row"><span class="loraclr-step"></span><span class="loraclr-left"></span></div>`;
    this.find = (selector) => this.root.querySelector(selector);
    addPanel(node, "train_view_panel", this.root, { height: HEIGHT });
  }

  /** when: said of a frame that is not of the run going on. */
  show(frame, when = "") {
    this.root.classList.remove("loraclr-empty");
    this.newest = frame;
    this.say(when);
    const curves = CURVES.filter(({ key }) => frame[key]?.some(Number.isFinite));
    this.find(".loraclr-legend").replaceChildren(...curves.map((curve) => this.entry(curve)));
    this.find("svg").replaceChildren(...curves.map((curve) => this.curve(curve)));
    this.find(".loraclr-previews").replaceChildren(...(frame.previews ?? []).map(preview));
    this.find(".loraclr-step").textContent = `${frame.step} / ${frame.steps} steps`;
    const left = frame.step < frame.steps && frame.seconds_left;
    this.find(".loraclr-left").textContent = left ? `${duration(left)} left` : "";
  }

  say(when) {
    this.find(".loraclr-when").textContent = this.newest ? when : "";
    if (when) this.find(".loraclr-left").textContent = "";
  }

  refresh() {}

  /** The run has been stopped before its last step. */
  stopped() {
    const { step, steps } = this.newest ?? {};
    if (!this.find(".loraclr-when").textContent && step < steps) this.say("cancelled: run again to go on");
  }

  /** A curve's name in its colour, and its newest value. */
  entry({ key, title }) {
    const entry = document.createElement("span");
    entry.className = "loraclr-curve";
    entry.style.setProperty("--curve", css(colourOf(colourNumber(key))));
    entry.title = title;
    entry.textContent = `${key} ${smooth(this.newest[key]).findLast(Number.isFinite).toPrecision(2)}`;
    return entry;
  }

  curve({ key }) {
    const curve = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    curve.setAttribute("points", line(smooth(this.newest[key]), CHART.width, CHART.height));
    curve.style.setProperty("--curve", css(colourOf(colourNumber(key))));
    return curve;
  }
}

const colourNumber = (key) => CURVES.findIndex((curve) => curve.key === key);

function preview({ prompt, picture }) {
  const image = new Image();
  image.src = picture;
  const caption = document.createElement("figcaption");
  caption.textContent = prompt;
  const figure = document.createElement("figure");
  figure.title = prompt;
  figure.append(image, caption);
  return figure;
}

follow({ name: "loraclr.train_view", event: EVENT, comfyClass: TRAIN, create: (node) => new TrainView(node) });
