"""Captures kept while only solver settings change, so that another margin or ridge takes seconds; if asked, on disk too."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher

from ...concept import Concept
from ...merge.moments import ConceptStatistics
from ..lora.adapters import Effect
from .capture import CaptureSettings, Grams, Target, capture
from .store import CaptureStore, Known


@dataclass
class Captures:
    """What is known of one model, and under which circumstances it was captured."""

    clip: weakref.ref
    settings: CaptureSettings
    layers: list[str]
    known: Known = field(default_factory=Known)

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


def forget() -> None:
    """What is on disk stays."""
    _known.clear()


def of_concepts(
    target: Target,
    concepts: list[Concept],
    effects: list[tuple[Effect, Effect]],
    settings: CaptureSettings,
    with_base: bool,
    store: CaptureStore | None,
    device: torch.device,
    progress: Callable[[str, float], None],
) -> tuple[Known, int]:
    """The captures of `concepts` and, `with_base`, of the plain model on their class words.

    Only what is not known yet, here or in the store, is captured: a concept added at the end costs one capture. Returns
    them and the number of model evaluations that took.
    """
    # Known again once all is complete: a capture that is cancelled has added to the sums in part.
    captures = _known.pop(target.model, None)
    if captures is None or not captures.serve(target, settings):
        captures = Captures(weakref.ref(target.clip.patcher), settings, target.layers())
    wanted = [(c.sha256, c.trigger, c.strength_model, c.strength_clip) for c in concepts]
    known = captures.known
    if known.concepts != wanted[: len(known.concepts)]:
        known.concepts, known.statistics, known.grams = [], [], {}
    if store and not known.concepts and (found := store.load(wanted, effects)):
        known = captures.known = found
    base_words = sorted({concept.class_word for concept in concepts})
    base_missing = base_words if with_base and known.base_words != base_words else []

    missing = range(len(known.concepts), len(concepts))
    total = (len(missing) + len(base_missing)) * settings.evaluations()
    done = 0

    def run(what: str, phrase: str, effect: tuple[Effect, Effect], grams: Grams) -> dict[str, ConceptStatistics]:
        def evaluated() -> None:
            nonlocal done
            done += 1
            progress(f"capturing {what}, evaluation {done} of {total}", done / total)

        progress(f"capturing {what}", done / total)
        return capture(target, *effect, phrase, captures.settings, grams, device, evaluated)

    for index in missing:
        concept = concepts[index]
        known.statistics.append(run(concept.name, concept.trigger, effects[index], known.grams))
        known.concepts.append(wanted[index])
    if base_missing:
        known.base_grams = {}
        for word in base_missing:
            run(f"the base model on “{word}”", word, (Effect(), Effect()), known.base_grams)
        known.base_words = base_missing
    _known[target.model] = captures
    return known, done
