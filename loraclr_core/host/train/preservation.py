"""Scores of a LoRA's pictures by one of ComfyUI's image encoders."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ...train.scores import Scores, Vectors, score
from . import vision


class Pictures(NamedTuple):
    """Batches of pictures, whose sizes may differ."""

    with_trigger: list[Tensor]
    without_trigger: list[Tensor]
    base: list[Tensor]
    references: list[Tensor]

    def counts(self) -> list[int]:
        """Return how many pictures each input holds."""
        return [sum(len(batch) for batch in batches) for batches in self]


def score_pictures(encoder: ClipVisionModel, pictures: Pictures, done: Callable[[], None]) -> Scores:
    """Return the scores of a LoRA's pictures. `done` is called after each picture that is encoded."""
    vision.check(encoder)
    _check_pairs(pictures)
    vectors = [vision.encode(encoder, batches, done) if batches else None for batches in pictures]
    for name, batch in zip(Pictures._fields, vectors, strict=True):
        _check_finite(name, batch)
    return score(Vectors(*vectors))


def _check_pairs(pictures: Pictures) -> None:
    """Raise ValueError unless every picture has its partner at the same place."""
    with_trigger, without_trigger, base, _ = pictures.counts()
    if with_trigger != without_trigger:
        raise ValueError(
            f"with_trigger holds {with_trigger} pictures and without_trigger {without_trigger}, but pictures are compared in"
            " pairs, by place: make as many of each, from the same prompts and seeds."
        )
    if pictures.base and base != without_trigger:
        raise ValueError(
            f"base holds {base} pictures and without_trigger {without_trigger}, but pictures are compared in pairs, by"
            " place: make as many of each, from the same prompts and seeds."
        )


def _check_finite(name: str, vectors: Tensor | None) -> None:
    if vectors is not None and not (finite := torch.isfinite(vectors).all(dim=1)).all():
        place = finite.tolist().index(False) + 1
        raise ValueError(
            f"The encoder gives no finite vector for picture {place} of {name}: look at that picture, or start ComfyUI with"
            " --fp32-text-enc."
        )
