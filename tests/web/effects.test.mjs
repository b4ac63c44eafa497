import assert from "node:assert/strict";
import { test } from "node:test";
import { withoutEffect } from "../../web/lib/effects.js";

const CLORA = "LoRACLR_CLoRASampler";
const MERGE = "LoRACLR_Merge";
const names = (comfyClass, values) => [...withoutEffect(comfyClass, values).keys()].sort();
const updates = { update_strength: 0.02, refine_repeats: 2, refine_steps: "0, 10" };
const merge = { solver: "exact", margin: 0.5, distillation_steps: 0 };

test("without updates their settings do nothing", () => {
  const idle = withoutEffect(CLORA, { ...updates, update_strength: 0 });
  assert.equal(idle.get("update_end"), "update_strength");
  assert.equal(idle.get("refine_repeats"), "update_strength");
  assert.ok(!idle.has("mask_threshold"));
  assert.deepEqual(names(CLORA, updates), []);
});

test("a value that comes over a link may be any", () => {
  assert.deepEqual(names(CLORA, { refine_repeats: 2, refine_steps: "0" }), []);
});

test("steps to refine at need repeats, and repeats need steps", () => {
  assert.deepEqual(names(CLORA, { ...updates, refine_repeats: 0 }), ["refine_steps"]);
  assert.deepEqual(names(CLORA, { ...updates, refine_steps: " " }), ["refine_repeats"]);
});

test("without a plain picture there is none to be unclear", () => {
  assert.deepEqual(names(CLORA, { ...updates, surroundings: "composed (paper)" }), ["if_unclear", "plain_every"]);
  assert.deepEqual(names(CLORA, { ...updates, surroundings: "plain" }), []);
});

test("each solver has its settings", () => {
  assert.deepEqual(names(MERGE, merge), []);
  assert.deepEqual(names(MERGE, { ...merge, margin: 0 }), ["margin_mode"]);
  assert.deepEqual(names(MERGE, { ...merge, solver: "adamw (paper)" }), ["anchor_weight", "ridge"]);
  assert.ok(names(MERGE, { ...merge, solver: "sum (baseline)" }).includes("capture_steps"));
});

test("a distillation captures with every solver", () => {
  assert.ok(!names(MERGE, { ...merge, solver: "sum (baseline)", distillation_steps: 200 }).includes("capture_steps"));
});

test("other nodes have no such settings", () => {
  assert.deepEqual(names("KSampler", { denoise: 0 }), []);
});
