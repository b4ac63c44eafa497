"""What a training depends on: two trainings with the same parts learn the same in the same number of steps."""

import hashlib
import json
from dataclasses import asdict
from typing import NamedTuple

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from .. import content
from .data import Sources
from .settings import TrainSettings

FORMAT = "3"  # raise it whenever a change of code changes what is learned


class Identity(NamedTuple):
    """A training by its parts: values of settings, digests of all else."""

    parts: dict[str, str]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()[:24]

    def changes_from(self, earlier: dict[str, str]) -> list[str]:
        """Return in words what is not as in another training."""
        changes = []
        for name, value in self.parts.items():
            before = earlier.get(name)
            if before != value:
                is_setting = len(value) < len(hashlib.sha256().hexdigest()) and before is not None
                changes.append(f"{name} was {before} and is {value}" if is_setting else f"{name} changed")
        return changes


def identify(model: ModelPatcher, clip: CLIP, vae: VAE, sources: Sources, settings: TrainSettings) -> Identity:
    """Return the identity of a training. Raises NotStorableError where a model's content cannot be known."""
    options = (clip.layer_idx, sorted(clip.tokenizer_options.items()))
    masks = {str(n): subject for n, subject in enumerate(sources.subjects) if subject is not None}
    parts = {
        "the pack's training": FORMAT,
        "the model": _of_model(model, ""),
        "the text encoder": _of_model(clip.patcher, repr(options)),
        "the VAE": _of_model(vae.patcher, ""),
        "the pictures": _of_pictures(sources.pictures),
        "the captions": _of_text(sources.captions),
        "the masks": content.of_tensors(masks),
        "the pictures of others": _of_pictures(sources.others),
        "the captions of others": _of_text(sources.other_captions),
    }
    return Identity(parts | {name: str(value) for name, value in asdict(settings).items()})


def _of_model(patcher: ModelPatcher, options: str) -> str:
    digest = hashlib.sha256(options.encode())
    content.add_model(digest, patcher)
    return digest.hexdigest()


def _of_pictures(pictures: list[Tensor]) -> str:
    return content.of_tensors({str(number): picture for number, picture in enumerate(pictures)})


def _of_text(texts: list) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
