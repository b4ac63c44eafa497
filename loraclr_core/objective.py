"""The LoRACLR objective of one layer (arXiv 2412.09622), on sampled tokens.

With inputs X_i, base weight W and concept differences ΔW_i, concept i wants Y_i = X_i (W + ΔW_i)ᵀ. A shared Δ is
judged by

    d_p,i = ‖X_i (W + Δ)ᵀ − Y_i‖ = ‖X_i (Δ − ΔW_i)ᵀ‖             how far concept i is from its own features
    d_n,i = min over j ≠ i of ‖X_i (W + Δ)ᵀ − Y_j‖                how near it comes to another concept's
    L     = 1/n Σ_i [ d_p,i² + max(0, m − d_n,i)² ] + λ_mse MSE + λ_Δ ‖Δ‖_F

Y_i is what the layer said while concept i was active, so W itself is never needed, and a bias cancels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .lowrank import LowRank
from .moments import ConceptStatistics

MarginMode = Literal["absolute", "relative"]


@dataclass(frozen=True)
class Margin:
    """m of the objective: a distance as it stands in the paper, or a fraction of the mean distance of two concepts."""

    value: float
    mode: MarginMode = "absolute"

    def resolve(self, concepts: list[ConceptStatistics]) -> float:
        """The distance meant, over all tokens of the capture."""
        if self.mode == "absolute" or len(concepts) < 2:
            return self.value
        pairs = [
            _full_scale(a, (a.outputs[:n] - b.outputs[:n]).norm(), n)
            for i, a in enumerate(concepts)
            for b in concepts[:i]
            if (n := min(len(a.outputs), len(b.outputs)))
        ]
        return self.value * float(torch.stack(pairs).mean()) if pairs else 0.0


def held_out_error(concept: ConceptStatistics, delta: LowRank) -> float:
    """d_p² per held-out token: ‖X (Δ − ΔW)ᵀ‖² / tokens."""
    x = concept.held_out
    return float((delta.apply(x) - concept.delta.apply(x)).square().sum() / max(1, len(x)))


def negative_distances(concepts: list[ConceptStatistics], delta: LowRank) -> Tensor:
    """d_n of every concept, (n,), over all tokens of the capture; infinite where there is no other concept."""
    nearest = torch.full((len(concepts),), float("inf"))
    for i, concept in enumerate(concepts):
        own = delta.apply(concept.inputs) - concept.delta.apply(concept.inputs) + concept.outputs
        for j, other in enumerate(concepts):
            n = min(len(own), len(other.outputs))
            if i != j and n:
                distance = _full_scale(concept, (own[:n] - other.outputs[:n]).norm(), n)
                nearest[i] = torch.minimum(nearest[i], distance)
    return nearest


def _full_scale(concept: ConceptStatistics, distance: Tensor, samples: int) -> Tensor:
    """A distance over `samples` tokens -> the same over every token of the capture."""
    return distance * (concept.seen / samples) ** 0.5
