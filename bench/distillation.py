"""Speed and memory of the distillation on a full-size SD1.5 with random weights.

step_ratio            seconds of a step / seconds of as many UNet evaluations as it has rows, without hooks or gradients
extra_memory_mib      peak of the process's own memory beyond the loaded model, of the whole merge
"""

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from capture import LATENT, PROMPT, BareRun, peak_memory
from capture import STEPS as EVALUATIONS
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge.target import CaptureSettings
from sd15 import exact_merge, random_concept, random_sd15, say

CONCEPTS = 2
ROWS = CONCEPTS + 2  # of a step: the concepts', a class word's and the empty prompt's
STEPS = 5


def run() -> dict:
    say("building SD1.5 with random weights")
    model, clip = random_sd15(seed=0)
    capture = CaptureSettings(prompts=(PROMPT,), steps=EVALUATIONS, seed=0, latent_shape=LATENT)
    settings = dataclasses.replace(exact_merge(capture), distillation_steps=STEPS)
    began: dict[str, float] = {}

    def progress(phase: str, done: float) -> None:
        say(phase)
        if phase.startswith("distilling, step"):
            began.setdefault(phase, time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="loraclr-bench-") as folder:
        concepts = [random_concept(model, clip, Path(folder), index) for index in range(CONCEPTS)]
        bare = BareRun(model, clip)
        evaluations = [bare.seconds() for _ in range(3)]  # the first run loads
        with peak_memory() as memory:
            merging.merge(model, clip, concepts, settings, progress)
        evaluations += [bare.seconds() for _ in range(2)]
    starts = list(began.values())
    step = statistics.median(after - before for before, after in itertools.pairwise(starts))
    evaluation = statistics.median(evaluations[1:]) / EVALUATIONS
    print(f"distillation of {CONCEPTS} concepts: a step {step:.1f} s, an evaluation {evaluation:.2f} s")
    ratio = step / (ROWS * evaluation)
    return {"distillation": {"step_ratio": round(ratio, 2), "extra_memory_mib": round(memory[0])}}
