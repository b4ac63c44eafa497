"""The table of trained LoRAs, written into the section “Training” of docs/quality.md."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..comparisons import RIGHT, Difference
from ..methods import Group
from ..report import PAGE, replace_between
from .scoring import METHODS, cells_of, is_current, read
from .ways import COMPARED, IDEAS, TRAINED, concepts_of

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

# What KPS averages. Its harmonic mean and this one's arithmetic mean hardly differ, and this has a value for each picture.
UNLIKENESS = Score("KPS", "own", lambda picture: 1 - picture["like_class"])


def score_pictures(way: str, score: Score) -> dict[tuple, float]:
    """Return the score of each picture by (concepts, place); empty where no cell is measured."""
    scored = {}
    for group, method in cells_of(way):
        if method != score.method:
            continue
        columns = (read(way, group, method) or {}).get(score.kind, {})
        for place, values in enumerate(zip(*columns.values(), strict=True)):
            scored[group, place] = score.rate(dict(zip(columns, values, strict=True)))
    return scored


def compare(way: str, reference: str, score: Score) -> Difference | None:
    """Return how far a way is above another on the pictures that both have; None for fewer than two."""
    ours, theirs = score_pictures(way, score), score_pictures(reference, score)
    differences = torch.tensor([ours[place] - theirs[place] for place in ours.keys() & theirs.keys()])
    if len(differences) < 2:
        return None
    return Difference(float(differences.mean()), float(1.96 * differences.std() / len(differences) ** 0.5))


def measure_preservation(way: str, concepts: Group = TRAINED) -> float | None:
    """Return KPS: one less the harmonic mean of the likeness of pictures with the trigger to those with the class word."""
    cells = [read(way, (concept,)) for concept in concepts]
    likeness = torch.tensor([value for cell in cells if cell for value in cell["own"]["like_class"]])
    return None if not len(likeness) else float(1 - 1 / (1 / likeness).mean())


def format_mean(way: str, score: Score, concepts: Group = TRAINED) -> str:
    """Return a way's mean score over these concepts, with * if it is older than its code; a dash where it is not measured."""
    scored = {place: value for place, value in score_pictures(way, score).items() if set(place[0]) <= set(concepts)}
    if not scored:
        return "–"
    current = all(is_current(way, group, score.method) for group in {group for group, _ in scored})
    return f"{math.fsum(scored.values()) / len(scored):.2f}{'' if current else '*'}"


def format_compared() -> list[str]:
    """Return the means of the compared ways, and what sets them apart, in Markdown."""
    heads = ["way", "KPS", *(score.title for score in SCORES.values())]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for way in COMPARED:
        preservation = measure_preservation(way)
        if preservation is not None:
            means = [format_mean(way, score) for score in SCORES.values()]
            lines.append(f"| {way} | {preservation:.3f} | {' | '.join(means)} |")
    compared = [UNLIKENESS, *SCORES.values()]
    heads = ["difference, ± 95 %", *(score.title for score in compared)]
    lines += ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for way, reference in (*((way, "plain") for way in COMPARED if way != "plain"), ("default", "class pictures")):
        differences = [compare(way, reference, score) for score in compared]
        if any(differences):
            lines.append(
                f"| {way} − {reference} | {' | '.join('–' if each is None else str(each) for each in differences)} |"
            )
    return lines


def format_ideas() -> list[str]:
    """Return the means of the changed defaults, and their differences from the default, in Markdown; nothing where none is measured."""
    alone = [score for score in SCORES.values() if score.method is None]
    (concept,) = concepts_of(IDEAS[0])
    heads = [f"{concept.name} alone", "KPS", *(score.title for score in alone)]
    lines = ["", f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    rows = [way for way in ("plain", "default", *IDEAS) if read(way, (concept,))]
    for way in rows:
        cells = [format_mean(way, score, (concept,)) for score in alone]
        differences = [compare(way, "default", score) if way in IDEAS else None for score in alone]
        pairs = zip(cells, differences, strict=True)
        shown = [mean if difference is None else f"{mean} ({difference})" for mean, difference in pairs]
        lines.append(f"| {way} | {measure_preservation(way, (concept,)):.3f} | {' | '.join(shown)} |")
    return lines if rows else []


def format_tables() -> str:
    """Return both tables in Markdown, with what * means where one stands."""
    lines = format_compared() + format_ideas()
    return "\n".join(lines + (["", STAR] if any("*" in line for line in lines) else []))


def show() -> None:
    """Write the tables into docs/quality.md and print them."""
    tables = format_tables()
    PAGE.write_text(replace_between(PAGE.read_text("utf-8"), BEGIN, END, tables), "utf-8")
    print(tables)
