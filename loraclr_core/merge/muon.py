"""Muon: descent with orthogonalised momentum.

From Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon), with steps of a set root mean square as in
arXiv 2502.16982. Every direction of a factor moves as far as any other, so the few strong ones of a LoRA's gradients do not
hold back the rest: it takes half of Adam's steps (docs/quality.md).
"""

import torch
from torch import Tensor

MOMENTUM = 0.95
# The published iteration for singular values: towards 1, and fast rather than exact.
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315


class Muon:
    """Descends on matrices by their gradients.

    factors: (rows, columns) each, in float32. They are changed in place.
    """

    def __init__(self, factors: list[Tensor]):
        self.factors = factors
        self.momenta = [torch.zeros_like(factor) for factor in factors]
        # By their first root mean square, as factors differ in size.
        self.sizes = [factor.detach().square().mean().sqrt() for factor in factors]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move each factor, and forget the gradients. rate: how far, as a share of the factor's first root mean square."""
        for factor, momentum, size in zip(self.factors, self.momenta, self.sizes, strict=True):
            assert factor.grad is not None
            momentum.mul_(MOMENTUM).add_(factor.grad)
            direction = orthogonalise(factor.grad + MOMENTUM * momentum)
            factor.sub_(direction * (rate * size * max(factor.shape) ** 0.5))
            factor.grad = None


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return a matrix of the same singular vectors whose singular values are all near 1; zeros stay zeros."""
    tall = matrix.shape[0] > matrix.shape[1]
    result = matrix.T if tall else matrix
    result = result / result.norm().clamp(min=torch.finfo(matrix.dtype).tiny)
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = result @ result.T
        result = first * result + (third * square + fifth * square @ square) @ result
    return result.T if tall else result
