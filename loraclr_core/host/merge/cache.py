"""Captures that are kept while only the solver's settings change, so that another margin or ridge takes seconds."""

import weakref
from dataclasses import dataclass, replace

import torch
from comfy.model_patcher import ModelPatcher

from ...progress import Progress
from ..lora.adapters import Effect
from ..lora.load import Loaded
from .capture import Capture, Grams, capture
from .store import CaptureKey, Captures, CaptureStore
from .target import CaptureSettings, Target


@dataclass(frozen=True)
class Entry:
    """The captures of one model, and the circumstances under which they were made."""

    clip: weakref.ref
    settings: CaptureSettings
    layers: list[str]
    captures: Captures

    def serves(self, target: Target, settings: CaptureSettings) -> bool:
        """Return whether a capture of `target` with these settings would give the same result."""
        same_layers = self.layers == list(target.layers())
        return self.clip() is target.clip.patcher and same_layers and self.settings == settings


# One set per model, for as long as ComfyUI keeps the model.
_cache: weakref.WeakKeyDictionary[ModelPatcher, Entry] = weakref.WeakKeyDictionary()


def forget() -> None:
    """Clear the captures in memory; files on disk stay."""
    _cache.clear()


def capture_all(
    target: Target,
    loaded: list[Loaded],
    settings: CaptureSettings,
    with_base: bool,
    store: CaptureStore | None,
    device: torch.device,
    progress: Progress,
) -> tuple[Captures, int]:
    """Return the captures of all concepts, and how many model evaluations they took.

    Captures in memory or in the store are not made again: a concept added at the end costs one capture.
    with_base: whether to capture the plain model too, on the concepts' class words.
    """
    keys = [_key(concept) for concept in loaded]
    # Stored again only on success: a cancelled capture leaves the sums half-updated.
    captures = _select_usable(target, settings, keys, _cache.pop(target.model, None))
    if store and not captures.keys:
        captures = store.load(keys, loaded) or captures
    base_words = sorted({concept.concept.class_word for concept in loaded}) if with_base else captures.base_words
    new_words = base_words if base_words != captures.base_words else []

    run = _Runs(target, settings, device, progress, len(loaded) - len(captures.keys) + len(new_words))
    for key, concept in list(zip(keys, loaded, strict=True))[len(captures.keys) :]:
        name, trigger = concept.concept.name, concept.concept.trigger
        result = run(name, trigger, concept.model, concept.clip, captures.grams)
        captures = replace(
            captures,
            keys=[*captures.keys, key],
            statistics=[*captures.statistics, result.statistics],
            grams=result.grams,
        )
    if new_words:
        grams: Grams = {}
        for word in new_words:
            grams = run(f"the base model on “{word}”", word, Effect(), Effect(), grams).grams
        captures = replace(captures, base_words=new_words, base_grams=grams)
    _cache[target.model] = Entry(weakref.ref(target.clip.patcher), settings, list(target.layers()), captures)
    return captures, run.evaluations


def _key(loaded: Loaded) -> CaptureKey:
    """Return the key of a concept. Where the text encoder is left unchanged, the strength on it does not count."""
    concept = loaded.concept
    strength_clip = concept.strength_clip if loaded.clip.merge or loaded.clip.add else 0.0
    return CaptureKey(concept.sha256, concept.trigger, concept.strength_model, strength_clip)


def _select_usable(target: Target, settings: CaptureSettings, keys: list[CaptureKey], entry: Entry | None) -> Captures:
    """Return the usable part of `entry`: all of it, the base alone where the concepts differ, or nothing."""
    if entry is None or not entry.serves(target, settings):
        return Captures()
    if entry.captures.keys == keys[: len(entry.captures.keys)]:
        return entry.captures
    return Captures(base_words=entry.captures.base_words, base_grams=entry.captures.base_grams)


class _Runs:
    """Captures one concept after another and counts their evaluations."""

    def __init__(self, target: Target, settings: CaptureSettings, device: torch.device, progress: Progress, runs: int):
        self.target, self.settings, self.device, self.progress = target, settings, device, progress
        self.total = runs * settings.evaluations()
        self.evaluations = 0

    def __call__(self, what: str, phrase: str, model: Effect, clip: Effect, grams: Grams) -> Capture:
        self.progress(f"capturing {what}", self.evaluations / self.total)

        def evaluated() -> None:
            self.evaluations += 1
            done = f"evaluation {self.evaluations} of {self.total}"
            self.progress(f"capturing {what}, {done}", self.evaluations / self.total)

        return capture(self.target, model, clip, phrase, self.settings, grams, self.device, evaluated)
