/** The view on Train Concept LoRA: loss and preservation as curves, and previews with and without the trigger. */
import { duration, smooth } from "./lib/curves.js";
import { follow } from "./lib/follow.js";
import { colourOf, css, line } from "./lib/frame.js";
import { TRAIN } from "./lib/graph.js";
import { addPanel } from "./lib/panel.js";

const EVENT = "loraclr.train"; // nodes/train.py
// As Frame in loraclr_core/host/train/view.py has them.
const CURVES = [
  { key: "losses", name: "concept", title: "How far the model is from the concept’s pictures" },
  { key: "preservation", name: "preservation", title: "How far it is from the base model without the trigger" },
  { key: "outside", name: "outside", title: "How far it is from the base model outside of the masks" },
  { key: "beside", name: "beside", title: "How far pictures of it beside other things are from what they should be" },
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
    const pictures = JSON.stringify(frame.previews);
    if (pictures !== this.pictures) this.find(".loraclr-previews").replaceChildren(...frame.previews.map(preview));
    this.pictures = pictures; // they change less often than frames come
    this.newest = frame;
    this.say(when);
    const curves = CURVES.filter(({ key }) => frame[key].some(Number.isFinite));
    this.find(".loraclr-legend").replaceChildren(...curves.map((curve) => this.entry(curve, CURVES.indexOf(curve))));
    this.find("svg").replaceChildren(...curves.map((curve) => this.curve(curve, CURVES.indexOf(curve))));
    this.find(".loraclr-step").textContent = `${frame.step} / ${frame.steps} steps`;
    const known = frame.step < frame.steps && frame.seconds_left !== null;
    this.find(".loraclr-left").textContent = known && !when ? `${duration(frame.seconds_left)} left` : "";
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
  entry({ key, name, title }, number) {
    const entry = document.createElement("span");
    entry.className = "loraclr-curve";
    entry.style.setProperty("--curve", css(colourOf(number)));
    entry.title = `${title}: lower is nearer; each curve to its own scale`;
    entry.textContent = `${name} ${smooth(this.newest[key]).findLast(Number.isFinite).toPrecision(2)}`;
    return entry;
  }

  curve({ key }, number) {
    const curve = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
    curve.setAttribute("points", line(smooth(this.newest[key]), CHART.width, CHART.height));
    curve.style.setProperty("--curve", css(colourOf(number)));
    return curve;
  }
}

function preview({ prompt, picture, step }) {
  const image = new Image();
  image.src = picture;
  const caption = document.createElement("figcaption");
  caption.textContent = prompt;
  const figure = document.createElement("figure");
  figure.title = `${prompt}, after ${step} steps`;
  figure.append(image, caption);
  return figure;
}

follow({ name: "loraclr.train_view", event: EVENT, comfyClass: TRAIN, create: (node) => new TrainView(node) });
