"""CLoRA's updates in every sampler and scheduler of the host, on the demo checkpoint.

Each combination samples one small picture twice, with and without updates, from the same noise. The separation loss of a
run is the mean over the steps that are updated.

    combinations    how many there are
    lowered         in how many of them the loss with updates is below that without
    highest         the largest of the ratios with / without
    median          the median of them
"""

import statistics

import comfy.samplers
import nodes
import pack
import torch
from sd15 import say

STEPS = 3
LATENT = (1, 4, 6, 6)
CFG = 5.0
STRENGTH = 0.05
PROMPT = "a photo of a {ball} and a {box} on grass"
CONCEPTS = {"ball": "sks ball", "box": "zwx box"}


def run() -> dict:
    samplers, schedulers = comfy.samplers.SAMPLER_NAMES, comfy.samplers.SCHEDULER_NAMES
    model, clip, _ = pack.demo_models()
    concepts = None
    for name, trigger in CONCEPTS.items():
        values = {"lora_name": f"loraclr_demo_{name}.safetensors", "trigger": trigger, "class_word": name}
        concepts = pack.run("LoRACLR_LoadConceptLoRA", **values, concepts=concepts)[0]
    inputs = {"model": model, "clip": clip, "concepts": concepts, "prompt": PROMPT, "update_end": 1.0}
    updated, still = (pack.run("LoRACLR_CLoRASampler", **inputs, update_strength=s) for s in (STRENGTH, 0.0))

    print(f"\nSeparation loss with updates / without, {STEPS} steps")
    print(f"{'':24}", *(f"{name[:12]:>12}" for name in schedulers))
    ratios = {}
    for sampler in samplers:
        say(f"{sampler}, {len(schedulers)} schedulers")
        for scheduler in schedulers:
            ratios[sampler, scheduler] = ratio(updated, still, sampler, scheduler)
        print(f"{sampler:24}", *(f"{ratios[sampler, scheduler]:12.4f}" for scheduler in schedulers), flush=True)
    worst = max(ratios, key=lambda pair: ratios[pair])
    print(f"highest: {worst[0]} with {worst[1]}")
    return {
        "samplers": {
            "combinations": len(ratios),
            "lowered": sum(value < 1 for value in ratios.values()),
            "highest": round(max(ratios.values()), 4),
            "median": round(statistics.median(ratios.values()), 4),
        }
    }


def ratio(updated: tuple, still: tuple, sampler: str, scheduler: str) -> float:
    with_updates, without = (record(outputs, sampler, scheduler) for outputs in (updated, still))
    totals = [sum(float(record.losses[step]) for step in with_updates.updated) for record in (with_updates, without)]
    return totals[0] / totals[1]


def record(outputs: tuple, sampler: str, scheduler: str):
    """What CLoRA recorded of one run of the stock KSampler."""
    model, positive, negative = outputs
    latent = {"samples": torch.zeros(LATENT)}
    values = (1, STEPS, CFG, sampler, scheduler, positive, negative, latent)
    samples = nodes.common_ksampler(model, *values)[0]["samples"]
    if not samples.isfinite().all():
        raise RuntimeError(f"{sampler} with {scheduler} gave values that are not finite")
    return model.get_attachment("loraclr_clora").records.of(samples)
