"""What the stages' trainings have come to: weights in 8 bits, kept in the repository with the steps that made them.

A training whose state is lost goes on from them, with a new optimizer.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import small_models
from safetensors import safe_open
from torch import Tensor

# The stages. Each of the LoRAs is landed under its concept's name.
AUTOENCODER, BASE, JUDGE, LORAS = "autoencoder", "base", "judge", "loras"
FOLDER = Path(__file__).resolve().parent / "weights"


class Landed(NamedTuple):
    weights: dict[str, Tensor]
    # In all.
    steps: int
    # Those of what it was trained on: the encoder of the base model's latents, the base model of a LoRA; 0 for pictures.
    trained_on: int


def file_of(name: str) -> Path:
    """Return where weights are landed. name: a stage's, or of the LoRAs a concept's."""
    return FOLDER / f"{name}.safetensors"


def land(name: str, weights: dict[str, Tensor], steps: int, trained_on: int = 0) -> None:
    """Keep weights, as `Landed` says."""
    small_models.store(file_of(name), weights, {"steps": str(steps), "trained_on": str(trained_on)})


def landed(name: str) -> Landed | None:
    """Return what is landed under a name, in float32; None before it was first trained."""
    if not file_of(name).exists():
        return None
    with safe_open(file_of(name), framework="pt") as file:
        said = file.metadata()
    return Landed(small_models.stored(file_of(name)), int(said["steps"]), int(said["trained_on"]))


def check(name: str, stage: str = "") -> None:
    """End the run where nothing is landed under a name. stage: that trains it, if not of this name."""
    if not file_of(name).exists():
        sys.exit(f"characters: “{name}” is not trained yet; run the stage “{stage or name}” first")


def require(name: str, stage: str = "") -> Landed:
    """Return what is landed under a name, in float32; end the run where there is nothing, as `check` does."""
    check(name, stage)
    found = landed(name)
    assert found is not None
    return found
