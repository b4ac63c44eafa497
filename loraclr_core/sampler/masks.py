"""Which branch draws where: masks from attention, and predictions fused by them (arXiv 2403.19776).

A concept claims a place as far as any of its tokens' maps comes near that map's maximum; its mask is where the claim is
above a threshold. Where masks overlap the published method averages the concepts' predictions. A concept's words attend to
another's object too, at a third or more of their maximum, and the average of a concept and of a plain thing is neither: so
a place can also go to the strongest claim alone. Of one step and one cell that claim is a coin toss between two concepts of
one class, and an object gets both looks; so what counts is the mean of the neighbourhood and of the steps so far. Branch 0
takes what no concept claims.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Morphology = Literal["none", "dilate", "erode", "open", "close"]
MORPHOLOGY: tuple[Morphology, ...] = ("none", "dilate", "erode", "open", "close")
Overlap = Literal["strongest", "average (paper)"]
OVERLAPS: tuple[Overlap, ...] = ("strongest", "average (paper)")

ROUNDING = 1e-3  # a blurred mask is up to this beyond 0…1
# Keeps a map without any attention from dividing by zero.
NONE = 1e-12


def given(mask: Tensor, concept: str) -> Tensor:
    """Return a user's mask as (batch, height, width), 0…1: (height, width), (batch, height, width) and (batch, 1, height,
    width) are taken, as the host's mask nodes take them.

    concept: its name, for the message. Raises ValueError, with the shape, for anything else.
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"The mask of concept “{concept}” is no mask but a {type(mask).__name__}: connect a MASK.")
    fits = mask.ndim in (2, 3) or (mask.ndim == 4 and mask.shape[1] == 1)
    # Pictures keep their channels last: one channel of one picture is not a batch of columns.
    channels_last = mask.ndim == 3 and mask.shape[-1] == 1 and min(mask.shape[:-1]) > 1
    what = f"The mask of concept “{concept}” has the shape {'×'.join(map(str, mask.shape)) or '()'} ({mask.dtype})"
    if not fits or channels_last or mask.numel() == 0 or mask.is_complex():
        raise ValueError(
            f"{what}: connect a mask of height×width or batch×height×width, with at least one picture in the batch."
            " Convert Image to Mask makes one of a picture."
        )
    values = (mask if mask.is_floating_point() and mask.itemsize > 1 else mask.float()).reshape(-1, *mask.shape[-2:])
    if not values.isfinite().all():
        raise ValueError(f"{what} and holds NaN or Inf: make it anew.")
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"{what} and holds values from {low:g} to {high:g}: scale it to 0 (elsewhere) … 1 (here). A mask of 0…255 is"
            " to be divided by 255."
        )
    return values.clamp(0, 1)


def claim(maps: Tensor) -> Tensor:
    """maps: (batch, tokens, height, width) of one concept -> the largest share of its own maximum that any of them has at a
    place, (batch, height, width), 0…1.
    """
    return (maps / maps.amax(dim=(-2, -1), keepdim=True).clamp(min=NONE)).amax(dim=1)


def concept_mask(claim: Tensor, threshold: float, morphology: Morphology = "none") -> Tensor:
    """claim: (…, height, width) -> the concept's mask, 0 or 1."""
    return morphed((claim > threshold).to(claim.dtype), morphology)


def morphed(mask: Tensor, morphology: Morphology) -> Tensor:
    """mask: (…, height, width), 0 or 1 -> the same, changed by its 3×3 neighbourhoods."""
    if morphology in ("dilate", "close"):
        mask = _dilate(mask)
    if morphology in ("erode", "open", "close"):
        mask = _erode(mask)
    if morphology == "open":
        mask = _dilate(mask)
    return mask


def smooth(claim: Tensor) -> Tensor:
    """The mean of each place's 3×3 neighbourhood. (…, height, width) -> the same."""
    return F.avg_pool2d(claim, 3, stride=1, padding=1, count_include_pad=False)


def strongest(concepts: Tensor, claims: Tensor) -> Tensor:
    """Masks and claims (batch, concepts, height, width) -> masks of which just the one with the strongest claim is left at
    each place; where claims are equal, all of them.
    """
    contested = claims * (concepts > 0)
    return concepts * (contested == contested.amax(dim=1, keepdim=True))


def branch_masks(concepts: Tensor) -> Tensor:
    """concepts: (batch, concepts, height, width), 0…1 -> (batch, 1 + concepts, height, width), the base branch first."""
    return torch.cat([1 - concepts.amax(dim=1, keepdim=True), concepts], dim=1)


def resize(mask: Tensor, size: tuple[int, int], mode: Literal["nearest", "area"] = "nearest") -> Tensor:
    """At the latent's size; (batch, concepts, h, w) -> (batch, concepts, *size).

    mode: nearest for a derived mask, so that it stays 0 or 1; area for a user's: each cell is the mean of the pixels it
    covers.
    """
    return F.interpolate(mask, size=size, mode=mode)


def fuse(predictions: Tensor, masks: Tensor) -> Tensor:
    """Σ M_k ε_k / Σ M_k. predictions: (branches, batch, channels, h, w); masks: (batch, branches, h, w)."""
    weights = (masks / masks.sum(dim=1, keepdim=True)).movedim(1, 0)[:, :, None]
    return (predictions * weights).sum(dim=0)


def _dilate(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask, 3, stride=1, padding=1)


def _erode(mask: Tensor) -> Tensor:
    return 1 - _dilate(1 - mask)
