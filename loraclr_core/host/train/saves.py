"""The files of a training: its LoRA, LoRAs of earlier steps, and the state from which it goes on."""

import glob
import json
import logging
import shutil
import tempfile
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

    def check_folders(self, learner: Learner) -> None:
        """Raise OSError where the files cannot be written or do not fit."""
        size = sum(factor.nbytes for factor in learner.leaves())
        # A file is written beside the one that it replaces.
        needs = [(self.path.parent, IN_LORA * size * (2 + self.keep))]
        if self.identity is not None:
            needs.append((state.folder(), IN_STATE * size * 2))
        for folder, needed in needs:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass  # it is writable
            free = shutil.disk_usage(folder).free
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
            self._save_state(learner)
            if self.keep > 0:
                self._write(self.path.with_name(f"{self.path.stem}_step{learner.step:06d}.safetensors"), learner)
                for old in self._earlier()[: -self.keep]:
                    old.unlink()
        except OSError as error:
            log.warning("Training goes on, but step %d could not be saved: %s", learner.step, error)

    def now(self, learner: Learner) -> None:
        """Write the state, which the LoRA could be made of again, and the LoRA. Raises OSError."""
        if learner.step == self.step and self.path.exists() and _steps_of(self.path) == learner.step:
            return
        self._save_state(learner)
        self._write(self.path, learner)

    def _write(self, path: Path, learner: Learner) -> None:
        tensors, metadata = self.make(learner)
        file.write(path, tensors, metadata, overwrite=True)

    def _save_state(self, learner: Learner) -> None:
        if self.identity is not None and learner.step != self.step:
            state.save(learner, self.identity, self.name)
        self.step = learner.step

    def _earlier(self) -> list[Path]:
        """Return this training's LoRAs of earlier steps, in their order."""
        return [path for path in _on_the_way(self.path) if not _is_other(path, self.identity)]


def _unused(wanted: Path, identity: Identity | None) -> Path:
    """Return the first of name, name_2, name_3, … of which no file is there, or only this training's own."""
    number, path = 1, wanted
    while any(_is_other(there, identity) for there in (path, *_on_the_way(path)) if there.exists()):
        number += 1
        path = wanted.with_name(f"{wanted.stem}_{number}{wanted.suffix}")
    return path


def _on_the_way(path: Path) -> list[Path]:
    """Return the LoRAs of earlier steps beside a training's LoRA, in their order."""
    return sorted(path.parent.glob(f"{glob.escape(path.stem)}_step*.safetensors"))


def _is_other(path: Path, identity: Identity | None) -> bool:
    """Return whether a file is not of this training."""
    return identity is None or _training(path).get("identity") != identity.digest


def _training(path: Path) -> dict:
    """Return what a LoRA's header says about its training; nothing where it is not of this pack."""
    try:
        return json.loads(file.read_metadata(path).get(output.TRAINING, "{}"))
    except (LoRAFileError, ValueError):
        return {}


def _steps_of(path: Path) -> int | None:
    return _training(path).get("steps")
