"""What a whole picture of CLoRA costs beside a plain one, on SD1.5's full UNet with random weights.

A 32×32 latent, Euler with 20 steps and CFG. ROUNDS rounds alternate over the pictures; a ratio is the median over them.

    all        a picture with K concepts, all of them at every step / a plain picture
    in_turn    the same with one concept at every step, in turn
"""

import statistics
import time

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from sampling import CFG, ours, random_lora, random_text, sample
from sd15 import random_sd15, say

CONCEPTS = (2, 4, 8)
STEPS = 20
ROUNDS = 1
WAYS = {"all": 0, "in_turn": 1}  # concepts per step


def run() -> dict:
    say("building SD1.5 with random weights")
    model, clip = random_sd15(seed=0)
    seconds: dict[str, list[float]] = {}
    for turn in range(ROUNDS + 1):
        for name, guider in guiders(model, clip).items():
            start = time.perf_counter()
            sample(guider, 1, STEPS if turn else 1, lambda: None)  # the first round loads and caches
            if turn:
                seconds.setdefault(name, []).append(time.perf_counter() - start)
                say(f"round {turn} of {ROUNDS}, {name}: {seconds[name][-1]:.1f} s")
    print(f"\nWhole pictures, SD1.5, {STEPS} steps")
    result = {}
    for name, times in seconds.items():
        ratios = [one / plain for one, plain in zip(times, seconds["plain"], strict=True)]
        print(f"  {name:20} {statistics.median(times):7.1f} s, {statistics.median(ratios):.2f} of a plain picture")
        if name != "plain":
            count, _, way = name.partition(" concepts, ")
            result.setdefault(count, {})[way] = round(statistics.median(ratios), 2)
    return {"picture": result}


def guiders(model: ModelPatcher, clip) -> dict[str, comfy.samplers.CFGGuider]:
    """Return what samples each picture, by its name."""
    texts = [random_text(seed) for seed in range(2 * (max(CONCEPTS) + 1))]
    plain = comfy.samplers.CFGGuider(model)
    plain.set_conds([[texts[0], {}]], [[texts[1], {}]])
    plain.set_cfg(CFG)
    result = {"plain": plain}
    for count in CONCEPTS:
        loras, words = [random_lora(model, seed) for seed in range(count)], texts[: 2 * (count + 1)]
        for way, per_step in WAYS.items():
            result[f"{count} concepts, {way}"] = ours(
                model, clip, loras, words, 0.0, "one branch at a time", concepts_per_step=per_step
            )
    return result
