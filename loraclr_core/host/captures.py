"""Captures kept while only solver settings change, so that another margin or ridge takes seconds."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher

from ..concept import Concept
from ..moments import ConceptStatistics
from .adapters import Effect
from .capture import CaptureSettings, Grams, Target, capture


@dataclass
class Captures:
    """What is known of one model: its concepts' statistics, in the order their second moments were added up."""

    clip: weakref.ref
    settings: CaptureSettings
    layers: list[str]
    concepts: list[tuple] = field(default_factory=list)
    statistics: list[dict[str, ConceptStatistics]] = field(default_factory=list)
    grams: Grams = field(default_factory=dict)
    base_words: list[str] = field(default_factory=list)
    base_grams: Grams = field(default_factory=dict)

    def serve(self, target: Target, settings: CaptureSettings) -> bool:
        """Whether they were made under these circumstances; more samples than asked for do no harm."""
        return (
            self.clip() is target.clip.patcher
            and self.layers == target.layers()
            and self.settings.samples >= settings.samples
            and self.settings._replace(samples=settings.samples) == settings
        )


# Kept as long as the host keeps the model they belong to; one set per model.
_known: weakref.WeakKeyDictionary[ModelPatcher, Captures] = weakref.WeakKeyDictionary()


def of_concepts(
    target: Target,
    concepts: list[Concept],
    effects: list[tuple[Effect, Effect]],
    settings: CaptureSettings,
    with_base: bool,
    device: torch.device,
    progress: Callable[[str, float], None],
) -> tuple[Captures, int]:
    """The captures of `concepts` and, `with_base`, of the plain model on their class words.

    Only what is not known yet is captured: a concept added at the end costs one capture. Returns them and the number
    of model evaluations that took.
    """
    # Known again once all is complete: a capture that is cancelled has added to the sums in part.
    captures = _known.pop(target.model, None)
    if captures is None or not captures.serve(target, settings):
        captures = Captures(weakref.ref(target.clip.patcher), settings, target.layers())
    wanted = [(c.sha256, c.trigger, c.strength_model, c.strength_clip) for c in concepts]
    if captures.concepts != wanted[: len(captures.concepts)]:
        captures.concepts, captures.statistics, captures.grams = [], [], {}
    base_words = sorted({concept.class_word for concept in concepts})
    base_missing = base_words if with_base and captures.base_words != base_words else []

    missing = range(len(captures.concepts), len(concepts))
    total = (len(missing) + len(base_missing)) * settings.evaluations()
    done = 0

    def run(what: str, phrase: str, effect: tuple[Effect, Effect], grams: Grams) -> dict[str, ConceptStatistics]:
        def step_done() -> None:
            nonlocal done
            done += 1
            progress(f"capturing {what}, evaluation {done} of {total}", done / total)

        progress(f"capturing {what}", done / total)
        return capture(target, *effect, phrase, captures.settings, grams, device, step_done)

    for index in missing:
        concept = concepts[index]
        captures.statistics.append(run(concept.name, concept.trigger, effects[index], captures.grams))
        captures.concepts.append(wanted[index])
    if base_missing:
        captures.base_grams = {}
        for word in base_missing:
            run(f"the base model on “{word}”", word, (Effect(), Effect()), captures.base_grams)
        captures.base_words = base_missing
    _known[target.model] = captures
    return captures, total
