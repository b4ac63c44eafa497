"""Trains concepts in several ways through the node, and scores what each LoRA leaves alone; writes the table of docs/quality.md.

    make bench-quality ARGS=training                     # train plainly, as published and by default, where that is missing
    make bench-quality ARGS="training plain default"     # only these ways
    make bench-quality ARGS="training show"              # measure nothing; the table from the cells there are

LoRAs go to the host's folder of LoRAs, cells beside the other ones (`bench/shapes/cells/`). Each way's LoRAs are first measured
alone, then together. A training that was stopped goes on where it was.
"""

import sys

import pack
import torch
from shapes.methods import World

from ..cells import validate_scores
from . import report
from .scoring import METHODS, PAIRS, is_current, measure
from .ways import FIRST, TRAINED, WAYS


def main(names: list[str]) -> None:
    """Train and measure the named ways, or FIRST, then show the table. “show” only shows it."""
    if unknown := sorted(set(names) - set(WAYS) - {"show"}):
        sys.exit(f"training: there is no way {', '.join(unknown)}; choose from {', '.join(WAYS)}")
    if names != ["show"]:
        validate_scores()
        with torch.inference_mode():  # as ComfyUI runs nodes
            measure_ways(World(*pack.demo_models()), [way for way in WAYS if way in (names or FIRST)])
    report.show()


def measure_ways(world: World, ways: list[str]) -> None:
    """Measure every cell of these ways that is missing or out of date, LoRAs alone first."""
    alone = [((concept,), None) for concept in TRAINED]
    for cells in (alone, [(group, method) for group in PAIRS for method in METHODS]):
        for way in ways:
            for group, method in cells:
                if not is_current(way, group, method):
                    measure(world, way, group, method)
