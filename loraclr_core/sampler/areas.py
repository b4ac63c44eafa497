"""Which branch draws where, from the first step of a run to the last (arXiv 2403.19776).

A concept with a mask is drawn there. With the plain picture around the concepts, every other concept is drawn at an
object of that picture; one without an object is drawn where its own words attend, outside the others' areas. With the
composed picture around them, as published, every area follows the attention of the concept's own words in each step.

Where areas overlap, a place goes to the concept whose words have attended to it most in all steps so far. The published
method averages the predictions of all of them instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from . import masks, objects
from .masks import Morphology, Overlap


@dataclass(frozen=True, kw_only=True)
class AreaSettings:
    """How areas are derived from attention."""

    # A place belongs to a concept above this share of a token's strongest attention.
    threshold: float = 0.3
    # How an area is changed by its 3×3 neighbourhoods.
    morphology: Morphology = "dilate"
    # Who gets a place in several areas.
    overlap: Overlap = "strongest"
    # Before this step every branch counts everywhere.
    first_masked_step: int = 0


class Areas:
    """The areas of one run.

    concepts: the current areas, (batch, concepts, height, width), 0…1.
    branches: the weights for fusing predictions, (batch, 1 + concepts, height, width); the base branch takes the rest.
    """

    def __init__(self, given: Tensor, is_given: Tensor, plain_claims: Tensor | None, settings: AreaSettings):
        """Place the concepts.

        given: the masks that the user gave, (batch, concepts, height, width), zero for the concepts without.
        is_given: which concepts have one, (batch, concepts).
        plain_claims: the claims of all concepts' words in the plain picture, (batch, concepts, h, w); None without one.
        """
        self.settings = settings
        self.is_given = is_given
        self.placed = _place(given, is_given, plain_claims, settings)
        self.stays = self.placed.amax(dim=(-2, -1), keepdim=True) > 0
        self.stays[is_given] = True
        self.occupied = None if plain_claims is None else self.placed.amax(dim=1, keepdim=True)
        self.claims: Tensor | float = 0.0  # the sum over all evaluations so far
        self.concepts = self.placed
        self.branches = self._compute_branches(step=0)

    def update(self, claims: Tensor, step: int) -> None:
        """Follow the attention of one evaluation. claims: each concept's in its own branch, (batch, concepts, h, w)."""
        size = self.placed.shape[-2:]
        areas = masks.resize(masks.concept_mask(claims, self.settings.threshold, self.settings.morphology), size)
        if self.occupied is not None:
            areas = areas * (1 - self.occupied)
        self.concepts = torch.where(self.stays, self.placed, areas)
        if self.settings.overlap == "strongest":
            claims = masks.resize(masks.smooth(claims), size)
            claims[self.is_given] = 1  # a given mask is the strongest claim
            self.claims = self.claims + claims
            self.concepts = masks.strongest(self.concepts, self.claims)
        self.branches = self._compute_branches(step)

    def _compute_branches(self, step: int) -> Tensor:
        branches = masks.branch_masks(self.concepts)
        return torch.ones_like(branches) if step < self.settings.first_masked_step else branches


def _place(given: Tensor, is_given: Tensor, plain_claims: Tensor | None, settings: AreaSettings) -> Tensor:
    """Return the given masks, and for every other concept an object of the plain picture, empty where there is none."""
    if plain_claims is None:
        return given
    occupied = masks.resize(given.amax(dim=1, keepdim=True), plain_claims.shape[-2:], "area")
    free_claims = plain_claims * (occupied == 0)
    placed = given.clone()
    for picture, others in enumerate(~is_given):
        if others.any():
            object_masks = objects.masks(free_claims[picture, others][None], settings.threshold, settings.morphology)
            placed[picture, others] = masks.resize(object_masks, given.shape[-2:])[0]
    return placed
