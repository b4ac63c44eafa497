"""Scores of a concept's LoRA, from the vectors that an image encoder gives its pictures.

The Knowledge Preservation Score (KPS) of CAT (arXiv 2404.07554) compares pictures with and without the trigger. The formula
here, one minus the harmonic mean of (cos + 1) / 2, is read from the paper's figures. It compares the LoRA with itself only;
`kept` compares it with the base model.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy import special
from torch import Tensor

CONFIDENCE = 0.95


class Score(NamedTuple):
    """A score over a number of pictures."""

    value: float
    # Half of the 95 % interval; None where the pictures are too few to tell.
    margin: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.margin is None else f" ± {self.margin:.3f}")


class Vectors(NamedTuple):
    """One vector per picture, in the order of the pictures."""

    with_trigger: Tensor
    without_trigger: Tensor
    # Of the base model, without the trigger.
    base: Tensor | None = None
    # Pictures of the concept.
    references: Tensor | None = None


class Scores(NamedTuple):
    """All scores that the pictures allow; None where pictures are missing."""

    kps: Score
    kept: Score | None
    identity: Score | None
    diversity: Score | None
    # To compare with: the likeness of pictures without the trigger to the references, and the base's diversity.
    identity_without: Score | None
    base_diversity: Score | None
    # Cosine similarity of each pair with and without the trigger, and of each picture without it to the base's.
    pairs: list[float]
    base_pairs: list[float]


def score(vectors: Vectors) -> Scores:
    """Return the scores of a LoRA's pictures."""
    unit = Vectors(*(None if group is None else _normalized(group) for group in vectors))
    pairs = _paired(unit.with_trigger, unit.without_trigger)
    base_pairs = pairs.new_empty(0) if unit.base is None else _paired(unit.without_trigger, unit.base)
    return Scores(
        kps=knowledge_preservation(pairs),
        kept=None if unit.base is None else _mean(base_pairs),
        identity=_identity(unit.with_trigger, unit.references),
        diversity=_diversity(unit.without_trigger),
        identity_without=_identity(unit.without_trigger, unit.references),
        base_diversity=_diversity(unit.base),
        pairs=pairs.tolist(),
        base_pairs=base_pairs.tolist(),
    )


def knowledge_preservation(cosines: Tensor) -> Score:
    """Return KPS from the cosine similarities of pictures with and without the trigger. Higher is better."""
    similarity = (cosines + 1) / 2
    return _jackknife(lambda kept: 1 - 1 / (1 / similarity[kept]).mean(), len(similarity))


def _identity(pictures: Tensor, references: Tensor | None) -> Score | None:
    return None if references is None else _mean((pictures @ references.T).mean(dim=1))


def _diversity(pictures: Tensor | None) -> Score | None:
    """Return one minus the mean similarity of any two pictures; None for fewer than two."""
    if pictures is None or len(pictures) < 2:
        return None
    cosines = pictures @ pictures.T

    def distance(kept: Tensor) -> Tensor:
        count = len(kept)
        among = cosines[kept][:, kept]
        return 1 - (among.sum() - among.trace()) / (count * (count - 1))

    return _jackknife(distance, len(pictures), fewest=2)


def _mean(values: Tensor) -> Score:
    return _jackknife(lambda kept: values[kept].mean(), len(values))


def _jackknife(statistic: Callable[[Tensor], Tensor], count: int, fewest: int = 1) -> Score:
    """Return a statistic of all pictures with its t interval, from the statistic without each picture in turn.

    For a mean, this is the usual t interval. `fewest` is the number of pictures that the statistic needs.
    """
    places = torch.arange(count)
    value = statistic(places).item()
    if count <= fewest:
        return Score(value, None)
    without = torch.stack([statistic(places[places != left_out]) for left_out in range(count)])
    error = ((count - 1) / count * (without - without.mean()).square().sum()).sqrt().item()
    return Score(value, special.stdtrit(count - 1, (1 + CONFIDENCE) / 2).item() * error)


def _paired(first: Tensor, second: Tensor) -> Tensor:
    return (first * second).sum(dim=1)


def _normalized(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.double(), dim=1)
