"""The loss that measures how well the concepts' attention is separated, and the step against it (arXiv 2403.19776).

The loss is NT-Xent over the maps of every concept's tokens in every branch; a map's label is its concept. A step moves
the latent against its gradient:

    z ← z − α ∇_z L
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import contrast

UpdateUnit = Literal["relative", "absolute (paper)"]
UPDATE_UNITS: tuple[UpdateUnit, ...] = ("relative", "absolute (paper)")

Maps = dict[int, Tensor]  # attention by branch number, each (batch, height, width, tokens)


class Branch(NamedTuple):
    """One prompt with which the model is evaluated."""

    # Index of the concept whose LoRA and trigger the branch has; None for the base branch.
    concept: int | None
    # For each concept, the positions of its tokens in the branch's conditioning.
    tokens: list[list[int]]

    def words(self, maps: Tensor, concept: int) -> Tensor:
        """Return the maps of a concept's tokens: (batch, h, w, tokens) -> (batch, its tokens, h, w)."""
        return maps[..., self.tokens[concept]].movedim(-1, 1)


def own_words(branches: Sequence[Branch], maps: Maps) -> list[Tensor]:
    """Return, for each concept, the maps of its tokens in its own branch, (batch, its tokens, h, w)."""
    return [
        branch.words(maps[number], branch.concept)
        for number, branch in enumerate(branches)
        if branch.concept is not None
    ]


def loss(branches: Sequence[Branch], maps: Maps, temperature: float) -> Tensor:
    """Return the loss of each sample, (batch,)."""
    chosen, labels = [], []
    for number, branch in enumerate(branches):
        for concept, tokens in enumerate(branch.tokens):
            chosen.append(branch.words(maps[number], concept).flatten(2))
            labels += [concept] * len(tokens)
    joined = torch.cat(chosen, dim=1)
    return contrast.nt_xent(joined, torch.tensor(labels, device=joined.device), temperature)


def step(gradient: Tensor, scale: Tensor, strength: float, unit: UpdateUnit) -> Tensor:
    """Return the move against a gradient, both (batch, channels, h, w) in the sampler's units.

    scale: the latent's size in these units; the model sees latent / scale, which has unit size. With *relative*, the
    move's root mean square is `strength` times that size, whatever the model and the size of its gradients. With
    *absolute (paper)*, `strength` is α in the units that the model sees.
    """
    if unit == "absolute (paper)":
        return gradient * scale.square() * -strength
    size = gradient.square().mean(dim=tuple(range(1, gradient.ndim)), keepdim=True).sqrt()
    # A single concept has nothing to be told apart from: no gradient, no move.
    direction = torch.where(size > 0, gradient / size, torch.zeros_like(gradient))
    return direction * scale * -strength
