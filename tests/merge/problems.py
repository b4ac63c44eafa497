"""Small merges whose every feature is known."""

from typing import NamedTuple

import torch
from loraclr.loraclr_core.lowrank import LowRank
from loraclr.loraclr_core.merge.gram import Gram
from loraclr.loraclr_core.merge.moments import ConceptStatistics
from torch import Tensor

CPU = torch.device("cpu")


class Problem(NamedTuple):
    """weight: (out, in); features: one (tokens, in) per concept; gram: the sum of their second moments."""

    weight: Tensor
    features: list[Tensor]
    concepts: list[ConceptStatistics]

    @property
    def gram(self) -> Gram:
        gram = Gram(self.weight.shape[1], CPU)
        for x in self.features:
            gram.add(x)
        return gram

    def mu(self, ridge: float) -> float:
        """What a relative ridge comes to."""
        return ridge * sum(float(x.square().sum()) for x in self.features) / self.weight.shape[1]


def problem(
    concepts: int = 3,
    tokens: int = 60,
    in_width: int = 12,
    out_width: int = 8,
    rank: int = 2,
    input_rank: int | None = None,
) -> Problem:
    weight = torch.randn(out_width, in_width)
    mixing = torch.randn(input_rank or in_width, in_width) / 2
    features = [torch.randn(tokens, len(mixing)) @ mixing for _ in range(concepts)]
    deltas = [LowRank(torch.randn(out_width, rank) / 2, torch.randn(rank, in_width) / 2) for _ in range(concepts)]
    statistics = [
        ConceptStatistics(
            delta=delta,
            response=delta.down @ (x.T @ x),
            tokens=tokens,
            seen=tokens,
            inputs=x,
            outputs=x @ (weight + delta.dense()).T,
            held_out=x,
        )
        for delta, x in zip(deltas, features, strict=True)
    ]
    return Problem(weight, features, statistics)


def positive(problem: Problem, delta: Tensor) -> Tensor:
    """Σ d_p², written out."""
    return torch.stack(
        [
            (x @ (delta - c.delta.dense()).T).square().sum()
            for x, c in zip(problem.features, problem.concepts, strict=True)
        ]
    ).sum()


def negative(problem: Problem, delta: Tensor) -> Tensor:
    """d_n of every concept, written out."""
    return torch.stack(
        [
            torch.stack(
                [
                    (x @ (problem.weight + delta).T - other.outputs).norm()
                    for j, other in enumerate(problem.concepts)
                    if j != i
                ]
            ).min()
            for i, x in enumerate(problem.features)
        ]
    )
