"""Captures on disk: after a restart, another ridge costs only the solve, and a concept added at the end one capture.

There is one file per model, settings and list of concepts. It is named by digests of everything that a capture depends
on: every weight and patch of the model and its text encoder, the LoRA files, triggers and strengths, prompts, steps,
seed and size. A file is written whole or not at all, and carries a digest of its own content; a damaged one is deleted,
never used.
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
from safetensors import SafetensorError
from torch import Tensor

from ... import lowrank
from ...merge.gram import Gram
from ...merge.moments import ConceptStatistics
from .. import content
from ..content import NotStorableError
from ..lora.layers import output_width
from ..lora.load import Loaded
from ..weights import input_width
from .capture import Grams
from .target import CaptureSettings, Target

log = logging.getLogger("loraclr")

FORMAT = "1"  # raise it whenever a change of code changes captures
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
        digest = hashlib.sha256(repr((FORMAT, settings, list(target.layers()), settings_of_clip)).encode())
        for patcher in (target.model, target.clip.patcher):
            content.add_model(digest, patcher)
        self.model = digest.hexdigest()[:24]

    def path(self, keys: list[CaptureKey]) -> Path:
        """Return the file of these concepts' captures, whether or not it exists."""
        concepts = hashlib.sha256(repr([tuple(key) for key in keys]).encode())
        return folder() / f"{self.model}_{concepts.hexdigest()[:24]}.safetensors"

    def load(self, keys: list[CaptureKey], loaded: list[Loaded]) -> Captures | None:
        """Return the stored captures of as many leading concepts as possible, or None. Deletes damaged files."""
        for count in range(len(keys), 0, -1):
            path = self.path(keys[:count])
            if not path.exists():
                continue
            try:
                captures = self._read(path, keys[:count], loaded[:count])
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                log.warning(
                    "captures: %s is damaged (%s); it is deleted, and its concepts are captured anew", path, error
                )
                path.unlink()
                continue
            path.touch()
            return captures
        return None

    def save(self, captures: Captures) -> None:
        """Write captures, then delete the least recently used files until the total is within LIMIT. Raises OSError."""
        tensors: dict[str, Tensor] = {}
        counts = []
        for place, key in enumerate(self.target.layers()):
            tensors |= _gram_tensors(f"gram.{place}", captures.grams[key])
            if captures.base_words:
                tensors |= _gram_tensors(f"base.{place}", captures.base_grams[key])
            per_concept = [statistics[key] for statistics in captures.statistics]
            for number, statistics in enumerate(per_concept):
                tensors |= {f"concept.{number}.{place}.{part}": getattr(statistics, part) for part in PARTS}
            counts.append([(statistics.tokens, statistics.seen) for statistics in per_concept])
        header = {"base_words": json.dumps(captures.base_words), "counts": json.dumps(counts)}
        path = self.path(captures.keys)
        content.write(path, {name: _separate_storage(tensor) for name, tensor in tensors.items()}, header)
        content.prune(folder(), LIMIT, path)

    def _read(self, path: Path, keys: list[CaptureKey], loaded: list[Loaded]) -> Captures:
        tensors, header = content.read(path)
        counts, base_words = json.loads(header["counts"]), json.loads(header["base_words"])
        statistics: list[dict[str, ConceptStatistics]] = [{} for _ in keys]
        grams: Grams = {}
        base_grams: Grams = {}
        for place, (key, module) in enumerate(self.target.layers().items()):
            width = input_width(module)
            grams[key] = _gram(width, f"gram.{place}", tensors)
            if base_words:
                base_grams[key] = _gram(width, f"base.{place}", tensors)
            for number, concept in enumerate(loaded):
                parts = {part: tensors[f"concept.{number}.{place}.{part}"] for part in PARTS}
                tokens, seen = counts[place][number]
                delta = concept.merged().get(key) or lowrank.zero(output_width(module), width)
                statistics[number][key] = ConceptStatistics(delta=delta, tokens=tokens, seen=seen, **parts)
        return Captures(keys, statistics, grams, base_words, base_grams)


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
