"""Scores every method on the shapes world, through the real nodes, and writes the tables of docs/quality.md.

    make bench-quality                              # measure what is missing or older than its code; hours on two cores
    make bench-quality ARGS="exact clora"           # only these rows
    make bench-quality ARGS=show                    # measure nothing; tables and RESULT from the cells there are
    make bench-quality ARGS=confirm                 # after a change of code that should change no picture, see below

A *row* is a method with its settings, a *column* how many concepts it is given, a *cell* the scores of every picture of one
row and column (`bench/shapes/cells/`). All rows of a column answer the same prompts with the same seeds. Cells carry a hash
of the code and settings they were made with; the tables mark the cells that are older than the code. `confirm` measures the
first prompt of each kind again, for every cell there is: where its scores are the same, the cell counts as today's code's.

    identity   how well a concept is found in pictures of its own prompt, with all concepts of the column loaded; mean
    both       the share of pictures of two (three, four) concepts in which every one is right
    bleeding   the share of these pictures in which a concept's look is on another object
    clean      the share of these pictures in which every one is right and no look is on another object
    kept       how like pictures of prompts without triggers stay to the base model's; 1 the same, 0 another seed's

`columns` says what is asked, `cells` measures and keeps it, `comparisons` holds the statistics, `report` shows them.
"""

import sys

import pack
import torch
from pack import World
from sd15 import say

from . import report
from .cells import confirm_cell, is_current, measure_cell, validate_scores
from .columns import columns_of
from .rivals import FOLDER, RIVALS
from .rows import ROWS


def main(names: list[str]) -> None:
    """Measure or confirm the named rows, or all, then show the tables. “show” only shows them."""
    if unknown := sorted(set(names) - set(ROWS) - {"show", "confirm"}):
        sys.exit(f"quality: there is no row {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    if names != ["show"]:
        validate_scores()
        with torch.inference_mode():  # as ComfyUI runs nodes
            measure(pack.demo_models(), names)
    report.show()


def measure(world: World, names: list[str]) -> None:
    """Measure the cells that are missing or out of date, or confirm them; without names draw the grid anew."""
    rows = ROWS if names in ([], ["confirm"]) else [row for row in ROWS if row in names]
    if not FOLDER.exists() and not set(names) & set(RIVALS):
        say("FreeFuse's rows are left out; bench/quality/rivals.py says how to fetch it")
        rows = [row for row in rows if row not in RIVALS]
    for row in rows:
        for column in columns_of(row):
            if "confirm" in names:
                confirm_cell(world, row, column)
            elif not is_current(row, column):
                measure_cell(world, row, column)
    if not names:
        report.draw_grid(world).save(report.GRID, optimize=True)
