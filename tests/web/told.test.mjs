import assert from "node:assert/strict";
import { test } from "node:test";
import { isOurs, mentioned, refusals, sentence } from "../../web/lib/told.js";

const told = (more) => ({ node_type: "KSampler", exception_message: "No.\n", traceback: [], ...more });

test("errors of the pack's nodes and of its code in other nodes are ours, others' are not", () => {
  assert.ok(isOurs(told({ node_type: "LoRACLR_Merge" })));
  assert.ok(isOurs(told({ traceback: ['File "comfy/samplers.py"', 'File "loraclr/loraclr_core/host/sampler/tags.py"'] })));
  assert.ok(!isOurs(told({ traceback: ['File "loraclr/loraclr_core/host/sampler/take.py"', 'File "comfy/samplers.py"'] })));
  assert.ok(!isOurs(told({})));
});

test("an output without its input blocks other nodes, and that is ours", () => {
  const blocked = told({ exception_message: "Execution Blocked: Load Concept LoRA gives MODEL only where …" });
  assert.ok(isOurs(blocked));
  assert.equal(sentence(blocked), "Load Concept LoRA gives MODEL only where …");
  assert.ok(!isOurs(told({ exception_message: "Execution Blocked: another reason" })));
});

const widget = (name, value = "", more = {}) => ({ name, value, ...more });

test("the widget that is mentioned first is the one below which the sentence stands", () => {
  const [prompt, negative, steps] = [widget("prompt"), widget("negative"), widget("refine_steps")];
  const widgets = [prompt, negative, steps];
  assert.equal(mentioned("The negative prompt names {cat}", widgets), negative);
  assert.equal(mentioned("refine_steps is “x”", widgets), steps);
  assert.equal(mentioned("No refine steps: write one", widgets), steps);
  assert.equal(mentioned("Something prompted this.", widgets), null);
});

test("labels and, behind them, file names count, panels do not", () => {
  const file = widget("lora_name", "sub/a (1).safetensors");
  const area = widget("mask_threshold", 0.3, { label: "area threshold" });
  const name = widget("name");
  assert.equal(mentioned("Give sub/a (1).safetensors a name of its own", [file, name]), name);
  const panel = widget("report_panel", "", { serialize: false });
  assert.equal(mentioned("LoRA sub/a (1).safetensors: shape mismatch", [area, file]), file);
  assert.equal(mentioned("The area threshold is too large", [file, area]), area);
  assert.equal(mentioned("report_panel", [panel]), null);
});

test("what the server does not accept is said in a sentence for each input", () => {
  const errors = [
    { type: "required_input_missing", message: "Required input is missing", details: "clip", extra_info: { input_name: "clip" } },
    {
      type: "value_not_in_list",
      message: "Value not in list",
      details: "lora_name: 'a' not in []",
      extra_info: { input_name: "lora_name", received_value: "a" },
    },
    {
      type: "custom_validation_failed",
      message: "Custom validation failed for node",
      details: "captures - captures is “x”: choose one.",
      extra_info: { input_name: "captures" },
    },
    { type: "other", message: "Odd", details: "thing", extra_info: {} },
  ];
  assert.deepEqual(refusals({ class_type: "LoRACLR_Merge", errors }), [
    { input: "clip", text: "clip is not connected." },
    { input: "lora_name", text: "lora_name: “a” was not found. Choose another." },
    { input: "captures", text: "captures is “x”: choose one." },
    { input: "", text: "Odd: thing" },
  ]);
  assert.deepEqual(refusals({ class_type: "KSampler", errors }), []);
});

test("a node without widgets has none that a sentence mentions", () => {
  assert.equal(mentioned("steps is too large.", undefined), null);
});
