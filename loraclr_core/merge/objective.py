"""The LoRACLR objective of one layer (arXiv 2412.09622), on sampled tokens.

With inputs X_i, base weight W and concept differences ΔW_i, the target of concept i is Y_i = X_i (W + ΔW_i)ᵀ. A shared
Δ is measured by

    d_p,i = ‖X_i (W + Δ)ᵀ − Y_i‖ = ‖X_i (Δ − ΔW_i)ᵀ‖             how far concept i is from its own features
    d_n,i = min over j ≠ i of ‖X_i (W + Δ)ᵀ − Y_j‖                how near it comes to another concept's
    L     = 1/n Σ_i [ d_p,i² + max(0, m − d_n,i)² ] + λ_mse MSE + λ_Δ ‖Δ‖_F

Y_i is the layer's output while concept i was active, so W itself is never needed, and a bias cancels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..lowrank import LowRank
from .moments import ConceptStatistics

MarginMode = Literal["absolute", "relative"]


@dataclass(frozen=True)
class Margin:
    """m of the objective: a distance, as in the paper, or a fraction of the mean distance between two concepts."""

    value: float = 0.5
    mode: MarginMode = "absolute"

    def resolve(self, concepts: list[ConceptStatistics]) -> float:
        """Return m as a distance over all tokens of the capture."""
        if self.mode == "absolute" or len(concepts) < 2:
            return self.value
        _, outputs = _samples(concepts)
        if not outputs.numel():
            return 0.0
        others = ~torch.eye(len(concepts), dtype=torch.bool)
        return self.value * float(_distances(outputs, outputs, concepts)[others].mean())


def held_out_error(concept: ConceptStatistics, delta: LowRank) -> float:
    """Return d_p² per held-out token: ‖X (Δ − ΔW)ᵀ‖² / tokens."""
    x = concept.held_out
    return float((delta.apply(x) - concept.delta.apply(x)).square().sum() / max(1, len(x)))


def negative_distances(concepts: list[ConceptStatistics], delta: LowRank) -> Tensor:
    """Return d_n of every concept, (n,), over all tokens of the capture; infinite without another concept."""
    inputs, outputs = _samples(concepts)
    if not outputs.numel():
        return torch.full((len(concepts),), float("inf"))
    targets = torch.stack([concept.delta.apply(x) for concept, x in zip(concepts, inputs, strict=True)])
    merged = outputs + delta.apply(inputs) - targets
    return _distances(merged, outputs, concepts).fill_diagonal_(float("inf")).amin(dim=1)


def _samples(concepts: list[ConceptStatistics]) -> tuple[Tensor, Tensor]:
    """Return inputs (n, samples, in) and outputs (n, samples, out) of as many tokens as every concept has.

    In a short capture, prompts of different lengths yield different numbers of samples.
    """
    count = min(len(concept.outputs) for concept in concepts)
    return torch.stack([c.inputs[:count] for c in concepts]), torch.stack([c.outputs[:count] for c in concepts])


def _distances(merged: Tensor, outputs: Tensor, concepts: list[ConceptStatistics]) -> Tensor:
    """Return ‖own_i − outputs_j‖, (n, n), for (n, samples, out), extrapolated to all tokens of concept i's capture."""
    scale = torch.tensor([concept.seen / merged.shape[1] for concept in concepts]).sqrt()
    return torch.cdist(merged.flatten(1), outputs.flatten(1)) * scale[:, None]
