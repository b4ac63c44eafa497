"""Trains concepts in several ways through the node, and scores what each LoRA leaves alone; writes the table of docs/quality.md.

    make bench-quality ARGS=training                     # every way, where it is missing; hours on two cores
    make bench-quality ARGS="training plain default"     # only these ways
    make bench-quality ARGS="training show"              # measure nothing; the table from the cells there are

LoRAs go to the host's folder of LoRAs, cells beside the other ones (`bench/shapes/cells/`). The compared ways' LoRAs of four concepts
are measured alone and together; changes of the default, by one concept alone. A training that was stopped goes on
where it was.
"""

import sys

import pack
import torch
from pack import World

from ..cells import validate_scores
from . import report
from .scoring import cells_of, is_current, measure
from .ways import WAYS


def main(names: list[str]) -> None:
    """Train and measure the named ways, or all, then show the tables. “show” only shows them."""
    if unknown := sorted(set(names) - set(WAYS) - {"show"}):
        sys.exit(f"training: there is no way {', '.join(unknown)}; choose from {', '.join(WAYS)}")
    if names != ["show"]:
        validate_scores()
        with torch.inference_mode():  # as ComfyUI runs nodes
            measure_ways(pack.demo_models(), [way for way in WAYS if way in (names or WAYS)])
    report.show()


def measure_ways(world: World, ways: list[str]) -> None:
    """Measure every cell of these ways that is missing or out of date."""
    for way in ways:
        for group, method in cells_of(way):
            if not is_current(way, group, method):
                measure(world, way, group, method)
