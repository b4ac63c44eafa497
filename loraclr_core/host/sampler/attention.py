"""Attention of image positions to text tokens, read while the model runs.

In a U-Net, the maps are the probabilities of its cross attention. In a transformer, they are those of its cross
attention, or the text's part of its joint softmax.
"""

import math
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import comfy.ldm.modules.attention as host_attention
import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import Layers, TransformerLayers
from .patches import suspects


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


class _Pass(threading.local):
    """The state of the forward pass that a thread runs; ComfyUI runs those of several devices in threads."""

    def __init__(self):
        self.begin([], 0, 0, None)

    def begin(self, reads: list[Read], tokens: int, batch: int, layers: Layers | None) -> None:
        self.reads, self.tokens, self.batch, self.layers = reads, tokens, batch, layers
        self.attentions = 0  # of the image in a transformer's blocks, so far
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
        if isinstance(self.layers, TransformerLayers):
            name = "optimized_attention_override"
            return {**existing, name: self._reading_transformer(existing.get(name))}
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

    def _reading_transformer(self, inner: Callable | None):
        """Return an `optimized_attention_override` that reads the layers."""

        def attend(function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **kwargs) -> Tensor:
            if self.current.reads:
                queries, keys = (q, k) if kwargs.get("skip_reshape") else (_split(q, heads), _split(k, heads))
                mask = args[0] if args else kwargs.get("mask")
                self._read_transformer(queries, keys, heads, mask, kwargs.get("transformer_options", {}))
            if inner is not None:
                return inner(function, q, k, v, heads, *args, **kwargs)
            return function(q, k, v, heads, *args, **kwargs)

        return attend

    def _read_transformer(self, q: Tensor, k: Tensor, heads: int, mask: Tensor | None, options: dict) -> None:
        """Record one attention, if it is one that is read. q, k: (rows, heads, tokens, dim)."""
        layers = self.current.layers
        assert isinstance(layers, TransformerLayers)
        references = sum(options.get("reference_image_num_tokens", []))
        queries, keys = layers.lengths(self.current.tokens, references)
        if q.shape[-2] != queries:
            return  # some models first refine text and image separately
        block, is_text = divmod(self.current.attentions, 2) if layers.is_cross else (self.current.attentions, True)
        self.current.attentions += 1
        if is_text and k.shape[-2] == keys and block in layers.numbers:
            self._record_transformer(q, k, layers, heads, mask)
            self._stop_if_enough()

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
        q, k = (_split(t.index_select(0, rows), heads).float() for t in (q, k))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        size = extra_options["activations_shape"][-2:]
        self.current.sums.append((scores.softmax(dim=-1).mean(dim=1), (size[0], size[1])))

    def _record_transformer(
        self, q: Tensor, k: Tensor, layers: TransformerLayers, heads: int, mask: Tensor | None
    ) -> None:
        """Record one attention whose first keys are the text. q, k: (rows, heads, tokens, dim).

        The probabilities are recovered by attending to one-hot values, dim tokens at a time, so the kernel never holds
        an image × image matrix.
        """
        rows, tokens = self._rows(q.device), self.current.tokens
        image = layers.image(tokens)
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
        self.current.sums.append((torch.cat(parts, dim=-1)[..., :tokens], layers.size))


def _split(tokens: Tensor, heads: int) -> Tensor:
    """Return (rows, heads, tokens, dim) for (rows, tokens, heads·dim)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _resize(probabilities: Tensor, layer_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Resize (rows, queries, tokens) of a layer that another patch runs at a lower resolution to that of the others."""
    if layer_size == size:
        return probabilities
    grid = probabilities.transpose(1, 2).unflatten(-1, layer_size)
    return F.interpolate(grid, size=size, mode="bilinear").flatten(2).transpose(1, 2)
