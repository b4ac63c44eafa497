"""Captures that are kept while only the solver's settings change, so that another margin or ridge takes seconds."""

import weakref
from dataclasses import dataclass, replace

import torch
from comfy.model_patcher import ModelPatcher

from ...progress import Progress
from ..lora.adapters import Effect
from ..lora.load import Loaded
from .capture import Capture, Grams, capture
from .packing import pack
from .store import CaptureKey, Captures, CaptureStore
from .target import CaptureSettings, Target


@dataclass(frozen=True)
class Entry:
    """The captures of one model, and the circumstances under which they were made."""

    clip: weakref.ref
    settings: CaptureSettings
    layers: list[str]
    # Whether they are what files hold, which is not quite what was captured.
    packed: bool
    captures: Captures

    def serves(self, target: Target, settings: CaptureSettings, packed: bool) -> bool:
        """Return whether a capture of `target` with these settings would give the same result."""
        same_layers = self.layers == list(target.layers())
        same_settings = self.settings == settings and self.packed == packed
        return self.clip() is target.clip.patcher and same_layers and same_settings


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
) -> tuple[Captures, int, str]:
    """Return the captures of all concepts, how many model evaluations they took, and why a file could not be written.

    Captures in memory or in the store are not made again. with_base: whether to capture the plain model too, on the
    concepts' class words.
    """
    keys = [key_of(concept) for concept in loaded]
    # Stored again only on success: a cancelled capture leaves the sums half-updated.
    entry = _cache.pop(target.model, None)
    if entry and entry.serves(target, settings, packed=store is not None):
        captures = _select_usable(keys, entry.captures)
    else:
        captures = Captures()
    if store and not all(store.holds(key) for key in [*captures.keys, *map(_base_key, captures.base_words)]):
        captures = Captures()  # the sum in memory cannot be taken apart into files
    base_words = sorted({concept.concept.class_word for concept in loaded}) if with_base else captures.base_words
    new_words = base_words if base_words != captures.base_words else []
    remaining = list(zip(keys, loaded, strict=True))[len(captures.keys) :]

    new_keys = [*(key for key, _ in remaining), *map(_base_key, new_words)]
    missing = [key for key in new_keys if not (store and store.holds(key))]
    source = Source(target, settings, store, device, progress, len(missing))
    for key, concept in remaining:
        name, trigger = concept.concept.name, concept.concept.trigger
        result = source.add(captures.grams, key, name, trigger, concept.model, concept.clip)
        captures = replace(
            captures,
            keys=[*captures.keys, key],
            statistics=[*captures.statistics, result.statistics],
            grams=result.grams,
        )
    if new_words:
        grams: Grams = {}
        for word in new_words:
            what = f"the base model on “{word}”"
            grams = source.add(grams, _base_key(word), what, word, Effect(), Effect()).grams
        captures = replace(captures, base_words=new_words, base_grams=grams)
    clip, layers = weakref.ref(target.clip.patcher), list(target.layers())
    _cache[target.model] = Entry(clip, settings, layers, packed=store is not None, captures=captures)
    return captures, source.evaluations, source.fault


def _base_key(word: str) -> CaptureKey:
    return CaptureKey("", word, 0.0, 0.0)


def key_of(loaded: Loaded) -> CaptureKey:
    """Return the key of a concept. Where the text encoder is left unchanged, the strength on it does not count."""
    concept = loaded.concept
    strength_clip = concept.strength_clip if loaded.clip.merge or loaded.clip.add else 0.0
    return CaptureKey(concept.sha256, concept.trigger, concept.strength_model, strength_clip)


def _select_usable(keys: list[CaptureKey], captures: Captures) -> Captures:
    """Return all captures, or the base alone where the concepts differ."""
    if captures.keys == keys[: len(captures.keys)]:
        return captures
    return Captures(base_words=captures.base_words, base_grams=captures.base_grams)


class Source:
    """Takes captures from the store, or makes them and keeps them there, and counts the evaluations."""

    def __init__(
        self,
        target: Target,
        settings: CaptureSettings,
        store: CaptureStore | None,
        device: torch.device,
        progress: Progress,
        runs: int,
    ):
        self.target, self.settings, self.store, self.device, self.progress = target, settings, store, device, progress
        self.total = runs * settings.evaluations()
        self.evaluations = 0
        # Why the last file could not be written; "" where all could.
        self.fault = ""

    def add(self, grams: Grams, key: CaptureKey, what: str, phrase: str, model: Effect, clip: Effect) -> Capture:
        """Return a concept's statistics and the sums with its second moments added. `grams` may be modified.

        With a store, a capture is what its file holds, and second moments are summed concept by concept, so that a merge
        is the same whether its captures come from files or not; without one, in place, which takes less memory.
        """
        if self.store is None:
            return self._capture(self.target, what, phrase, model, clip, grams)
        result = self.take(self.store, key, what, phrase, model, clip)
        return result._replace(grams=_sum(grams, result.grams))

    def take(
        self, store: CaptureStore, key: CaptureKey, what: str, phrase: str, model: Effect, clip: Effect
    ) -> Capture:
        """Return a concept's own capture as its file holds it; one made anew is kept there."""
        effect = model.merge | clip.merge
        if (stored := store.load(key, effect)) is not None:
            return stored
        # Layers that an earlier chain needed stay in the file.
        target = self.target.with_layers(store.layers(key))
        packed = pack(self._capture(target, what, phrase, model, clip, {}), self.device)
        try:
            store.save(key, packed)
        except OSError as error:
            self.fault = str(error)
        return store.unpack(packed, effect)

    def _capture(self, target: Target, what: str, phrase: str, model: Effect, clip: Effect, grams: Grams) -> Capture:
        # A damaged file is one more capture than expected.
        self.total = max(self.total, self.evaluations + self.settings.evaluations())
        self.progress(f"capturing {what}", self.evaluations / self.total)

        def evaluated() -> None:
            self.evaluations += 1
            done = f"evaluation {self.evaluations} of {self.total}"
            self.progress(f"capturing {what}, {done}", self.evaluations / self.total)

        return capture(target, model, clip, phrase, self.settings, grams, self.device, evaluated)


def _sum(grams: Grams, others: Grams) -> Grams:
    """Return the sums of second moments, layer by layer; layers that share theirs in both share their sum."""
    if not grams:
        return others
    pairs = {key: (gram, others[key]) for key, gram in grams.items()}
    sums = {(id(a), id(b)): a.plus(b, 1.0) for a, b in {(id(a), id(b)): (a, b) for a, b in pairs.values()}.values()}
    return {key: sums[id(a), id(b)] for key, (a, b) in pairs.items()}
