"""Captures on disk, one file per concept: any subset of captured concepts merges, in any order, without a new capture.

A file is named by digests of everything that a capture depends on: every weight and patch of the model and its text
encoder, prompts, steps, seed and size; and the concept's LoRA file, trigger and strengths. It is written whole or not at
all, lists the layers that were captured, and carries a digest of its own content; a damaged one is deleted, never used.
docs/method.md describes the format.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import folder_paths
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ... import lowrank
from ...lowrank import LowRank
from ...merge.gram import Gram
from ...merge.moments import ConceptStatistics
from .. import content
from ..content import NotStorableError
from ..lora.layers import output_width
from ..weights import input_width
from .capture import Capture, Grams
from .target import CaptureSettings, Target

log = logging.getLogger("loraclr")

FORMAT = "2"  # raise it whenever a change of code changes captures
LIMIT = 16 * 2**30  # bytes in total; the least recently used files are deleted first
PARTS = ("response", "inputs", "outputs", "held_out")


class CaptureKey(NamedTuple):
    """The identity of one concept's capture, given the model and the settings."""

    sha256: str
    trigger: str
    strength_model: float
    strength_clip: float


@dataclass(frozen=True)
class Captures:
    """Captures of one model, in the order in which their second moments were added up."""

    keys: list[CaptureKey] = field(default_factory=list)
    statistics: list[dict[str, ConceptStatistics]] = field(default_factory=list)
    grams: Grams = field(default_factory=dict)
    # The class words that the plain model was captured on, and its second moments there.
    base_words: list[str] = field(default_factory=list)
    base_grams: Grams = field(default_factory=dict)


def folder() -> Path:
    """Return the folder of the captures."""
    return Path(folder_paths.get_user_directory()) / "loraclr_captures"


def clear() -> tuple[int, int]:
    """Delete all captures on disk, and return the number of files and of bytes deleted."""
    paths, freed = files(), size()
    for path in paths:
        path.unlink()
    return len(paths), freed


def files() -> list[Path]:
    """Return the capture files, least recently used first."""
    return content.files(folder())


def size() -> int:
    """Return the total size of all captures in bytes."""
    return sum(path.stat().st_size for path in files())


class CaptureStore:
    """The files of one model and its settings. Raises NotStorableError where the model cannot be identified."""

    def __init__(self, target: Target, settings: CaptureSettings, triggers: Iterable[str]):
        if any("embedding:" in text for text in (*settings.prompts, *triggers)):
            raise NotStorableError("a prompt or trigger has an embedding, whose file may change")
        self.target, clip = target, target.clip
        settings_of_clip = (clip.layer_idx, sorted(clip.tokenizer_options.items()))
        digest = hashlib.sha256(repr((FORMAT, settings, settings_of_clip)).encode())
        for patcher in (target.model, target.clip.patcher):
            content.add_model(digest, patcher)
        self.model = digest.hexdigest()[:24]

    def path(self, key: CaptureKey) -> Path:
        """Return the file of a concept's capture, whether or not it exists."""
        concept = hashlib.sha256(repr(tuple(key)).encode())
        return folder() / f"{self.model}_{concept.hexdigest()[:24]}.safetensors"

    def layers(self, key: CaptureKey) -> list[str]:
        """Return the weight keys that a concept's file holds; none where there is no readable file."""
        try:
            with safe_open(self.path(key), framework="pt") as opened:
                return json.loads(opened.metadata()["layers"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return []

    def holds(self, key: CaptureKey) -> bool:
        """Return whether a concept's file has all layers of the target."""
        return self.target.layers().keys() <= set(self.layers(key))

    def load(self, key: CaptureKey, effect: dict[str, LowRank]) -> Capture | None:
        """Return a stored capture of the target's layers, or None. Deletes a damaged file.

        effect: the concept's mergeable differences.
        """
        path = self.path(key)
        if not path.exists():
            return None
        try:
            capture = self._read(path, effect)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("captures: %s is damaged (%s); it is deleted, and its concept is captured anew", path, error)
            path.unlink()
            return None
        if capture:
            path.touch()
        return capture

    def save(self, key: CaptureKey, capture: Capture) -> None:
        """Write a capture, then delete the least recently used files until the total is within LIMIT. Raises OSError."""
        tensors: dict[str, Tensor] = {}
        for place, (layer, statistics) in enumerate(capture.statistics.items()):
            tensors |= _gram_tensors(f"gram.{place}", capture.grams[layer])
            tensors |= {f"{part}.{place}": getattr(statistics, part) for part in PARTS}
        counts = [(statistics.tokens, statistics.seen) for statistics in capture.statistics.values()]
        header = {"layers": json.dumps(list(capture.statistics)), "counts": json.dumps(counts), "format": FORMAT}
        path = self.path(key)
        content.write(path, {name: _separate_storage(tensor) for name, tensor in tensors.items()}, header)
        content.prune(folder(), LIMIT, path)

    def _read(self, path: Path, effect: dict[str, LowRank]) -> Capture | None:
        """Return the capture in a file; None where it lacks a layer of the target."""
        tensors, header = content.read(path)
        counts = json.loads(header["counts"])
        places = {layer: place for place, layer in enumerate(json.loads(header["layers"]))}
        statistics: dict[str, ConceptStatistics] = {}
        grams: Grams = {}
        for layer, module in self.target.layers().items():
            if layer not in places:
                return None
            place, width = places[layer], input_width(module)
            grams[layer] = _gram(width, f"gram.{place}", tensors)
            tokens, seen = counts[place]
            statistics[layer] = ConceptStatistics(
                delta=effect.get(layer) or lowrank.zero(output_width(module), width),
                tokens=tokens,
                seen=seen,
                **{part: tensors[f"{part}.{place}"] for part in PARTS},
            )
        return Capture(statistics, grams)


def _gram_tensors(name: str, gram: Gram) -> dict[str, Tensor]:
    return {
        **{f"{name}.rows.{number}": rows for number, rows in enumerate(gram.rows)},
        **{f"{name}.panels.{number}": panel for number, panel in enumerate(gram.panels)},
    }


def _gram(width: int, name: str, tensors: dict[str, Tensor]) -> Gram:
    gram = Gram(width, torch.device("cpu"))
    for kind, parts in (("rows", gram.rows), ("panels", gram.panels)):
        while f"{name}.{kind}.{len(parts)}" in tensors:
            parts.append(tensors[f"{name}.{kind}.{len(parts)}"])
    return gram


def _separate_storage(tensor: Tensor) -> Tensor:
    """Return a tensor with storage of its own, as a file requires, where it is a part of a larger one."""
    return tensor.contiguous() if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
