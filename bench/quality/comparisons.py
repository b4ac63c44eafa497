"""Scores picture by picture, their means, and paired differences between methods with 95 % intervals."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .cells import read_cell
from .columns import BATCH

RIGHT = 0.65  # identity of a concept that counts as shown: midway between what true and other concepts may score


class Score(NamedTuple):
    """A number that each picture of one kind gets."""

    # The kind of picture it is of.
    kind: str
    # What its table is called.
    title: str
    # Turns one picture's values into the number.
    rate: Callable[[dict], float]


SCORES = {
    "identity": Score(
        "own", "Identity of a concept in pictures of its own prompt", lambda picture: picture["identity"][0]
    ),
    "both": Score(
        "together",
        "Share of pictures of several concepts in which every concept is right",
        lambda picture: float(min(picture["identity"]) >= RIGHT),
    ),
    "bleeding": Score(
        "together",
        "Share of these pictures in which a concept's look is on another object",
        lambda picture: float(picture["bleeding"] >= RIGHT),
    ),
    "clean": Score(
        "together",
        "Share of these pictures in which every concept is right and no look is on another object",
        lambda picture: float(min(picture["identity"]) >= RIGHT > picture["bleeding"]),
    ),
    "kept": Score("kept", "Likeness of pictures without triggers to the base model's", lambda picture: picture["kept"]),
}


class Difference(NamedTuple):
    """The mean of paired differences, and half the width of its 95 % confidence interval."""

    mean: float
    half_width: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half_width:.3f}"


def score_pictures(row: str, column: str, score: str) -> dict[tuple[int, int], float]:
    """Return the score of each picture by (prompt, place in its batch); empty where the cell is not measured."""
    kind, _, rate = SCORES[score]
    columns = (read_cell(row, column) or {}).get(kind)
    if columns is None:
        return {}
    pictures = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {(picture["prompt"], number % BATCH): rate(picture) for number, picture in enumerate(pictures)}


def average(row: str, column: str, score: str) -> float | None:
    """Return the mean score of a cell, or None where it is not measured."""
    scored = score_pictures(row, column, score)
    return sum(scored.values()) / len(scored) if scored else None


def compare(row: str, reference: str, column: str, score: str) -> Difference | None:
    """Return how far a row is above the reference on the pictures that both have; None for fewer than two."""
    ours = score_pictures(row, column, score)
    theirs = score_pictures(reference, "1" if reference == "alone" else column, score)
    differences = torch.tensor([ours[place] - theirs[place] for place in ours.keys() & theirs.keys()])
    if len(differences) < 2:
        return None
    return Difference(float(differences.mean()), float(1.96 * differences.std() / len(differences) ** 0.5))
