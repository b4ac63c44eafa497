"""Masks from attention, and predictions fused by them (arXiv 2403.19776).

A concept claims a place as strongly as the highest of its tokens' maps there, each relative to its own maximum; its
mask is where the claim is above a threshold. Where masks overlap, the published method averages the concepts'
predictions. But a concept's words also attend to another's object, at a third or more of their maximum, and the average
of a concept and a plain thing is neither, so a place can also go to the strongest claim alone. The claim of a single
step and cell is too noisy to tell two concepts of one class apart, and one object would get both looks; the mean over
the neighbourhood and over the steps so far is compared instead. Branch 0 takes the places that no concept claims.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Morphology = Literal["none", "dilate", "erode", "open", "close"]
MORPHOLOGY: tuple[Morphology, ...] = ("none", "dilate", "erode", "open", "close")
Overlap = Literal["strongest", "average (paper)"]
OVERLAPS: tuple[Overlap, ...] = ("strongest", "average (paper)")

ROUNDING = 1e-3  # a blurred mask may exceed 0…1 by this much
# Avoids a division by zero for a map without any attention.
NONE = 1e-12


def given(mask: Tensor, what: str) -> Tensor:
    """Return a user's mask as (batch, height, width), 0…1.

    Like ComfyUI's mask nodes, it accepts (height, width), (batch, height, width) and (batch, 1, height, width). Raises
    ValueError, with the shape, for anything else. what: begins the message.
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"{what} is no mask but a {type(mask).__name__}: connect a MASK.")
    fits = mask.ndim in (2, 3) or (mask.ndim == 4 and mask.shape[1] == 1)
    # Pictures keep their channels last: one channel of one picture is not a batch of columns.
    channels_last = mask.ndim == 3 and mask.shape[-1] == 1 and min(mask.shape[:-1]) > 1
    shape = f"{what} has the shape {'×'.join(map(str, mask.shape)) or '()'} ({mask.dtype})"
    if not fits or channels_last or mask.numel() == 0 or mask.is_complex():
        raise ValueError(
            f"{shape}: connect a mask of height×width or batch×height×width, with at least one picture in the batch."
            " Convert Image to Mask makes one of a picture."
        )
    values = (mask if mask.is_floating_point() and mask.itemsize > 1 else mask.float()).reshape(-1, *mask.shape[-2:])
    if not values.isfinite().all():
        raise ValueError(f"{shape} and holds NaN or Inf: make it anew.")
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"{shape} and holds values from {low:g} to {high:g}: scale it to 0 (elsewhere) … 1 (here). A mask of 0…255 is"
            " to be divided by 255."
        )
    return values.clamp(0, 1)


def claim(maps: Tensor) -> Tensor:
    """Return how strongly a concept claims each place, (batch, height, width), 0…1.

    maps: (batch, tokens, height, width). The claim is the largest of the tokens' maps, each divided by its own maximum.
    """
    return (maps / maps.amax(dim=(-2, -1), keepdim=True).clamp(min=NONE)).amax(dim=1)


def concept_mask(claim: Tensor, threshold: float, morphology: Morphology = "none") -> Tensor:
    """Return a concept's mask, 0 or 1, from its claim, (…, height, width)."""
    return morphed((claim > threshold).to(claim.dtype), morphology)


def morphed(mask: Tensor, morphology: Morphology) -> Tensor:
    """Return a mask, (…, height, width), 0 or 1, changed by its 3×3 neighbourhoods."""
    if morphology in ("dilate", "close"):
        mask = _dilate(mask)
    if morphology in ("erode", "open", "close"):
        mask = _erode(mask)
    if morphology == "open":
        mask = _dilate(mask)
    return mask


def smooth(claim: Tensor) -> Tensor:
    """Return the mean of each place's 3×3 neighbourhood; (…, height, width)."""
    return F.avg_pool2d(claim, 3, stride=1, padding=1, count_include_pad=False)


def strongest(concepts: Tensor, claims: Tensor) -> Tensor:
    """Keep, at each place, only the mask with the strongest claim, or all masks that tie for it.

    concepts: masks. Both are (batch, concepts, height, width).
    """
    contested = claims * (concepts > 0)
    return concepts * (contested == contested.amax(dim=1, keepdim=True))


def branch_masks(concepts: Tensor) -> Tensor:
    """Put the base branch's mask, the places left over, first: (batch, n, h, w), 0…1 -> (batch, 1 + n, h, w)."""
    return torch.cat([1 - concepts.amax(dim=1, keepdim=True), concepts], dim=1)


def resize(mask: Tensor, size: tuple[int, int], mode: Literal["nearest", "area"] = "nearest") -> Tensor:
    """Resize masks to the latent's size: (batch, concepts, h, w) -> (batch, concepts, *size).

    mode: nearest for a derived mask, which keeps it 0 or 1; area for a user's, which makes each cell the mean of the
    pixels that it covers.
    """
    return F.interpolate(mask, size=size, mode=mode)


def fuse(predictions: Tensor, masks: Tensor) -> Tensor:
    """Return Σ M_k ε_k / Σ M_k. predictions: (branches, batch, channels, …, h, w); masks: (batch, branches, h, w)."""
    return (predictions * over_channels(masks / masks.sum(dim=1, keepdim=True), predictions[0])).sum(dim=0)


def over_channels(masks: Tensor, latents: Tensor) -> Tensor:
    """Return masks, (batch, branches, h, w), by branch, (branches, batch, 1, …, h, w).

    latents: what each is to be multiplied with, (batch, channels, h, w), or (batch, channels, 1, h, w) where a model has
    its pictures as videos of one frame.
    """
    by_branch = masks.movedim(1, 0)
    return by_branch.reshape(*by_branch.shape[:2], *(1,) * (latents.ndim - 3), *by_branch.shape[2:])


def _dilate(mask: Tensor) -> Tensor:
    return F.max_pool2d(mask, 3, stride=1, padding=1)


def _erode(mask: Tensor) -> Tensor:
    return 1 - _dilate(1 - mask)
