"""The factors that are trained, and their average."""

import hashlib

import torch
from torch import Tensor

from ..lowrank import LowRank

WARMUP = 10  # steps after which the average follows about as slowly as it will


def initial(key: str, shape: torch.Size, rank: int, seed: int) -> LowRank:
    """Return the factors of a layer before training, whose product is zero. key, seed: decide the random down matrix.

    The down matrix is the random one, which trains better than a random up matrix (arXiv 2406.08447).
    """
    width = shape[1:].numel()
    rank = min(rank, shape[0], width)
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
    down = (2 * torch.rand(rank, width, generator=generator) - 1) / width**0.5
    return LowRank(torch.zeros(shape[0], rank), down)


def follow(averages: list[Tensor], factors: list[Tensor], step: int, decay: float) -> None:
    """Move the averages towards the factors after a step, counted from 0; sooner in the first steps."""
    decay = min(decay, (1 + step) / (WARMUP + step))
    for average, factor in zip(averages, factors, strict=True):
        average.lerp_(factor.detach(), 1 - decay)
