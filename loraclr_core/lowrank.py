"""Weight differences stored as two thin factors."""

from typing import NamedTuple

import torch
from torch import Tensor


class LowRank(NamedTuple):
    """The matrix `up @ down`. up: (out, rank), down: (rank, in)."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def dense(self) -> Tensor:
        """Return the matrix itself, (out, in)."""
        return self.up @ self.down

    def to(self, *args, **kwargs) -> "LowRank":
        return LowRank(self.up.to(*args, **kwargs), self.down.to(*args, **kwargs))

    def scaled(self, factor: float) -> "LowRank":
        return LowRank(self.up * factor, self.down)

    def norm(self) -> Tensor:
        """Return the Frobenius norm, without forming the matrix."""
        return ((self.up.T @ self.up) * (self.down @ self.down.T)).sum().clamp(min=0).sqrt()

    def apply(self, inputs: Tensor) -> Tensor:
        """Multiply inputs by the matrix: (..., in) -> (..., out)."""
        return inputs @ self.down.T @ self.up.T


def zero(out_width: int, in_width: int) -> LowRank:
    return LowRank(torch.zeros(out_width, 0), torch.zeros(0, in_width))


def add(terms: list[LowRank]) -> LowRank:
    """Return the exact sum of the matrices, by placing their factors side by side."""
    return LowRank(torch.cat([t.up for t in terms], dim=1), torch.cat([t.down for t in terms], dim=0))


def from_dense(matrix: Tensor) -> LowRank:
    """Return the same matrix with its shorter side as the rank, without a decomposition."""
    out_width, in_width = matrix.shape
    if out_width <= in_width:
        return LowRank(torch.eye(out_width, dtype=matrix.dtype, device=matrix.device), matrix)
    return LowRank(matrix, torch.eye(in_width, dtype=matrix.dtype, device=matrix.device))


def compressed(matrix: Tensor, tolerance: float) -> LowRank:
    """Return the same matrix at its numerical rank, to a relative Frobenius error of `tolerance`.

    A random range finder (Halko et al., arXiv 0909.4061) tries ever larger ranks. It stops long before a full
    decomposition where the rank is low, like that of a LoHa; a matrix of high rank is returned undecomposed.
    """
    size, rank = matrix.norm(), 16
    generator = torch.Generator(matrix.device).manual_seed(0)
    while 2 * rank <= min(matrix.shape):
        probes = torch.randn(matrix.shape[1], rank, generator=generator, device=matrix.device, dtype=matrix.dtype)
        basis, _ = torch.linalg.qr(matrix @ probes)
        product = LowRank(basis, basis.T @ matrix)
        if (matrix - product.dense()).norm() <= tolerance * size:
            return truncate(product, tolerance=tolerance)[0]
        rank *= 4
    return from_dense(matrix)


def squeeze(term: LowRank) -> LowRank:
    """Return the same matrix with a rank of at most min(out, in)."""
    out_width, in_width = term.up.shape[0], term.down.shape[1]
    if term.rank <= min(out_width, in_width):
        return term
    if out_width <= in_width:
        basis, rest = torch.linalg.qr(term.up)
        return LowRank(basis, rest @ term.down)
    basis, rest = torch.linalg.qr(term.down.T)
    return LowRank(term.up @ rest.T, basis.T)


def truncate(term: LowRank, rank: int | None = None, tolerance: float = 0.0) -> tuple[LowRank, float]:
    """Return the nearest matrix of at most `rank`, less directions below `tolerance` of the strongest, and its error.

    Its two factors are equally strong; the error is the relative Frobenius norm. The singular value decomposition is
    that of the (rank, rank) core between the factors' orthonormal bases.
    """
    up_basis, up_core = torch.linalg.qr(term.up)
    down_basis, down_core = torch.linalg.qr(term.down.T)
    left, values, right = torch.linalg.svd(up_core @ down_core.T, full_matrices=False)
    if values.numel() == 0 or values[0] == 0:
        return LowRank(term.up[:, :0], term.down[:0]), 0.0
    count = int((values > tolerance * values[0]).sum())
    count = count if rank is None else min(count, rank)
    error = float(values[count:].norm() / values.norm())
    root = values[:count].sqrt()
    return LowRank(up_basis @ left[:, :count] * root, root[:, None] * (right[:count] @ down_basis.T)), error
