"""How a merge grows: with concepts, with the picture's size, and with one concept more than are known already.

growth.<concepts>     seconds and memory of a merge of so many, beside the bare UNet evaluations that its captures need
    merge_ratio           capture and solve together / the evaluations
    solve_per_concept     solve seconds / concepts, beside those of the fewest
    extra_memory_mib      peak beyond the model
size.<side>           two concepts with latents of another side
    capture_ratio         capture seconds / the evaluations
added                 twelve concepts' captures are on disk, and a thirteenth comes; at 512×512, where a capture is what takes time
    added_ratio           seconds of that merge / seconds of merging thirteen
    disk_mib              what the captures of thirteen take on disk
"""

import gc
import tempfile
import time
from pathlib import Path
from unittest import mock

import comfy.sample
import torch
from capture import PROMPT, STEPS, peak_memory
from comfy.model_patcher import ModelPatcher
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.host.merge import cache as captures
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge import store as capture_store
from loraclr.loraclr_core.host.merge.merge import Keeping, MergeResult
from loraclr.loraclr_core.host.merge.target import CaptureSettings
from sd15 import exact_merge, random_concept, random_sd15, say

CONCEPTS = (2, 4, 8, 12, 16)
SIDES = (24, 32, 48, 64)
KNOWN = 12
ADDED_SIDE, ADDED_STEPS = 64, 8


def run() -> dict:
    say("building SD1.5 with random weights")
    model, clip = random_sd15(seed=0)
    with tempfile.TemporaryDirectory(prefix="loraclr-bench-") as folder:
        concepts = [random_concept(model, clip, Path(folder), index) for index in range(max(CONCEPTS))]
        world = World(model, clip, concepts)
        world.bare_seconds(32)  # the first run loads
        with mock.patch.object(capture_store, "folder", return_value=Path(folder) / "captures"):
            return {"scale": {"growth": growth(world), "size": sizes(world), "added": added(world)}}


class World:
    """A model, its concepts, and merges of them."""

    def __init__(self, model: ModelPatcher, clip, concepts: list[Concept]):
        self.model, self.clip, self.concepts = model, clip, concepts

    def merge(self, count: int, side: int = 32, steps: int = STEPS, keeping: Keeping = "in memory") -> MergeResult:
        """As a fresh process would: no capture is known."""
        captures.forget()
        gc.collect()
        capture = CaptureSettings(prompts=(PROMPT,), steps=steps, seed=0, latent_shape=(4, side, side))
        what = f"{count} concepts, latents of {side}"
        return merging.merge(
            self.model,
            self.clip,
            self.concepts[:count],
            exact_merge(capture, keeping),
            lambda phase, _: say(f"{what}: {phase}"),
        )

    def bare_seconds(self, side: int) -> float:
        """One concept's evaluations without hooks."""
        latent = torch.zeros(1, 4, side, side)
        cond = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(PROMPT))
        start = time.perf_counter()
        comfy.sample.sample(
            self.model,
            comfy.sample.prepare_noise(latent, 0),
            STEPS,
            1.0,
            "euler",
            "normal",
            cond,
            [],
            latent,
            disable_pbar=True,
            seed=0,
        )
        return time.perf_counter() - start


def growth(world: World) -> dict:
    results: dict = {}
    print(f"\nmerges by number of concepts, SD1.5, latents 32×32, {STEPS} steps, rank 16")
    for count in CONCEPTS:
        before = world.bare_seconds(32)
        with peak_memory() as memory:
            result = world.merge(count)
        bare = (before + world.bare_seconds(32)) / 2 * count
        seconds = result.seconds
        results[str(count)] = {
            "merge_ratio": round((seconds["capture"] + seconds["solve"]) / bare, 3),
            "solve_seconds": seconds["solve"],
            "extra_memory_mib": round(memory[0]),
        }
        print(
            f"  {count}: capture {seconds['capture']:.1f} s, solve {seconds['solve']:.1f} s, evaluations {bare:.1f} s"
        )
    fewest = results[str(CONCEPTS[0])]["solve_seconds"] / CONCEPTS[0]
    for count in CONCEPTS:
        entry = results[str(count)]
        entry["solve_per_concept"] = round(entry.pop("solve_seconds") / count / fewest, 3)
    return results


def sizes(world: World) -> dict:
    results = {}
    print("\nmerges of two concepts by size of the latents")
    for side in SIDES:
        before = world.bare_seconds(side)
        seconds = world.merge(2, side).seconds["capture"]
        bare = before + world.bare_seconds(side)
        results[str(side)] = {"capture_ratio": round(seconds / bare, 3)}
        print(f"  {side}×{side}: capture {seconds:.1f} s, evaluations {bare:.1f} s")
    return results


def added(world: World) -> dict:
    def seconds(count: int, keeping: Keeping) -> dict[str, float]:
        return world.merge(count, ADDED_SIDE, ADDED_STEPS, keeping).seconds

    seconds(KNOWN, "on disk")
    grown = seconds(KNOWN + 1, "on disk")
    disk = capture_store.size() / 2**20
    capture_store.clear()
    whole = seconds(KNOWN + 1, "in memory")
    print(f"\none concept more, latents {ADDED_SIDE}×{ADDED_SIDE}, {ADDED_STEPS} steps")
    for what, phases in ((f"beside {KNOWN} on disk", grown), (f"all {KNOWN + 1} from nothing", whole)):
        print(f"  {what}: " + ", ".join(f"{phase} {elapsed:.1f} s" for phase, elapsed in phases.items()))
    return {"added_ratio": round(sum(grown.values()) / sum(whole.values()), 3), "disk_mib": round(disk)}
