"""Attention of image positions to text tokens, read while the model runs.

In a U-Net (SD1.x, SD2.x, SDXL), the maps are the probabilities of its cross attention. The published method reads 16×16
maps at 512×512 pixels: a quarter of the latent's side. The level whose number of queries comes nearest to that is read,
averaged over all of its cross-attention layers.

In a transformer that attends to text and image together (Flux, Z-Image and related models), they are the text's part of
the joint softmax, in the four blocks that end a third of the way down. In Flux these are the last blocks with two
streams, where attention best covers the thing that a word names (ConceptAttention, arXiv 2502.04320). A gradient
through them costs a third of a pass. Each map has one place per image token.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import comfy.ldm.modules.attention as host_attention
import torch
import torch.nn.functional as F
from comfy.ldm.flux.model import Flux
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from torch import Tensor, nn

from .patches import suspects

Block = tuple[str, int, int]  # "input" | "middle" | "output", number, transformer block within

JOINT_BLOCKS = 4  # number of a transformer's blocks that are read


class Enough(BaseException):
    """Ends a forward pass after the last layer that is needed. Not an Exception: nothing on the way may swallow it."""


class Read(NamedTuple):
    """One chunk of a batch whose attention is read."""

    rows: Sequence[int]
    branch: int
    # The number of text tokens that the model gets for the rows.
    tokens: int
    # The first of these that belongs to the conditioning.
    first: int = 0


class CrossLayers(NamedTuple):
    """Cross-attention layers of a U-Net."""

    blocks: list[Block]

    @property
    def number(self) -> int:
        return len(self.blocks)


class JointLayers(NamedTuple):
    """Joint attention of a transformer: text tokens, then the image's, each padded to a multiple of `padding`."""

    # The joint attentions that are read, counted in the order in which they run.
    numbers: range
    # Rows and columns of the image in tokens.
    size: tuple[int, int]
    padding: int

    @property
    def number(self) -> int:
        return len(self.numbers)

    def padded(self, tokens: int) -> int:
        return math.ceil(tokens / self.padding) * self.padding


Layers = CrossLayers | JointLayers


def read_layers(model: nn.Module, height: int, width: int) -> Layers:
    """Return the layers to read for a latent of height × width. Raises ValueError for a model without any."""
    if type(model) in (Flux, NextDiT):
        blocks = (
            len(model.layers) if isinstance(model, NextDiT) else len(model.double_blocks) + len(model.single_blocks)
        )
        last = max(math.ceil(blocks / 3), min(blocks, JOINT_BLOCKS))
        size = math.ceil(height / model.patch_size), math.ceil(width / model.patch_size)
        padding = getattr(model, "pad_tokens_multiple", None) or 1
        return JointLayers(range(max(0, last - JOINT_BLOCKS), last), size, padding)
    if not isinstance(model, UNetModel):
        raise ValueError(
            "CLoRA reads the attention of SD1.x, SD2.x, SDXL, Flux, Flux.2, LongCat-Image, Ovis-Image, Lumina 2, NewBie and"
            f" Z-Image; {type(model).__name__} is none of them. Use LoRACLR Merge with this model."
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
    cells = math.ceil(height / 4) * math.ceil(width / 4)
    return CrossLayers(levels[min(levels, key=lambda n: abs(_halve(height, n) * _halve(width, n) - cells))])


def _blocks(model: UNetModel):
    yield from (("input", i, module) for i, module in enumerate(model.input_blocks))
    if model.middle_block is not None:
        yield "middle", 0, model.middle_block
    yield from (("output", i, module) for i, module in enumerate(model.output_blocks))


def _resamples(block: ResBlock, kind: type) -> bool:
    return block.updown and isinstance(block.h_upd, kind)


def _halve(side: int, times: int) -> int:
    for _ in range(times):
        side = math.ceil(side / 2)
    return side


class _Pass(threading.local):
    """The state of the forward pass that a thread runs; ComfyUI runs those of several devices in threads."""

    def __init__(self):
        self.begin([], 0, 0, None)

    def begin(self, reads: list[Read], tokens: int, batch: int, layers: Layers | None) -> None:
        self.reads, self.tokens, self.batch, self.layers = reads, tokens, batch, layers
        self.joint = 0  # joint attentions so far
        self.sums: list[tuple[Tensor, tuple[int, int]]] = []


class Recorder:
    """Collects the maps of one or more forward passes; `maps` returns them by branch."""

    def __init__(self, layers: Layers, stop: bool):
        """Start without maps. stop: whether to end each forward pass by `Enough` after the last of the layers."""
        self.layers = layers
        self.stop = stop
        self.current = _Pass()
        self.chunks: dict[int, list[Tensor]] = {}

    def begin(self, reads: list[Read], tokens: int, batch: int, layers: Layers | None = None) -> None:
        """Begin a forward pass of `batch` rows, with `tokens` text tokens in each; `reads` are the rows to read.

        layers: from `read_layers` for the latents of this pass, where they have another size.
        """
        self.current.begin(reads, tokens, batch, layers or self.layers)

    def end(self) -> list[tuple[Read, Tensor]]:
        """End a forward pass and return the mean over its layers for each chunk, (rows, height, width, tokens)."""
        sums, result = self.current.sums, []
        if not self.current.reads or not sums:
            return result
        size = max((size for _, size in sums), key=math.prod)
        mean = torch.stack([_resize(probabilities, layer_size, size) for probabilities, layer_size in sums]).mean(dim=0)
        start = 0
        for read in self.current.reads:
            chunk = mean[start : start + len(read.rows)]
            start += len(read.rows)
            # ComfyUI repeats the shorter of two conditionings to a common length; attention is shared among the copies.
            copies = chunk.shape[-1] // read.tokens
            chunk = chunk[..., : copies * read.tokens].unflatten(-1, (copies, read.tokens)).sum(dim=-2)
            result.append((read, chunk.unflatten(1, size)))
        self.current.begin([], 0, 0, None)
        return result

    def add(self, chunks: list[tuple[Read, Tensor]]) -> None:
        """Add the result of `end` to `maps`."""
        for read, chunk in chunks:
            self.chunks.setdefault(read.branch, []).append(chunk[..., read.first :])

    def maps(self) -> dict[int, Tensor]:
        """Return, by branch, (batch, height, width, tokens of its conditioning), float32, averaged over its passes."""
        device = next((chunk.device for chunks in self.chunks.values() for chunk in chunks), None)
        return {
            branch: torch.stack([chunk.to(device) for chunk in chunks]).mean(dim=0)
            for branch, chunks in self.chunks.items()
        }

    def options(self, existing: dict) -> dict:
        """Return `existing` transformer options that also read the layers; patches already in them still apply."""
        if isinstance(self.layers, JointLayers):
            name = "optimized_attention_override"
            return {**existing, name: self._reading_joint(existing.get(name))}
        replace = dict(existing.get("patches_replace", {}))
        inner = replace.get("attn2", {})
        replace["attn2"] = dict(inner)
        patches = existing.get("patches", {}).get("attn2_patch", [])
        for block in self.layers.blocks:
            replace["attn2"][block] = self._reading(inner.get(block, inner.get(block[:2])), patches)
        return {**existing, "patches_replace": replace}

    def _reading(self, inner: Callable | None, patches: list):
        def attend(q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
            if self.current.reads:
                self._record(q, k, extra_options, patches)
                self._stop_if_enough()
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

    def _reading_joint(self, inner: Callable | None):
        """Return an `optimized_attention_override` that reads the layers."""

        def attend(function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
            layers = self.current.layers or self.layers
            assert isinstance(layers, JointLayers)
            text, image = layers.padded(self.current.tokens), math.prod(layers.size)
            # Z-Image first refines text and image separately; with reference images the sequences are longer.
            if self.current.reads and kwargs.get("skip_reshape") and q.shape[-2] == text + layers.padded(image):
                if self.current.joint in layers.numbers:
                    self._record_joint(q, k, slice(text, text + image), heads, kwargs.get("mask"))
                    self._stop_if_enough()
                self.current.joint += 1
            if inner is not None:
                return inner(function, q, k, v, heads, *args, **kwargs)
            return function(q, k, v, heads, *args, **kwargs)

        return attend

    def _stop_if_enough(self) -> None:
        if self.stop and len(self.current.sums) == self.layers.number:
            raise Enough

    def _rows(self, device: torch.device) -> Tensor:
        return torch.tensor([row for read in self.current.reads for row in read.rows], device=device)

    def _record(self, q: Tensor, k: Tensor, extra_options: dict, patches: list) -> None:
        """Record one cross attention. q, k: (rows, tokens, heads·dim). patches: other nodes' patches before it."""
        if q.shape[0] != self.current.batch:
            raise ValueError(
                f"{suspects(patches)} runs the attention to text on {q.shape[0]} rows for"
                f" {self.current.batch}, so CLoRA cannot read it. Remove that node, or use LoRACLR Merge with it."
            )
        rows, heads = self._rows(q.device), extra_options["n_heads"]
        # -> (rows, heads, tokens, dim)
        q, k = (t.index_select(0, rows).unflatten(-1, (heads, -1)).transpose(1, 2).float() for t in (q, k))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        size = extra_options["activations_shape"][-2:]
        self.current.sums.append((scores.softmax(dim=-1).mean(dim=1), (size[0], size[1])))

    def _record_joint(self, q: Tensor, k: Tensor, image: slice, heads: int, mask: Tensor | None) -> None:
        """Record one joint attention. q, k: (rows, heads, tokens, dim).

        The probabilities are recovered by attending to one-hot values, dim tokens at a time, so the kernel never holds
        an image × image matrix.
        """
        assert isinstance(self.current.layers, JointLayers)
        rows, tokens = self._rows(q.device), self.current.tokens
        q, k = q.index_select(0, rows)[:, :, image], k.index_select(0, rows)
        if mask is not None and mask.shape[-2] > 1:
            mask = mask[..., image, :]
        if mask is not None and mask.ndim > 2 and mask.shape[0] > 1:
            mask = mask.index_select(0, rows)
        parts = []
        for first in range(0, tokens, q.shape[-1]):
            ones = torch.zeros(k.shape[-2], q.shape[-1], dtype=k.dtype, device=k.device)
            ones[first : min(first + q.shape[-1], tokens)].fill_diagonal_(1)
            probabilities = host_attention.attention_pytorch(
                q,
                k,
                ones.expand(*k.shape[:2], -1, -1),
                heads,
                mask=mask,
                skip_reshape=True,
                skip_output_reshape=True,
            )
            parts.append(probabilities.float().mean(dim=1))
        self.current.sums.append((torch.cat(parts, dim=-1)[..., :tokens], self.current.layers.size))


def _resize(probabilities: Tensor, layer_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Resize (rows, queries, tokens) of a layer that another patch runs at a lower resolution to that of the others."""
    if layer_size == size:
        return probabilities
    grid = probabilities.transpose(1, 2).unflatten(-1, layer_size)
    return F.interpolate(grid, size=size, mode="bilinear").flatten(2).transpose(1, 2)
