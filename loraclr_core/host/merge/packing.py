"""A capture as it goes to disk: second moments of low rank, numbers as integers with scales, equal tensors once.

A merge needs from G = XᵀX what stands out above its ridge, which lies in few directions. RANK of them are kept, and of the
rest its diagonal. Layers with the same input, such as a query, key and value, have the same G, inputs and held-out
inputs: tensors are named by their content, so one of each is kept.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...lowrank import LowRank
from ...merge.gram import Gram
from ...merge.moments import ConceptStatistics
from .. import content
from .capture import Capture

RANK = 100  # rows of G: a concept of SDXL comes to less than 250 MB
STRONG = 8  # rows that need 16 bits: their rounding would weigh as much as others' content
PARTS = ("inputs", "outputs", "held_out")


class Packed(NamedTuple):
    """tensors: of a file. layers: of each, its counts and the names of its tensors."""

    tensors: dict[str, Tensor]
    layers: dict[str, dict]

    def unpack(self, deltas: dict[str, LowRank]) -> Capture:
        """Return the capture of the layers in `deltas`, the concept's weight differences. Raises KeyError."""
        entries = {layer: self.layers[layer] for layer in deltas}
        grams = {name: _unpack_gram(self.tensors, name) for name in {entry["gram"] for entry in entries.values()}}
        names = {entry[part] for entry in entries.values() for part in PARTS}
        rows = {name: _unpack_rows(self.tensors, name) for name in names}
        statistics = {
            layer: ConceptStatistics(
                delta=delta,
                # By what is kept of G: a solve by two different G would not give a lone concept back.
                response=grams[entries[layer]["gram"]].times(delta.down.float()),
                tokens=entries[layer]["tokens"],
                seen=entries[layer]["seen"],
                **{part: rows[entries[layer][part]] for part in PARTS},
            )
            for layer, delta in deltas.items()
        }
        return Capture(statistics, {layer: grams[entry["gram"]] for layer, entry in entries.items()})


def pack(capture: Capture, device: torch.device) -> Packed:
    """Return what a file keeps of a capture; it is computed on `device`, but for MPS, which lacks decompositions."""
    device = torch.device("cpu") if device.type == "mps" else device
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict] = {}
    for layer, statistics in capture.statistics.items():
        gram = capture.grams[layer]
        name = _name("gram", *gram.rows, *gram.panels)
        if f"{name}.diagonal.codes" not in tensors:
            tensors |= _pack_gram(name, gram.to(device))
        layers[layer] = {"tokens": statistics.tokens, "seen": statistics.seen, "gram": name}
        for part in PARTS:
            rows = getattr(statistics, part)
            layers[layer][part] = _name("rows", rows)
            tensors |= _pack_rows(layers[layer][part], rows, torch.int16)
    return Packed(tensors, layers)


def _name(kind: str, *tensors: Tensor) -> str:
    digest = content.of_tensors({str(place): tensor for place, tensor in enumerate(tensors)})
    return f"{kind}.{digest[:24]}"


def _pack_gram(name: str, gram: Gram) -> dict[str, Tensor]:
    rows = gram.principal_rows(RANK).contiguous()
    packed = _pack_rows(f"{name}.strong", rows[:STRONG], torch.int16)
    packed |= _pack_rows(f"{name}.weak", rows[STRONG:], torch.int8)
    kept = sum(_unpack_rows(packed, f"{name}.{which}").square().sum(dim=0) for which in ("strong", "weak"))
    rest = (gram.lower().diagonal().cpu() - kept).clamp(min=0)
    return packed | _pack_rows(f"{name}.diagonal", rest[None], torch.int16)


def _unpack_gram(tensors: dict[str, Tensor], name: str) -> Gram:
    diagonal = _unpack_rows(tensors, f"{name}.diagonal")[0]
    gram = Gram(len(diagonal), diagonal.device)
    gram.diagonal = diagonal
    gram.add(torch.cat([_unpack_rows(tensors, f"{name}.{which}") for which in ("strong", "weak")]))
    return gram


def _pack_rows(name: str, rows: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return rows (n, width) as integers, and the unit of each row, (n, 1)."""
    unit = rows.abs().amax(dim=1, keepdim=True) / torch.iinfo(dtype).max
    codes = (rows / unit.clamp(min=torch.finfo(rows.dtype).tiny)).round().to(dtype)
    return {f"{name}.codes": codes.cpu(), f"{name}.unit": unit.cpu()}


def _unpack_rows(tensors: dict[str, Tensor], name: str) -> Tensor:
    return tensors[f"{name}.codes"] * tensors[f"{name}.unit"]
