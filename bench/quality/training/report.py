"""The table of trained LoRAs, written into the section “Training” of docs/quality.md."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..comparisons import RIGHT, Difference
from ..report import PAGE, replace_between
from .scoring import METHODS, PAIRS, is_current, read
from .ways import TRAINED, WAYS

BEGIN, END = "<!-- training: begin -->", "<!-- training: end -->"  # around the table
STAR = "\\* The code has changed since; `make bench-quality ARGS=training` trains and measures again."


class Score(NamedTuple):
    """A number that each picture of one kind gets; the method that loads the LoRAs, or None for each alone."""

    title: str
    kind: str
    rate: Callable[[dict], float]
    method: str | None = None


def rate_all_right(picture: dict) -> float:
    return float(min(picture["identity"]) >= RIGHT)


SCORES = {
    "identity": Score("identity", "own", lambda picture: picture["identity"]),
    "kept": Score("likeness to the base", "kept", lambda picture: picture["kept"]),
    "unasked": Score("drawn unasked", "class", lambda picture: float(picture["identity"] >= RIGHT)),
    "beside": Score(
        "right beside another thing",
        "beside",
        lambda picture: float(min(picture["identity"], picture["other"]) >= RIGHT),
    ),
    **{method: Score(f"both right, {method}", "together", rate_all_right, method) for method in METHODS},
}


def score_pictures(way: str, score: Score) -> dict[tuple, float]:
    """Return the score of each picture by (concepts, place); empty where no cell is measured."""
    scored = {}
    for group in PAIRS if score.method else [(concept,) for concept in TRAINED]:
        columns = (read(way, group, score.method) or {}).get(score.kind, {})
        of_kind = {key: values for key, values in columns.items() if key != "like_class"}
        for place, values in enumerate(zip(*of_kind.values(), strict=True)):
            scored[group, place] = score.rate(dict(zip(of_kind, values, strict=True)))
    return scored


def compare(way: str, reference: str, score: Score) -> Difference | None:
    """Return how far a way is above another on the pictures that both have; None for fewer than two."""
    ours, theirs = score_pictures(way, score), score_pictures(reference, score)
    differences = torch.tensor([ours[place] - theirs[place] for place in ours.keys() & theirs.keys()])
    if len(differences) < 2:
        return None
    return Difference(float(differences.mean()), float(1.96 * differences.std() / len(differences) ** 0.5))


def measure_preservation(way: str) -> float | None:
    """Return KPS: one less the harmonic mean of the likeness of pictures with the trigger to those with the class word."""
    cells = [read(way, (concept,)) for concept in TRAINED]
    likeness = torch.tensor([value for cell in cells if cell for value in cell["own"]["like_class"]])
    return None if not len(likeness) else float(1 - 1 / (1 / likeness).mean())


def format_mean(way: str, score: Score) -> str:
    """Return a way's mean score, with * if it is older than its code; a dash where it is not measured."""
    scored = score_pictures(way, score)
    if not scored:
        return "–"
    current = all(is_current(way, group, score.method) for group in {group for group, _ in scored})
    return f"{math.fsum(scored.values()) / len(scored):.2f}{'' if current else '*'}"


def format_table() -> str:
    """Return the means of every way that is measured, and what sets them apart, in Markdown."""
    heads = ["way", "KPS", *(score.title for score in SCORES.values())]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for way in WAYS:
        preservation = measure_preservation(way)
        if preservation is None:
            continue
        means = [format_mean(way, score) for score in SCORES.values()]
        lines.append(f"| {way} | {preservation:.3f} | {' | '.join(means)} |")
    heads = ["difference, ± 95 %", *(score.title for score in SCORES.values())]
    lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for way, reference in (*((way, "plain") for way in WAYS if way != "plain"), ("default", "class pictures")):
        differences = [compare(way, reference, score) for score in SCORES.values()]
        if any(differences):
            lines.append(
                f"| {way} − {reference} | {' | '.join('–' if each is None else str(each) for each in differences)} |"
            )
    if any("*" in line for line in lines):
        lines += ["", STAR]
    return "\n".join(lines)


def show() -> None:
    """Write the table into docs/quality.md and print it."""
    table = format_table()
    PAGE.write_text(replace_between(PAGE.read_text("utf-8"), BEGIN, END, table), "utf-8")
    print(table)
