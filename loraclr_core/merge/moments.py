"""Statistics of a layer's inputs for a merge: their second moments, and a few tokens.

The LoRACLR objective (arXiv 2412.09622) is defined over every feature of every layer. It depends on them only through
`G = XᵀX` and the distances between concepts, so `G` is accumulated while sampling and only a few tokens are kept: some
for the distances, some held out to judge the merged layer.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..lowrank import LowRank
from .gram import Gram

# The most tokens of one model evaluation that count, per layer. More of them change G little and cost as much as the
# layer itself: at 512² an SD1.5 layer has 4096, 1024 or 256 tokens, most of them much alike.
MAX_TOKENS_PER_CALL = 128
# Number of rows gathered before they are multiplied: one large product instead of many small ones.
ROWS_PER_PRODUCT = 256


@dataclass
class ConceptStatistics:
    """The statistics of one layer while one concept is active."""

    # The concept's weight difference ΔW = up @ down, (out, in).
    delta: LowRank
    # down @ G, (rank, in), where G = XᵀX over the layer's inputs X.
    response: Tensor
    # How many tokens G counts.
    tokens: int
    # How many tokens there were; 0 if the layer never ran.
    seen: int
    # (samples, in) and (samples, out), at the same token positions for every concept.
    inputs: Tensor
    outputs: Tensor
    # Tokens that G does not count, (held, in).
    held_out: Tensor


class LayerMoments:
    """Accumulates one layer's statistics over the calls of one concept's capture.

    gram: the sum over concepts so far; this concept's G is added to it.
    delta: the concept's weight difference.
    seed: selects the tokens; the same seed and shapes select the same positions for every concept.
    calls: the expected number of calls, over which `samples` and `held_out` tokens are spread.
    share: the largest share of a call's tokens that counts.
    """

    def __init__(
        self, gram: Gram, delta: LowRank, seed: int, calls: int, samples: int, held_out: int, share: float = 1.0
    ):
        self.gram, self.delta, self.share = gram, delta, share
        self.down = delta.down.to(gram.device, torch.float32)
        self.response = torch.zeros_like(self.down)
        self.seed, self.calls, self.samples, self.held_out_tokens = seed, calls, samples, held_out
        self.total = torch.zeros((), device=gram.device)  # sum of all rows; not finite as soon as one of them is not
        self.call = self.tokens = self.seen = self.held = 0
        self.pending: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.held_out: list[Tensor] = []

    def observe(self, inputs: Tensor, outputs: Tensor) -> None:
        """Observe one call of the layer: inputs (tokens, in), outputs (tokens, out)."""
        count = inputs.shape[0]
        order = token_order(count, self.seed, self.call).to(inputs.device)
        # Hold out no more tokens than count: a layer for the timestep or the pooled text has only one token per call,
        # and with few steps all of them would be held out.
        held = min(_share(self.held_out_tokens, self.call, self.calls), (self.seen + count) // 2 - self.held)
        counted = min(count - held, MAX_TOKENS_PER_CALL, math.ceil(count * self.share))
        sampled = min(counted, _share(self.samples, self.call, self.calls))
        # One gather for all: the hooks' cost depends on the number of operations more than on their size.
        rows = inputs[order[: held + counted]].to(self.down)

        self.held_out.append(rows[:held].clone())
        self.inputs.append(rows[held : held + sampled].clone())
        self.outputs.append(outputs[order[held : held + sampled]].float())
        self.pending.append(rows[held:])
        self.tokens += counted
        self.held += held
        self.seen += count
        self.call += 1
        if sum(map(len, self.pending)) >= ROWS_PER_PRODUCT:
            self._multiply()

    def hold_out(self, inputs: Tensor, count: int) -> None:
        """Hold out the first `count` tokens of a call, (tokens, in), without counting any."""
        self.held_out.append(inputs[:count].float())

    def _multiply(self) -> None:
        rows = torch.cat(self.pending)
        self.pending.clear()
        self.total += rows.sum()
        self.response.addmm_((rows @ self.down.T).T, rows)
        self.gram.add(rows)

    def finish(self) -> ConceptStatistics:
        """Return the concept's statistics, on the CPU. Raises ValueError where the layer's inputs are not finite."""
        if self.pending:
            self._multiply()
        if not torch.isfinite(self.total):
            raise ValueError("the layer's inputs are not finite")
        return ConceptStatistics(
            delta=self.delta,
            response=self.response.cpu(),
            tokens=self.tokens,
            seen=self.seen,
            inputs=_join(self.inputs, self.delta.down.shape[1]),
            outputs=_join(self.outputs, self.delta.up.shape[0]),
            held_out=_join(self.held_out, self.delta.down.shape[1]),
        )


def _join(rows: list[Tensor], width: int) -> Tensor:
    """Return all rows, (rows, width), on the CPU; no rows if the layer never ran."""
    return torch.cat(rows).cpu() if rows else torch.zeros(0, width)


@lru_cache(maxsize=256)
def token_order(count: int, seed: int, call: int) -> Tensor:
    """Return a seeded permutation of the positions of one call."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + call))


def _share(total: int, call: int, calls: int) -> int:
    """Return how many of `total` fall to `call` when they are spread evenly over `calls`."""
    return total * (call + 1) // calls - total * call // calls
