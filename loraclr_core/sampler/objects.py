"""The objects of a plain picture, one for each concept.

A concept's own branch would draw it wherever its words attend, but a picture without LoRAs has each thing once. The
places that the class words attend to there form connected parts, which are its objects.
"""

import numpy as np
import torch
from scipy import ndimage, optimize
from torch import Tensor

from .masks import Morphology, morphed

# An object is connected in eight directions and covers at least this share of the picture.
EIGHT = np.ones((3, 3))
SMALLEST = 1 / 64
# The step by which the threshold rises until touching objects separate.
LEVEL = 0.05


def masks(claims: Tensor, threshold: float, morphology: Morphology = "none") -> Tensor:
    """Return a mask of one object for each concept, 0 or 1: (batch, concepts, height, width) -> the same shape.

    claims: the claims of the concepts' words in the plain picture, 0…1 (`masks.claim`). An object is a connected part
    of the places with a claim above the threshold; where there are fewer objects than concepts, a higher threshold
    separates touching ones. Objects are assigned such that the sum of the concepts' mean claims to their own objects is
    largest. Spare objects belong to no concept, and a concept for which no object is left has an empty mask.

    A mask is one cell larger than its object: a LoRA would continue any part of the plain thing that stood out of the
    mask.
    """
    return torch.stack([_assign(picture, threshold, morphology) for picture in claims])


def _assign(claims: Tensor, threshold: float, morphology: Morphology) -> Tensor:
    claimed = claims.amax(dim=0).cpu().numpy()
    labels, parts = _divide(claimed, threshold, len(claims))
    mean_claims = [ndimage.mean(concept_claims, labels, parts) for concept_claims in claims.cpu().numpy()]
    labels = _grow(labels, claimed > threshold, claimed.size)
    labels = _grow(labels, np.ones_like(claimed, dtype=bool), 1)
    numbers = torch.from_numpy(labels).to(claims.device)
    masks = torch.zeros_like(claims)
    for concept, number in zip(*optimize.linear_sum_assignment(mean_claims, maximize=True), strict=True):
        cells = numbers == parts[number]
        masks[concept] = morphed(cells[None].to(claims), morphology)[0] * (cells | (numbers == 0))
    return masks


def _divide(claimed: np.ndarray, threshold: float, wanted: int) -> tuple[np.ndarray, list[int]]:
    """Return places numbered by their object, 0 for none, and the numbers of objects large enough for a concept."""

    def parts(level: float) -> tuple[np.ndarray, list[int]]:
        labels, count = ndimage.label(claimed > level, EIGHT)  # pyright: ignore[reportGeneralTypeIssues]
        sizes = np.bincount(labels.flat, minlength=count + 1)
        return labels, [n for n in range(1, count + 1) if sizes[n] >= SMALLEST * claimed.size]

    levels = (parts(level) for level in np.arange(threshold, 1, LEVEL))
    return next((division for division in levels if len(division[1]) >= wanted), parts(threshold))


def _grow(labels: np.ndarray, within: np.ndarray, cells: int) -> np.ndarray:
    """Grow each object into the free places around it, by at most this many cells."""
    for _ in range(cells):
        wider = np.where((labels == 0) & within, ndimage.grey_dilation(labels, size=(3, 3)), labels)
        if np.array_equal(wider, labels):
            break
        labels = wider
    return labels
