"""The files of a training: its LoRA, LoRAs of earlier steps, and the state from which it goes on."""

import glob
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ..lora import file
from ..lora.file import LoRAFileError
from . import output, state
from .identity import Identity
from .learner import Learner

log = logging.getLogger("loraclr")

# Tensors of a factor's size that a state holds, and that a LoRA holds.
IN_STATE, IN_LORA = 4, 1


class Saves:
    """Writes what a training leaves behind.

    wanted: the LoRA's file; where that is there and not of this training, another number is put after its name. identity:
    None where the training cannot be identified; then there is no state. make: the LoRA's tensors and metadata.
    """

    def __init__(
        self,
        wanted: Path,
        identity: Identity | None,
        keep: int,
        make: Callable[[Learner], tuple[dict[str, Tensor], dict[str, str]]],
    ):
        self.identity, self.keep, self.make = identity, keep, make
        self.name = wanted.stem
        self.path = _unused(wanted, identity)
        # Steps of the last save.
        self.step = -1

    def check_space(self, learner: Learner) -> None:
        """Raise OSError where the files do not fit."""
        size = sum(factor.nbytes for factor in learner.leaves())
        # A file is written beside the one that it replaces.
        needs = [(self.path.parent, IN_LORA * size * (2 + self.keep))]
        if self.identity is not None:
            needs.append((state.folder(), IN_STATE * size * 2))
        for folder, needed in needs:
            there = next(parent for parent in (folder, *folder.parents) if parent.exists())
            free = shutil.disk_usage(there).free
            if free < needed:
                raise OSError(
                    f"{folder} has {free / 2**20:.0f} MiB free, and this training needs {needed / 2**20:.0f} MiB there for its"
                    " files: free some space, or lower rank or keep."
                )

    def restore(self, learner: Learner) -> list[str]:
        """Set the learner to the saved state, if there is one, and return notes on that."""
        if self.identity is None:
            return []
        notes = state.restore(learner, self.identity, self.name)
        self.step = learner.step
        return notes

    def on_the_way(self, learner: Learner) -> None:
        """Write the LoRA of this step beside the one of the end, and the state. Training goes on where that fails."""
        try:
            if self.keep > 0:
                self._write(self.path.with_name(f"{self.path.stem}_step{learner.step:06d}.safetensors"), learner)
                for old in self._earlier()[: -self.keep]:
                    old.unlink()
            self._save_state(learner)
        except OSError as error:
            log.warning("Training goes on, but step %d could not be saved: %s", learner.step, error)

    def now(self, learner: Learner) -> None:
        """Write the LoRA and the state as they are. Raises OSError."""
        if learner.step == self.step and self.path.exists() and _steps_of(self.path) == learner.step:
            return
        self._write(self.path, learner)
        self._save_state(learner)

    def _write(self, path: Path, learner: Learner) -> None:
        tensors, metadata = self.make(learner)
        file.write(path, tensors, metadata, overwrite=True)

    def _save_state(self, learner: Learner) -> None:
        if self.identity is not None and learner.step != self.step:
            state.save(learner, self.identity, self.name)
        self.step = learner.step

    def _earlier(self) -> list[Path]:
        """Return this training's LoRAs of earlier steps, in their order."""
        identity = _digest(self.identity)
        found = sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}_step*.safetensors"))
        return [path for path in found if _training(path).get("identity") == identity]


def _unused(wanted: Path, identity: Identity | None) -> Path:
    """Return the first of name, name_2, name_3, … that is not there, or that is this training's own."""
    number, path = 1, wanted
    while path.exists() and (identity is None or _training(path).get("identity") != identity.digest):
        number += 1
        path = wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")
    return path


def _digest(identity: Identity | None) -> str:
    return "" if identity is None else identity.digest


def _training(path: Path) -> dict:
    """Return what a LoRA's header says about its training; nothing where it is not of this pack."""
    try:
        return json.loads(file.read_metadata(path).get(output.TRAINING, "{}"))
    except (LoRAFileError, ValueError):
        return {}


def _steps_of(path: Path) -> int | None:
    return _training(path).get("steps")
