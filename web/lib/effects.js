/** Settings that change nothing while others stand as they do. */

// Without the temperature: it is also that of the loss that is shown, with and without updates.
const UPDATES = ["update_unit", "update_start", "update_end", "refine_steps", "refine_repeats", "gradient_memory"];
const SOLVE = ["margin", "margin_mode", "ridge", "anchor_weight", "captures"];
const CAPTURE = ["capture_prompts", "capture_steps", "capture_seed"];

/** By class: [settings, the setting they wait for, whether its value leaves them without effect]. The first that does counts. */
const RULES = {
  LoRACLR_CLoRASampler: [
    [UPDATES, "update_strength", ({ update_strength }) => update_strength === 0],
    [["if_unclear", "plain_every"], "surroundings", ({ surroundings }) => surroundings === "composed (paper)"],
    [["refine_steps"], "refine_repeats", ({ refine_repeats }) => refine_repeats === 0],
    [["refine_repeats"], "refine_steps", ({ refine_steps }) => refine_steps?.trim() === ""],
  ],
  LoRACLR_Merge: [
    [SOLVE, "solver", ({ solver }) => solver === "sum (baseline)"],
    [CAPTURE, "solver", ({ solver, distillation_steps }) => solver === "sum (baseline)" && distillation_steps === 0],
    [["ridge", "anchor_weight"], "solver", ({ solver }) => solver === "adamw (paper)"],
    [["margin_mode"], "margin", ({ margin }) => margin === 0],
  ],
};

/**
 * The settings of a node without effect -> the setting that leaves them so.
 * values: by name; without those that come over a link, of which the page knows nothing.
 */
export function withoutEffect(comfyClass, values) {
  const found = new Map();
  for (const [settings, cause, isIdle] of RULES[comfyClass] ?? []) {
    if (!isIdle(values)) continue;
    for (const setting of settings) if (!found.has(setting)) found.set(setting, cause);
  }
  return found;
}
