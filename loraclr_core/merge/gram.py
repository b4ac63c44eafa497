"""The second moments G = XᵀX + D of rows that arrive in portions, and of what a file keeps of them."""

import torch
from torch import Tensor

PANEL = 256
# For the principal rows: products with G before the last one, and directions beyond those asked for.
ITERATIONS, OVERSAMPLING = 2, 8
# Rows weaker than this share of the strongest, squared, are rounding.
NEGLIGIBLE = 1e-6


class Gram:
    """G, stored as its rows while they are few, and as panels once they are more.

    rows: (n, width) in portions, up to n = width / 2. They take less memory than G, and `exact` solves in their span.
    panels: G is symmetric, so only panels of PANEL columns, from the diagonal down, are computed and stored.
    diagonal: (width,), D: what is left over on the diagonal where rows stand for more rows than they are; else zero.
    """

    def __init__(self, width: int, device: torch.device):
        self.width, self.device = width, device
        self.rows: list[Tensor] = []
        self.panels: list[Tensor] = []
        self.diagonal = torch.zeros(width, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rowsᵀ rows. rows: (n, width) in float32; the tensor itself is kept."""
        self.rows.append(rows)
        if self.panels or sum(map(len, self.rows)) > self.width // 2:
            self._multiply()

    def plus(self, other: "Gram", weight: float) -> "Gram":
        """Return G + weight · other, weight > 0, without changing either."""
        total = Gram(self.width, self.device)
        total.diagonal = self.diagonal + weight * other.diagonal
        total.panels = [panel.clone() for panel in self.panels]
        for rows in self.rows:
            total.add(rows)
        for rows in other.rows:
            total.add(rows * weight**0.5)
        if other.panels:
            total._multiply()
            for panel, term in zip(total.panels, other.panels, strict=True):
                panel.add_(term, alpha=weight)
        return total

    def lower(self) -> Tensor:
        """Return the (width, width) matrix, of which only the lower triangle is valid."""
        if self.panels:
            matrix = torch.zeros(self.width, self.width, device=self.device)
            for index, panel in enumerate(self.panels):
                matrix[index * PANEL :, index * PANEL : (index + 1) * PANEL] = panel
        else:
            rows = self._gather()
            matrix = rows.T @ rows
        matrix.diagonal().add_(self.diagonal)
        return matrix

    def few_rows(self) -> Tensor | None:
        """Return X (n, width) while G is stored as rows, n ≤ width / 2, beside the diagonal; None otherwise."""
        return None if self.panels else self._gather()

    def principal_rows(self, rank: int) -> Tensor:
        """Return rows (≤ rank, width), strongest first, whose XᵀX is the nearest to G of that rank.

        They are G's eigenvectors, by subspace iteration from random ones: exact for narrow layers, and for wide ones
        much faster than a decomposition of G.
        """
        lower = self.lower()
        full = lower.tril() + lower.tril(-1).T
        generator = torch.Generator().manual_seed(0)
        probes = torch.randn(self.width, min(rank + OVERSAMPLING, self.width), generator=generator).to(self.device)
        for _ in range(ITERATIONS):
            probes, _ = torch.linalg.qr(full @ probes)
        values, vectors = (part.flip(-1)[..., :rank] for part in torch.linalg.eigh(probes.T @ full @ probes))
        kept = values > NEGLIGIBLE * values[0]
        return values[kept].sqrt()[:, None] * (probes @ vectors[:, kept]).T

    def mean_diagonal(self) -> float:
        """Return trace G / width."""
        parts = [rows.square().sum() for rows in self.rows] + [panel.diagonal().sum() for panel in self.panels]
        return float(sum(parts) + self.diagonal.sum()) / self.width

    def times(self, rows: Tensor) -> Tensor:
        """Return rows @ G. rows: (n, width)."""
        if self.panels:
            lower = self.lower()
            return rows @ lower.tril() + rows @ lower.tril(-1).T
        own = self._gather()
        return (rows @ own.T) @ own + rows * self.diagonal

    def to(self, device: torch.device) -> "Gram":
        moved = Gram(self.width, device)
        moved.rows = [rows.to(device) for rows in self.rows]
        moved.panels = [panel.to(device) for panel in self.panels]
        moved.diagonal = self.diagonal.to(device)
        return moved

    def _gather(self) -> Tensor:
        return torch.cat([torch.zeros(0, self.width, device=self.device), *self.rows])

    def _multiply(self) -> None:
        rows = self._gather()
        self.rows.clear()
        starts = range(0, self.width, PANEL)
        if not self.panels:
            self.panels = [rows.new_zeros(self.width - start, min(PANEL, self.width - start)) for start in starts]
        for start, panel in zip(starts, self.panels, strict=True):
            panel.addmm_(rows[:, start:].T, rows[:, start : start + PANEL])
