"""What a whole picture by the sampler costs beside a plain one, on SD1.5 and on KOALA-700M, of SDXL's form, with random weights.

128×128; 20 steps of Euler with guidance, LoRAs of rank 16. A plain picture is made between any two others; a ratio is to
the mean of the plain ones just before and after. Name no other section beside this one: it changes how memory is freed.

    all_2             two concepts, all at every step (the default) / a plain picture
    fast_2, 4, 8      so many concepts, one per step, and the plain picture at every second step / a plain picture
    faster_2, 4, 8    the same, and the plain picture at every third step / a plain picture
    spread            the slowest plain picture / the quickest
"""

import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.sd
import nodes
import pack
import torch
from comfy.model_patcher import ModelPatcher
from sd15 import random_concept, random_sd15, say
from sdxl import checkpoint, encoded, loras_in

LATENT = (1, 4, 16, 16)
STEPS, CFG = 20, 7.0
TURNS = {"fast": {"concepts_per_step": 1, "plain_every": 2}, "faster": {"concepts_per_step": 1, "plain_every": 3}}
# (concepts, settings)
KINDS = {"all_2": (2, {})} | {
    f"{name}_{count}": (count, settings) for name, settings in TURNS.items() for count in (2, 4, 8)
}


# Each builds its model in a folder.
MODELS: dict[str, Callable[[Path], tuple[ModelPatcher, comfy.sd.CLIP]]] = {
    "SD1.5": lambda folder: random_sd15(seed=0),
    "SDXL's form": lambda folder: checkpoint(folder / "koala.safetensors"),
}


def run() -> dict:
    keep_freed_memory()
    result = {}
    with tempfile.TemporaryDirectory(prefix="loraclr-bench-") as name, loras_in(Path(name)):
        for number, (title, build) in enumerate(MODELS.items()):
            say(f"building {title} with random weights")
            model, clip = build(Path(name))
            chain: list = []
            for index in range(max(count for count, _ in KINDS.values())):
                concept = random_concept(model, clip, Path(name), 100 * number + index)
                values = {"trigger": concept.trigger, "class_word": concept.class_word, "name": concept.name}
                names = {"lora_name": concept.lora_name, "concepts": chain or None}
                chain, *_ = pack.run("LoRACLR_LoadConceptLoRA", **names, **values)
            result[title] = measure(title, model, clip, chain)
    return {"picture": result}


def keep_freed_memory() -> None:
    """Make glibc keep what is freed until the process ends, as PyTorch does on a GPU. Other C libraries stay as they are.

    Otherwise large blocks go back to the system, or not, depending on the sizes freed before: on two cores the same plain
    picture of SD1.5 took 18 or 22 seconds; with this it takes 13.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option:
        for parameter, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            set_option(parameter, value)


def measure(title: str, model: ModelPatcher, clip: comfy.sd.CLIP, chain: list) -> dict[str, float]:
    """Return the cost of each kind of picture, in plain pictures."""
    plain = model, encoded(clip, "a photo of a thing in a park"), encoded(clip, "")
    conditioned = {kind: composed(model, clip, chain[:count], settings) for kind, (count, settings) in KINDS.items()}
    for outputs in (plain, *conditioned.values()):
        seconds(*outputs, steps=1)  # what is done once only
    plains, ratios = [seconds(*plain)], {}
    for kind, outputs in conditioned.items():
        took = seconds(*outputs)
        plains.append(seconds(*plain))
        ratios[kind] = round(took / statistics.fmean(plains[-2:]), 2)
        say(f"{title}, {kind}: {ratios[kind]:.2f} plain pictures")
    ratios["spread"] = round(max(plains) / min(plains), 2)
    print(f"\n{title}: a picture of {LATENT} in {STEPS} steps, in plain ones")
    for kind, ratio in ratios.items():
        print(f"  {kind:10} {ratio:.2f}")
    return ratios


def composed(model: ModelPatcher, clip: comfy.sd.CLIP, chain: list, settings: dict) -> tuple[ModelPatcher, list, list]:
    """Return the sampler node's outputs for a prompt that names all concepts."""
    prompt = "a photo of " + " and ".join(f"{{{concept.name}}}" for concept in chain)
    values = {"model": model, "clip": clip, "concepts": chain, "prompt": prompt, "live_view": False}
    return pack.run("LoRACLR_CLoRASampler", **values, **settings)


def seconds(model: ModelPatcher, positive: list, negative: list, steps: int = STEPS) -> float:
    """Return how long a picture takes by the stock sampler."""
    comfy.model_management.load_models_gpu([model])
    latent = {"samples": torch.zeros(LATENT)}
    start = time.perf_counter()
    nodes.KSampler().sample(model, 0, steps, CFG, "euler", "normal", positive, negative, latent, 1.0)
    return time.perf_counter() - start
