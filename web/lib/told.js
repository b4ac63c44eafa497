/** What ComfyUI tells of an error, as a sentence, and the widget that it is about. */

const OURS = "LoRACLR_";
const BLOCKED = /^Execution Blocked: (?=Load Concept LoRA )/; // nodes/load_concept.py

/** Whether an error comes from this pack's code, whichever node it ended. */
export function isOurs({ node_type, traceback, exception_message }) {
  return (
    node_type.startsWith(OURS) || (traceback?.at(-1) ?? "").includes("loraclr_core") || BLOCKED.test(exception_message)
  );
}

export const sentence = ({ exception_message }) => exception_message.replace(BLOCKED, "").trim();

/** Sentences for what the server does not accept of a node's inputs: one {input, text} each. */
export function refusals({ class_type, errors }) {
  if (!class_type.startsWith(OURS)) return [];
  return errors.map(({ type, message, details, extra_info }) => {
    const input = extra_info?.input_name ?? "";
    if (type === "required_input_missing") return { input, text: `${input} is not connected.` };
    if (type === "value_not_in_list")
      return { input, text: `${input}: “${extra_info.received_value}” was not found. Choose another.` };
    if (type === "custom_validation_failed") return { input, text: details.replace(`${input} - `, "") };
    return { input, text: `${message}: ${details}` };
  });
}

/** The widget that a text mentions first by its name or label, or else by the file chosen in it; null where there is none. */
export function mentioned(text, widgets = []) {
  const fields = widgets.filter((widget) => widget.serialize !== false);
  return first(text, fields, names) ?? first(text, fields, file);
}

function first(text, widgets, wordsOf) {
  let [earliest, place] = [null, Infinity];
  for (const widget of widgets) {
    for (const word of wordsOf(widget)) {
      const at = text.search(new RegExp(`(?<![\\p{L}\\p{N}_])${escaped(word)}(?![\\p{L}\\p{N}_])`, "u"));
      if (at >= 0 && at < place) [earliest, place] = [widget, at];
    }
  }
  return earliest;
}

const names = ({ name, label }) => [name, name.replaceAll("_", " "), label].filter(Boolean);
const file = ({ value }) => (typeof value === "string" && /\.\w+$/.test(value) ? [value] : []);
const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
