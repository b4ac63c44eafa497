/** Advanced settings: one fold for them on the classic canvas, as Nodes 2.0 has one; those without effect are greyed out. */
import { app } from "../../scripts/app.js";
import { withoutEffect } from "./lib/effects.js";
import { isLinked, widgetOf } from "./lib/graph.js";
import { fitHeight, place, watch } from "./lib/widgets.js";

const FEWEST = 2; // a fold for one setting takes as much room
const ALWAYS_OPEN = "Comfy.Node.AlwaysShowAdvancedWidgets";
const OUT_OF_REACH = -10_000;

const isAlwaysOpen = () => Boolean(app.extensionManager.setting.get(ALWAYS_OPEN));

/** `node.showAdvanced` is Nodes 2.0's own switch, which the page saves with the workflow. */
function addFold(node, settings) {
  const defaults = new Map(settings.map((widget) => [widget, widget.value]));
  const names = new Set(settings.map((widget) => widget.name));
  const isFolded = ({ name }) =>
    names.has(name) && !node.showAdvanced && !isAlwaysOpen() && !isLinked(node, name);
  const changed = () => settings.filter((widget) => isFolded(widget) && widget.value !== defaults.get(widget)).length;
  const button = node.addWidget("button", "advanced_settings", null, () => toggle(node, takeAway), {
    serialize: false,
    canvasOnly: true, // Nodes 2.0 has its own
  });
  button.serialize = false;
  const label = () => (node.showAdvanced ? "▾ Advanced" : `▸ Advanced${changed() ? ` · ${changed()} changed` : ""}`);
  Object.defineProperty(button, "label", { get: label, set() {} });
  hideOnCanvas(node, (widget) => (widget.name === button.name ? isAlwaysOpen() : isFolded(widget)));
  place(node, button, node.widgets.indexOf(settings[0]));
  takeAway();
  fitHeight(node);

  /** A folded widget's socket stays where it was, and would take links there. */
  function takeAway() {
    for (const widget of settings) if (isFolded(widget)) widget.y = OUT_OF_REACH;
  }
}

/** Hides widgets on the classic canvas alone: Nodes 2.0 asks the widgets, not the node. */
function hideOnCanvas(node, isHidden) {
  for (const name of ["isWidgetVisible", "isWidgetRowVisible"]) {
    const isVisible = node[name];
    if (isVisible) node[name] = (widget) => !isHidden(widget) && isVisible.call(node, widget);
  }
  const { getLayoutWidgets } = node;
  node.getLayoutWidgets = () => getLayoutWidgets.call(node).filter((widget) => !isHidden(widget));
}

function toggle(node, takeAway) {
  const before = node.computeSize()[1];
  node.showAdvanced = !node.showAdvanced;
  takeAway();
  node.setSize([node.size[0], node.size[1] + node.computeSize()[1] - before]);
  node.setDirtyCanvas(true, true);
}

/** Greys out the settings without effect; their tooltip says what they wait for. */
function markIdle(node) {
  const settings = node.widgets.filter((widget) => !isLinked(node, widget.name));
  const values = Object.fromEntries(settings.map((widget) => [widget.name, widget.value]));
  const idle = withoutEffect(node.comfyClass, values);
  let changed = false;
  for (const widget of settings) {
    const cause = idle.get(widget.name);
    if (Boolean(widget.disabled) === Boolean(cause)) continue;
    changed = true;
    widget.disabled = Boolean(cause);
    const { label, value } = cause ? widgetOf(node, cause) : {};
    widget.tooltip = cause && `No effect while “${label ?? cause}” is ${value === "" ? "empty" : value}.`;
  }
  if (changed) node.widgets = [...node.widgets]; // Nodes 2.0 reads tooltips only when the list is set
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "loraclr.advanced",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("LoRACLR_")) return;
    const settings = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    if (settings.length < FEWEST) return;
    watch(node, () => markIdle(node));
    addFold(node, settings);
    markIdle(node);
  },
  loadedGraphNode(node) {
    if (node.comfyClass?.startsWith("LoRACLR_") && node.widgets) markIdle(node);
  },
});
