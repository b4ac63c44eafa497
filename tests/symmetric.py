"""Symmetric matrices kept as their lower triangle."""

from torch import Tensor


def full(lower: Tensor) -> Tensor:
    return lower.tril() + lower.tril(-1).T
