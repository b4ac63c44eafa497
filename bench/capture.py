"""Speed and memory of a real merge on a full-size SD1.5 with random weights.

capture_ratio         capture seconds / seconds of as many UNet evaluations without hooks, taken in alternation
extra_memory_mib      peak of the process's own memory beyond the loaded model after a bare run; pages of mapped
                      files, which the system may drop, are not counted
"""

import ctypes
import gc
import math
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.sample
import comfy.samplers
import psutil
import torch
from comfy.model_patcher import ModelPatcher
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge.target import CaptureSettings
from sd15 import exact_merge, random_concept, random_sd15, say

CONCEPTS = (2, 12)
LATENT = (4, 32, 32)
STEPS = 4
# Concepts captured at least per figure: a few are soon captured, and one run of them is at the mercy of the machine.
CAPTURED = 12
PROMPT = "photo of a {trigger}"


def run() -> dict:
    say("building SD1.5 with random weights")
    model, clip = random_sd15(seed=0)
    with tempfile.TemporaryDirectory(prefix="loraclr-bench-") as folder:
        concepts = [random_concept(model, clip, Path(folder), index) for index in range(max(CONCEPTS))]
        bare = BareRun(model, clip)
        bare.seconds()  # the first run loads
        return {"merge": {str(count): measure_merges(model, clip, concepts[:count], bare) for count in CONCEPTS}}


def measure_merges(model: ModelPatcher, clip, concepts: list[Concept], bare_run: "BareRun") -> dict:
    """The same merge until CAPTURED concepts have been captured: seconds of all of them, memory of the largest."""
    runs = [merged_once(model, clip, concepts, bare_run) for _ in range(math.ceil(CAPTURED / len(concepts)))]
    capture_seconds, bare_seconds, peaks = zip(*runs, strict=True)
    # Of sums, not of the best: captures and bare runs take turns, so both see the machine at every speed it had.
    ratio, peak = sum(capture_seconds) / sum(bare_seconds), max(peaks)
    print(f"{len(concepts)} concepts: capture / bare evaluations {ratio:.3f}, peak beyond the model {peak:.0f} MiB")
    return {"capture_ratio": round(ratio, 3), "extra_memory_mib": round(peak)}


def merged_once(model: ModelPatcher, clip, concepts: list[Concept], bare_run: "BareRun") -> tuple[float, float, float]:
    """Seconds of the captures, seconds of the bare runs between them, and MiB beyond the model."""
    capture = CaptureSettings(prompts=(PROMPT,), steps=STEPS, seed=0, latent_shape=LATENT)
    # A fresh clone: captures are kept per model, and this run is to make its own.
    model = model.clone()
    bare: list[float] = []

    def progress(phase: str, done: float) -> None:
        say(f"{len(concepts)} concepts, {phase}")
        # Before every concept's capture, the same evaluations without hooks.
        if phase.startswith("capturing ") and "evaluation" not in phase:
            bare.append(bare_run.seconds())

    with peak_memory() as memory:
        result = merging.merge(model, clip, concepts, exact_merge(capture), progress)
    capture_seconds = result.seconds["capture"] - sum(bare)
    print(
        f"\nmerge of {len(concepts)} concepts on SD1.5, latent {LATENT}, {STEPS} steps, {result.evaluations} evaluations"
    )
    print(f"  capture {capture_seconds:.1f} s, bare evaluations {sum(bare):.1f} s")
    print("  seconds:", ", ".join(f"{name} {seconds:.1f}" for name, seconds in result.seconds.items()), flush=True)
    return capture_seconds, sum(bare), memory[0]


class BareRun:
    """One concept's UNet evaluations through the host's sampler, without hooks; the prompt is encoded beforehand."""

    def __init__(self, model: ModelPatcher, clip):
        self.guider = comfy.samplers.CFGGuider(model)
        self.guider.inner_set_conds({"positive": clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))})
        self.latent = torch.zeros(1, *LATENT)
        self.noise = comfy.sample.prepare_noise(self.latent, 0)
        sampling = model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)

    def seconds(self) -> float:
        sampler = comfy.samplers.sampler_object("euler")
        start = time.perf_counter()
        self.guider.sample(self.noise, self.latent, sampler, self.sigmas, disable_pbar=True, seed=0)
        return time.perf_counter() - start


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """A list whose one number is, afterwards, how much this process grew at most, in MiB, device memory included."""
    cuda = torch.cuda.is_available()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory freed before is not the baseline's
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    before, device_before = own_memory(), torch.cuda.memory_allocated() if cuda else 0
    result = [0.0]
    with watching(own_memory) as peak:
        try:
            yield result
        finally:
            device = torch.cuda.max_memory_allocated() - device_before if cuda else 0
    result[0] = (peak[0] - before + device) / 2**20


@contextmanager
def watching(read: Callable[[], int], interval: float = 0.01) -> Iterator[list[int]]:
    """A list whose one number is the most that `read` has returned so far."""
    peak, stop = [read()], threading.Event()

    def watch() -> None:
        while not stop.wait(interval):
            peak[0] = max(peak[0], read())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()
        peak[0] = max(peak[0], read())


def own_memory() -> int:
    """Resident bytes of this process that are backed by no file."""
    memory = psutil.Process().memory_info()
    return memory.rss - getattr(memory, "shared", 0)
