"""Concepts for one model: their files read, matched to its weights, and turned into weight differences."""

from typing import NamedTuple

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from ...concept import Concept
from ...lowrank import LowRank
from . import adapters
from .adapters import Effect
from .file import read
from .match import MatchedLoRA, match_lora


class Loaded(NamedTuple):
    """A concept whose file has been matched to a model."""

    concept: Concept
    lora: MatchedLoRA
    # The effects on the diffusion model and on the text encoder; the latter is empty where it is left unchanged.
    model: Effect
    clip: Effect

    def merged(self) -> dict[str, LowRank]:
        """Return the mergeable differences of both, by weight key."""
        return self.model.merge | self.clip.merge

    def summed(self) -> list[str]:
        """Return the keys of weights whose differences can only be summed."""
        return [*self.model.add, *self.clip.add]

    def changes_nothing(self) -> bool:
        return not (self.merged() or self.summed())


def load(
    concept: Concept,
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    names: dict,
    device: torch.device,
    with_clip: bool = True,
) -> Loaded:
    """Read a concept's file and match it to a model. names: `key_names(model, clip)`.

    with_clip: whether to include its effect on the text encoder. Raises LoRAFileError or AdapterError, naming file and
    key.
    """
    lora = match_lora(concept.lora_name, read(concept.path)[0], names)
    model_effect = adapters.effect(lora, model, concept.strength_model, device)
    clip_effect = adapters.effect(lora, clip.patcher, concept.strength_clip, device) if with_clip else Effect()
    return Loaded(concept, lora, model_effect, clip_effect)
