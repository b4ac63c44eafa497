"""The optimiser published with LoRACLR (arXiv 2412.09622), with its published settings, for comparison.

It runs AdamW over the full matrix Δ of one layer, starting from zero, and keeps the best iterate; here on sampled
tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import lowrank
from ..lowrank import LowRank
from .moments import ConceptStatistics
from .objective import Margin


@dataclass(frozen=True)
class AdamWSettings:
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    iterations: int = 50
    weight_mse: float = 0.1
    weight_delta: float = 0.001


PUBLISHED = AdamWSettings()


def solve(
    concepts: list[ConceptStatistics],
    margin: Margin,
    device: torch.device,
    settings: AdamWSettings = PUBLISHED,
) -> LowRank:
    """Return the merged Δ of one layer, on the CPU in float32, of full rank."""
    m = margin.resolve(concepts)
    samples = min(len(c.inputs) for c in concepts)
    with torch.inference_mode(False), torch.enable_grad():
        inputs = torch.stack([c.inputs[:samples].clone() for c in concepts]).to(device)
        targets = torch.stack([c.outputs[:samples].clone() for c in concepts]).to(device)
        # Y_i = X_i Wᵀ + X_i ΔW_iᵀ, so the base layer's output follows from the other two.
        changes = torch.stack([c.delta.to(device).apply(x) for c, x in zip(concepts, inputs, strict=True)]).clone()
        base = targets - changes

        delta = torch.zeros(targets.shape[-1], inputs.shape[-1], device=device, requires_grad=True)
        optimizer = torch.optim.AdamW([delta], lr=settings.learning_rate, weight_decay=settings.weight_decay)
        best, best_loss = delta.detach().clone(), torch.tensor(float("inf"), device=device)
        for _ in range(settings.iterations):
            value = loss(delta, inputs, targets, base, m, settings)
            best = torch.where(value < best_loss, delta.detach(), best)
            best_loss = torch.minimum(value.detach(), best_loss)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        return lowrank.from_dense(best).to("cpu")


def loss(
    delta: Tensor, inputs: Tensor, targets: Tensor, base: Tensor, margin: float, settings: AdamWSettings
) -> Tensor:
    """Return the published objective of Δ (out, in). inputs: (n, tokens, in); targets, base: (n, tokens, out)."""
    outputs = base + inputs @ delta.T
    errors = (outputs - targets).flatten(1)
    positive = errors.square().sum(dim=1)
    if len(inputs) > 1:
        distances = torch.cdist(outputs.flatten(1), targets.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        diagonal = torch.eye(len(inputs), dtype=torch.bool, device=distances.device)
        negative = distances.masked_fill(diagonal, float("inf")).amin(dim=1)
        hinge = (margin - negative).clamp(min=0).square()
    else:
        hinge = torch.zeros_like(positive)
    contrast = (positive + hinge).mean()
    return contrast + settings.weight_mse * errors.square().mean() + settings.weight_delta * delta.norm()
