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
from safetensors import SafetensorError, safe_open

from ... import lowrank
from ...lowrank import LowRank
from ...merge.moments import ConceptStatistics
from .. import content
from ..content import NotStorableError
from ..lora.layers import output_width
from ..weights import input_width
from .capture import Capture, Grams
from .packing import Packed
from .target import CaptureSettings, Target

log = logging.getLogger("loraclr")

FORMAT = "3"  # raise it whenever a change of code changes captures
LIMIT = 16 * 2**30  # bytes in total; the least recently used files are deleted first


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
                return list(json.loads(opened.metadata()["layers"]))
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
            tensors, header = content.read(path)
            packed = Packed(tensors, json.loads(header["layers"]))
            capture = self.unpack(packed, effect) if self.target.layers().keys() <= packed.layers.keys() else None
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("captures: %s is damaged (%s); it is deleted, and its concept is captured anew", path, error)
            path.unlink()
            return None
        if capture:
            path.touch()
        return capture

    def unpack(self, packed: Packed, effect: dict[str, LowRank]) -> Capture:
        """Return the capture of the target's layers, all of which `packed` has. effect: as in `load`."""
        return packed.unpack(
            {
                layer: effect.get(layer) or lowrank.zero(output_width(module), input_width(module))
                for layer, module in self.target.layers().items()
            }
        )

    def save(self, key: CaptureKey, packed: Packed) -> None:
        """Write a capture, then delete the least recently used files until the total is within LIMIT. Raises OSError."""
        path = self.path(key)
        content.write(path, packed.tensors, {"layers": json.dumps(packed.layers), "format": FORMAT})
        content.prune(folder(), LIMIT, path)
