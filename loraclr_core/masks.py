"""Which branch draws where: masks from attention, and predictions fused by them (arXiv 2403.19776).

A concept's mask is where any of its tokens' maps comes above a share of that map's maximum. Branch 0, the base prompt,
takes what no concept claims.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Morphology = Literal["none", "dilate", "erode", "open", "close"]
MORPHOLOGY: tuple[Morphology, ...] = ("none", "dilate", "erode", "open", "close")


def concept_mask(maps: Tensor, threshold: float, morphology: Morphology = "none") -> Tensor:
    """maps: (batch, tokens, height, width) of one concept -> its mask (batch, height, width), 0 or 1.

    threshold: share of each map's own maximum, 0…1. morphology: of the 3×3 neighbourhood.
    """
    claimed = maps > threshold * maps.amax(dim=(-2, -1), keepdim=True)
    mask = claimed.any(dim=1).to(maps.dtype)
    if morphology in ("dilate", "close"):
        mask = _dilate(mask)
    if morphology in ("erode", "open", "close"):
        mask = _erode(mask)
    if morphology == "open":
        mask = _dilate(mask)
    return mask


def branch_masks(concepts: Tensor) -> Tensor:
    """concepts: (batch, concepts, height, width), 0…1 -> (batch, 1 + concepts, height, width), the base branch first."""
    return torch.cat([1 - concepts.amax(dim=1, keepdim=True), concepts], dim=1)


def resize(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A derived mask at the latent's size: nearest, so that it stays 0 or 1. (batch, h, w) -> (batch, *size)."""
    return F.interpolate(mask[:, None], size=size, mode="nearest")[:, 0]


def resize_given(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A user's mask at the latent's size: each cell is the mean of the pixels it covers. (batch, h, w) -> (batch, *size)."""
    return F.interpolate(mask[:, None], size=size, mode="area")[:, 0]


def fuse(predictions: Tensor, masks: Tensor) -> Tensor:
    """Σ M_k ε_k / Σ M_k. predictions: (branches, batch, channels, h, w); masks: (batch, branches, h, w)."""
    weights = (masks / masks.sum(dim=1, keepdim=True)).movedim(1, 0)[:, :, None]
    return (predictions * weights).sum(dim=0)


def _dilate(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask[:, None], 3, stride=1, padding=1)[:, 0]


def _erode(mask: Tensor) -> Tensor:
    return 1 - _dilate(1 - mask)
