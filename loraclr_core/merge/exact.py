"""The minimum of the LoRACLR objective (arXiv 2412.09622) from second moments.

While no concept comes within the margin of another, the objective is a least-squares problem:

    min over Δ of  Σ_i ‖X_i (Δ − ΔW_i)ᵀ‖² + μ ‖Δ − Σ_i ΔW_i‖²
    Δ* = (Σ_i ΔW_i (G_i + μ I)) S⁻¹,   S = Σ_i G_i + μ I,   G_i = X_iᵀ X_i

and with ΔW_i = B_i A_i its solution is itself a LoRA: Δ* = [B_1 … B_n] · [A_1 (G_1 + μ I); …; A_n (G_n + μ I)] S⁻¹.
Every concept keeps its up matrix; its down matrix changes.

Inputs of real layers are close to rank-deficient, and a capture sees few of the prompts to come. In directions that its
features do not cover, the ridge μ decides: it pulls towards the sum, which is the effect of stacked LoRAs that do not
interfere. (The paper's λ_Δ ‖Δ‖ would pull towards zero there, and prompts unlike the captured ones would lose the
concepts.) Second moments are in the thousands, so μ is relative to them: μ = ρ · mean diagonal of Σ G_i.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import lowrank
from ..lowrank import LowRank
from .gram import Gram
from .moments import ConceptStatistics
from .objective import Margin, negative_distances

DESCENT_STEPS = 40


def solve(gram: Gram, concepts: list[ConceptStatistics], ridge: float, margin: Margin, device: torch.device) -> LowRank:
    """Return the merged Δ of one layer, on the CPU in float32, of rank ≤ min(Σ rank_i, out, in).

    gram: the sum of second moments of the concepts, and of whatever else must not change.
    ridge: ρ above, > 0.
    """
    if ridge <= 0:
        raise ValueError(f"ridge must be above 0, not {ridge}: second moments of real layers are close to singular")
    dtype = torch.float32 if device.type == "mps" else torch.float64
    up = torch.cat([c.delta.up for c in concepts], dim=1)
    mu = ridge * (gram.mean_diagonal() or 1.0)  # a layer whose inputs are all zero is summed
    down = torch.cat([c.delta.down for c in concepts]).to(device, dtype)
    response = torch.cat([c.response for c in concepts]).to(device, dtype) + mu * down
    system = None
    if (few := gram.few_rows()) is None:
        system = _factorise(gram.lower().to(device, dtype), mu)
        down = torch.cholesky_solve(response.T, system).T
    else:
        down = _solve_among(few.to(device, dtype), response, gram.diagonal.to(device, dtype), mu)
    merged = lowrank.squeeze(LowRank(up, down.to("cpu", torch.float32)))

    distance = margin.resolve(concepts)
    if (negative_distances(concepts, merged) < distance).any():
        if system is None:
            system = _factorise(gram.lower().to(device, dtype), mu)
        merged = _descend(merged, system, concepts, distance)
    return merged


def _factorise(gram: Tensor, mu: float) -> Tensor:
    """Return the lower Cholesky factor of S = G + μ I, from the lower triangle of G, which is overwritten."""
    gram.diagonal().add_(mu)
    return torch.linalg.cholesky(gram)


def _solve_among(rows: Tensor, response: Tensor, diagonal: Tensor, mu: float) -> Tensor:
    """Return response S⁻¹, S = XᵀX + D + μ I, through a matrix as large as the rows are many (Woodbury).

    S⁻¹ = (I − R⁻¹ Xᵀ (X R⁻¹ Xᵀ + μ I)⁻¹ X) R⁻¹ / μ with R = I + D / μ.
    """
    relative = 1 + diagonal / mu
    scaled = rows / relative
    kernel = scaled @ rows.T
    kernel.diagonal().add_(mu)
    weights = torch.cholesky_solve(scaled @ response.T, torch.linalg.cholesky(kernel))
    return (response - weights.T @ rows) / (mu * relative)


class _Pair(NamedTuple):
    """Concept i against concept j on their sampled tokens, at the closed form: D = X_i (W + Δ*)ᵀ − Y_j."""

    squared: Tensor  # ‖D‖²
    projected: Tensor  # D U, (samples, rank)


class _Hinge(NamedTuple):
    """The hinge of one concept, max(0, m − d_n)², as a function of a step E."""

    # X_i C⁻ᵀ, (samples, in).
    whitened: Tensor
    # The concept against each other one.
    pairs: list[_Pair]

    def penalty(self, step: Tensor, margin: float) -> Tensor:
        """Return max(0, m − d_n)² after a step E, (rank, in)."""
        moved = self.whitened @ step.T
        squared = torch.stack([pair.squared + 2 * (pair.projected * moved).sum() for pair in self.pairs])
        # The floor keeps the square root differentiable where one concept coincides with another.
        nearest = (squared.min() + moved.square().sum()).clamp(min=1e-12 * margin**2).sqrt()
        return (margin - nearest).clamp(min=0).square()


def _descend(start: LowRank, system: Tensor, concepts: list[ConceptStatistics], margin: float) -> LowRank:
    """Descend from the closed form where the margin is active, within the column space of the up matrices.

    With S = C Cᵀ, U an orthonormal basis of the ups and Δ = Δ* + U E C⁻¹, the least-squares part is exactly ‖E‖². Apart
    from the hinge, the problem is then perfectly conditioned, and L-BFGS needs only a few steps.
    """
    # Nodes run in inference mode, whose tensors autograd refuses: this works on clones made outside of it.
    with torch.inference_mode(False), torch.enable_grad():
        system = system.clone()
        up, down = (factor.clone().to(system) for factor in start)
        basis, rest = torch.linalg.qr(up)
        down = rest @ down
        hinges = _hinges(LowRank(basis, down), system, concepts)
        step = torch.zeros(
            basis.shape[1], system.shape[0], device=system.device, dtype=system.dtype, requires_grad=True
        )
        optimizer = torch.optim.LBFGS([step], max_iter=DESCENT_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = step.square().sum()
            for hinge in hinges:
                value = value + hinge.penalty(step, margin)
            value.backward()
            return value

        optimizer.step(closure)
        moved = torch.linalg.solve_triangular(system.T, step.detach().T, upper=True).T
        return LowRank(basis, down + moved).to("cpu", torch.float32)


def _hinges(start: LowRank, system: Tensor, concepts: list[ConceptStatistics]) -> list[_Hinge]:
    """Return the hinge of each concept at `start`, whose up matrix is orthonormal. system: C."""
    # In a short capture, prompts of different lengths yield different numbers of samples.
    samples = min(len(concept.inputs) for concept in concepts)
    hinges = []
    for i, concept in enumerate(concepts):
        x, y = (tokens[:samples].clone().to(system) for tokens in (concept.inputs, concept.outputs))
        delta_up, delta_down = (factor.clone().to(system) for factor in concept.delta)
        features = x @ start.down.T @ start.up.T - x @ delta_down.T @ delta_up.T + y
        scale = concept.seen / samples
        pairs = []
        for j, other in enumerate(concepts):
            if i != j:
                difference = (features - other.outputs[:samples].clone().to(system)) * scale**0.5
                pairs.append(_Pair(difference.square().sum(), difference @ start.up))
        whitened = torch.linalg.solve_triangular(system, x.T, upper=False).T * scale**0.5
        hinges.append(_Hinge(whitened, pairs))
    return hinges
