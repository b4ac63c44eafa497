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
        outputs, scale = _sampled(concepts, "outputs")
        if not outputs.numel():
            return 0.0
        others = ~torch.eye(len(concepts), dtype=torch.bool)
        return self.value * float((torch.cdist(outputs.flatten(1), outputs.flatten(1)) * scale)[others].mean())


def held_out_error(concept: ConceptStatistics, delta: LowRank) -> float:
    """d_p² per held-out token: ‖X (Δ − ΔW)ᵀ‖² / tokens."""
    x = concept.held_out
    return float((delta.apply(x) - concept.delta.apply(x)).square().sum() / max(1, len(x)))


def negative_distances(concepts: list[ConceptStatistics], delta: LowRank) -> Tensor:
    """d_n of every concept, (n,), over all tokens of the capture; infinite where there is no other concept."""
    inputs, scale = _sampled(concepts, "inputs")
    outputs, _ = _sampled(concepts, "outputs")
    if not outputs.numel():
        return torch.full((len(concepts),), float("inf"))
    wanted = torch.stack([concept.delta.apply(x) for concept, x in zip(concepts, inputs, strict=True)])
    own = delta.apply(inputs) - wanted + outputs
    distances = torch.cdist(own.flatten(1), outputs.flatten(1)) * scale
    return distances.fill_diagonal_(float("inf")).amin(dim=1)


def _sampled(concepts: list[ConceptStatistics], what: Literal["inputs", "outputs"]) -> tuple[Tensor, Tensor]:
    """The tokens that every concept has, (n, samples, width), and what makes distances over them, (n, 1), distances over
    every token of the capture. Prompts of different length are not sampled alike where a capture is short."""
    samples = min(len(concept.outputs) for concept in concepts)
    scale = torch.tensor([[(concept.seen / max(1, samples)) ** 0.5] for concept in concepts])
    return torch.stack([getattr(concept, what)[:samples] for concept in concepts]), scale
