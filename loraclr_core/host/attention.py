"""Cross-attention probabilities of a U-Net, read from its coarse layers while it runs.

The published method reads 16×16 maps at 512×512 pixels: a quarter of the latent's side. The level of the U-Net whose
number of queries comes nearest to that is read, all of its cross-attention layers averaged.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import comfy.ldm.modules.attention as host_attention
import torch
import torch.nn.functional as F
from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from torch import Tensor, nn

Block = tuple[str, int, int]  # "input" | "middle" | "output", number, transformer block within


class Enough(BaseException):
    """Ends a forward pass after the last layer it is needed for. Not an Exception: nothing on the way may swallow it."""


class Read(NamedTuple):
    """One chunk of a batch whose attention is read: its rows, its branch, and how many tokens its conditioning has."""

    rows: range
    branch: int
    tokens: int


def read_layers(model: nn.Module, height: int, width: int) -> list[Block]:
    """The cross-attention layers to read for a latent of height × width. Raises ValueError for a model without any."""
    if not isinstance(model, UNetModel):
        raise ValueError(
            f"CLoRA reads the cross attention of U-Net models (SD1.x, SD2.x, SDXL); {type(model).__name__} is none. Use"
            " LoRACLR Merge with this model."
        )
    levels: dict[int, list[Block]] = {}
    level = 0
    for name, number, module in _blocks(model):
        for child in module:
            level += isinstance(child, Downsample) or (isinstance(child, ResBlock) and _resamples(child, Downsample))
            if isinstance(child, SpatialTransformer) and not isinstance(child, SpatialVideoTransformer):
                for index, block in enumerate(child.transformer_blocks):
                    if block.attn2 is not None:
                        levels.setdefault(level, []).append((name, number, index))
            level -= isinstance(child, Upsample) or (isinstance(child, ResBlock) and _resamples(child, Upsample))
    if not levels:
        raise ValueError("CLoRA reads cross attention, and this model has none. Use LoRACLR Merge with it.")
    wanted = math.ceil(height / 4) * math.ceil(width / 4)
    return levels[min(levels, key=lambda n: abs(_halved(height, n) * _halved(width, n) - wanted))]


def _blocks(model: UNetModel):
    yield from (("input", i, module) for i, module in enumerate(model.input_blocks))
    if model.middle_block is not None:
        yield "middle", 0, model.middle_block
    yield from (("output", i, module) for i, module in enumerate(model.output_blocks))


def _resamples(block: ResBlock, kind: type) -> bool:
    return block.updown and isinstance(block.h_upd, kind)


def _halved(side: int, times: int) -> int:
    for _ in range(times):
        side = math.ceil(side / 2)
    return side


class Recorder:
    """Collects the maps of one or more forward passes; `maps` gives them branch by branch."""

    def __init__(self, layers: list[Block], stop: bool):
        """stop: end each forward pass by `Enough` after the last of the layers."""
        self.layers = layers
        self.stop = stop
        self.reads: list[Read] = []
        self.sums: list[tuple[Tensor, tuple[int, int]]] = []
        self.found: dict[int, list[Tensor]] = {}

    def begin(self, reads: list[Read]) -> None:
        """Before a forward pass: what its rows are."""
        self.reads, self.sums = reads, []

    def end(self) -> None:
        """After a forward pass: its layers' mean, chunk by chunk."""
        if not self.reads or not self.sums:
            return
        size = max((size for _, size in self.sums), key=math.prod)
        mean = torch.stack([_at_size(probabilities, own, size) for probabilities, own in self.sums]).mean(dim=0)
        start = 0
        for read in self.reads:
            chunk = mean[start : start + len(read.rows)]
            start += len(read.rows)
            # The host repeats the shorter of two conditionings to a common length; attention is shared among the copies.
            copies = chunk.shape[-1] // read.tokens
            chunk = chunk[..., : copies * read.tokens].unflatten(-1, (copies, read.tokens)).sum(dim=-2)
            self.found.setdefault(read.branch, []).append(chunk.unflatten(1, size))
        self.reads, self.sums = [], []

    def maps(self) -> dict[int, Tensor]:
        """For each branch (batch, height, width, tokens), float32; several conditionings of one branch averaged."""
        return {branch: torch.stack(found).mean(dim=0) for branch, found in self.found.items()}

    def patches(self, existing: dict) -> dict:
        """`patches_replace["attn2"]` with the layers read on top of what `existing` does there."""
        result = dict(existing)
        for block in self.layers:
            result[block] = self._reading(existing.get(block, existing.get(block[:2])))
        return result

    def _reading(self, inner: Callable | None):
        def attend(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
            if self.reads:
                self._record(q, k, extra_options)
                if self.stop and len(self.sums) == len(self.layers):
                    raise Enough
            if inner is not None:
                return inner(q, k, v, extra_options)
            return host_attention.optimized_attention(
                q,
                k,
                v,
                extra_options["n_heads"],
                attn_precision=extra_options["attn_precision"],
                transformer_options=extra_options,
            )

        return attend

    def _record(self, q: Tensor, k: Tensor, extra_options: dict) -> None:
        rows = torch.tensor([row for read in self.reads for row in read.rows], device=q.device)
        heads = extra_options["n_heads"]
        # (rows, tokens, heads·dim) -> (rows, heads, tokens, dim)
        q, k = (t.index_select(0, rows).unflatten(-1, (heads, -1)).transpose(1, 2).float() for t in (q, k))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        size = extra_options["activations_shape"][-2:]
        self.sums.append((scores.softmax(dim=-1).mean(dim=1), (size[0], size[1])))


def _at_size(probabilities: Tensor, own: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(rows, queries, tokens) of a layer that another patch runs at a lower resolution, at that of the others."""
    if own == size:
        return probabilities
    grid = probabilities.transpose(1, 2).unflatten(-1, own)
    return F.interpolate(grid, size=size, mode="bilinear").flatten(2).transpose(1, 2)
