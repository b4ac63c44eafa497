"""What a concept's capture takes on disk, what is lost by it, and merges from a library of such files.

files                 SD1.5 with random weights, two concepts of rank 16 on all layers that trainers train, 20 steps
    mb, sdxl_mb           a concept's file; that of SDXL's layers, counted from their shapes
    counted_ratio         the same count for SD1.5 / its real file
    packing_ratio         seconds of packing a capture / of making it
    loss                  held-out error of the merge by files / in memory, beside the base's, mean over layers and concepts
    worst_loss            the same of one layer and concept
library               copies of the two concepts' files, a margin of zero (copies are not distinct)
    subset_ratio          seconds of merging twelve that a library of 64 holds / twelve of which there is nothing else
    added_ratio           seconds of reading 64 and capturing one more / capturing 65, at 512×512 pixels
    solve_seconds, extra_memory_mib    of merging the 64
    named_seconds, named_memory_mib    of merging two that a prompt names, of chains of 2, 8 and 64
"""

import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import comfy.model_detection
import torch
from capture import STEPS as BARE_STEPS
from capture import peak_memory
from comfy.sdxl_clip import SDXLClipModel
from loraclr.loraclr_core.braces import select_named
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.host.merge import cache, packing, store
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge.capture import HELD_OUT
from loraclr.loraclr_core.host.merge.merge import Keeping, MergeResult
from loraclr.loraclr_core.host.merge.store import CaptureKey, CaptureStore
from loraclr.loraclr_core.host.merge.target import SAMPLES, CaptureSettings, Target
from loraclr.loraclr_core.merge.objective import Margin
from scale import World
from sd15 import exact_merge, lora_layers, random_concept, random_sd15, say
from sdxl import UNET_CONFIG as KOALA_CONFIG
from torch import Tensor, nn

STEPS, SIDE = 20, 32
CAPTURE = CaptureSettings(prompts=("photo of a {trigger}",), steps=STEPS, seed=0, latent_shape=(4, SIDE, SIDE))
LIBRARY, SUBSET = 64, 12
CHAINS = 2, 8, LIBRARY  # of which a prompt names two
SDXL_CONFIG = KOALA_CONFIG | {
    "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
}
SAME_INPUT = ("attn1.to_k", "attn1.to_v", "k_proj", "v_proj")  # as the layer before


def run() -> dict:
    say("building SD1.5 with random weights")
    model, clip = random_sd15(seed=0)
    with tempfile.TemporaryDirectory(prefix="loraclr-bench-") as folder:
        concepts = [random_concept(model, clip, Path(folder), index) for index in range(2)]
        world = World(model, clip, concepts)
        world.bare_seconds(SIDE)  # the first run loads
        with mock.patch.object(store, "folder", return_value=Path(folder) / "captures"):
            return {"files": files_of_two(world), "library": library(world)}


def merge(world: World, concepts: list[Concept], keeping: Keeping) -> MergeResult:
    """As a fresh process would."""
    cache.forget()
    settings = replace(exact_merge(CAPTURE, keeping), margin=Margin(0.0))
    what = f"{len(concepts)} concepts, {keeping}"
    return merging.merge(world.model, world.clip, concepts, settings, lambda phase, _: say(f"{what}: {phase}"))


def errors(result: MergeResult) -> Tensor:
    """(layers, concepts), beside those of the base."""
    merged, base = ([getattr(layer, name) for layer in result.solution.layers] for name in ("merged", "base"))
    return torch.tensor(merged) / torch.tensor(base)


def files_of_two(world: World) -> dict:
    two, seconds = world.concepts[:2], []

    def timed(*args):
        start = time.perf_counter()
        packed = packing.pack(*args)
        seconds.append(time.perf_counter() - start)
        return packed

    in_memory = merge(world, two, "in memory")
    with mock.patch.object(cache, "pack", timed):
        by_files = merge(world, two, "on disk")
    capture, packed = in_memory.seconds["capture"] / 2, sum(seconds) / len(seconds)
    megabytes = store.size() / 2 / 1e6
    counted = count_bytes(world.model.model, world.clip.cond_stage_model) / 1e6
    config = comfy.model_detection.model_config_from_unet_config(SDXL_CONFIG, {})
    sdxl = count_bytes(config.get_model({}, device="meta"), SDXLClipModel(device="meta")) / 1e6
    loss = errors(by_files) / errors(in_memory)
    ratio = float(errors(by_files).mean() / errors(in_memory).mean())
    print(f"\ntwo concepts, SD1.5, latents {SIDE}×{SIDE}, {STEPS} steps")
    print(f"  a file {megabytes:.1f} MB, counted {counted:.1f} MB, of SDXL {sdxl:.0f} MB")
    print(f"  capture {capture:.1f} s, packing {packed:.1f} s")
    print(f"  held-out error in memory {errors(in_memory).mean():.4f}, by files {errors(by_files).mean():.4f}")
    print(f"  of a layer and concept: median {loss.median():.3f}, largest {loss.max():.2f} times that in memory")
    return {
        "mb": round(megabytes, 1),
        "sdxl_mb": round(sdxl, 1),
        "counted_ratio": round(counted / megabytes, 3),
        "packing_ratio": round(packed / capture, 3),
        "loss": round(ratio, 4),
        "worst_loss": round(float(loss.max()), 3),
    }


def count_bytes(model: nn.Module, text_encoder: nn.Module) -> int:
    """Return the bytes of a file of all layers that trainers train."""
    total, context_counted = 0, False
    for name, layer in lora_layers(model, text_encoder):
        out_width, in_width = layer.weight.flatten(1).shape
        total += 2 * SAMPLES * out_width
        context = name.endswith(("attn2.to_k", "attn2.to_v"))
        if not name.endswith(SAME_INPUT) and not (context and context_counted):
            total += in_width * (packing.RANK + packing.STRONG + 2 + 2 * (SAMPLES + HELD_OUT))
        context_counted = context_counted or context
    return total


def library(world: World) -> dict:
    """Return the figures; the files of the two concepts are on disk."""
    captures = CaptureStore(Target(world.model, world.clip, {}, {}), CAPTURE, [])

    def copy(index: int) -> Concept:
        concept = world.concepts[index % 2]
        other = concept._replace(name=f"copy{index}", trigger=f"copy{index}")
        paths = [captures.path(CaptureKey(each.sha256, each.trigger, 1.0, 1.0)) for each in (concept, other)]
        shutil.copy(*paths)
        return other

    copies = [copy(index) for index in range(SUBSET)]
    few = sum(seconds_from_files(world, copies).values())
    copies += [copy(index) for index in range(SUBSET, LIBRARY)]
    subset = sum(seconds_from_files(world, copies[-SUBSET:]).values())
    named = [merge_named(world, copies[:chain]) for chain in CHAINS]
    with peak_memory() as memory:
        whole = seconds_from_files(world, copies)
    # A capture of that size takes as long as bare evaluations; see the table of sizes.
    large = world.bare_seconds(64) / BARE_STEPS * STEPS
    print(f"\na library of {LIBRARY}: " + ", ".join(f"{phase} {s:.1f} s" for phase, s in whole.items()))
    print(f"  {SUBSET} of {LIBRARY} {subset:.1f} s, of {SUBSET} {few:.1f} s; a capture at 512×512 {large:.0f} s")
    print(f"  memory {memory[0]:.0f} MiB")
    return {
        "subset_ratio": round(subset / few, 3),
        "added_ratio": round((whole["capture"] + large) / ((LIBRARY + 1) * large), 4),
        "solve_seconds": round(whole["solve"], 1),
        "extra_memory_mib": round(memory[0]),
        "named_seconds": [round(seconds, 1) for seconds, _ in named],
        "named_memory_mib": [round(mebibytes) for _, mebibytes in named],
    }


def seconds_from_files(world: World, concepts: list[Concept]) -> dict[str, float]:
    """Merge from the files and return the seconds of each phase. Raises RuntimeError where a file is missing."""
    result = merge(world, concepts, "on disk")
    if result.evaluations:
        raise RuntimeError("the library lacks a concept")
    return result.seconds


def merge_named(world: World, chain: list[Concept]) -> tuple[float, float]:
    """Merge the first and the last concept of a chain by prompt; return seconds and MiB beyond the model."""
    prompt = f"{{{chain[0].name}}} beside {{{chain[-1].name}}}"
    with peak_memory() as memory:
        seconds = sum(seconds_from_files(world, select_named(prompt, chain)).values())
    print(f"  two of {len(chain)} by prompt {seconds:.1f} s, {memory[0]:.0f} MiB")
    return seconds, memory[0]
