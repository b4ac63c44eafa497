"""The merge as a whole: read, match, capture, solve, and write down what was done."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .. import adamw, exact, lowrank
from ..concept import Concept
from ..lowrank import LowRank
from ..moments import ConceptStatistics
from ..objective import Margin, held_out_error, negative_distances
from . import adapters, capture_store, captures, distillation, lora_file, lora_keys
from .adapters import Effect, MatchedLoRA
from .capture import CaptureSettings, Target, dense
from .capture_store import CaptureStore, Known, NotStorableError
from .distillation import Agreement

Solver = Literal["exact", "adamw (paper)", "sum (baseline)"]
SOLVERS: tuple[Solver, ...] = ("exact", "adamw (paper)", "sum (baseline)")
# The published optimiser works on features themselves, so more of them are kept for it.
ADAMW_SAMPLES = 400
Keeping = Literal["in memory", "on disk", "clear the disk"]
KEEPINGS: tuple[Keeping, ...] = ("in memory", "on disk", "clear the disk")
# What share of the progress bar the captures take, and of all the distillation where there is one.
CAPTURE_SHARE, DISTILLATION_SHARE = 0.9, 0.8


class MergeSettings(NamedTuple):
    """ridge: ρ of the exact solver. anchor_weight: how much the plain model counts, 1 = as one concept. captures: where they
    are kept for further merges.
    """

    solver: Solver
    margin: Margin
    ridge: float
    anchor_weight: float
    capture: CaptureSettings
    merge_text_encoder: bool
    captures: Keeping = "in memory"
    distillation_steps: int = 0


@dataclass
class LayerResult:
    """Errors per held-out token, one per concept: ‖X (Δ − ΔW)ᵀ‖² for Δ = 0, the sum, and the merged Δ."""

    key: str
    rank: int
    base: list[float]
    sum: list[float]
    merged: list[float]
    margin_active: list[bool]


@dataclass
class MergeResult:
    """lora: the merged LoRA by the names of its file. unseen: layers that did not run in the capture of every concept, as
    those of a picture's condition do not, and are summed. tokens: how many the moments count, of how many there were. kept:
    what became of the captures on disk, in words. agreements: of each concept, where there was a distillation.
    """

    lora: dict[str, Tensor]
    model: ModelPatcher
    clip: object
    architecture: str
    concepts: list[Concept]
    settings: MergeSettings
    matches: list[MatchedLoRA]
    effects: list[tuple[Effect, Effect]]
    layers: list[LayerResult] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    tokens: tuple[int, int] = (0, 0)
    evaluations: int = 0
    kept: str = ""
    agreements: list[Agreement] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def merge(
    model: ModelPatcher, clip, concepts: list[Concept], settings: MergeSettings, progress: Callable[[str, float], None]
) -> MergeResult:
    """Merges the concepts into one LoRA and the model patched with it; `model` and `clip` stay as they are.

    progress(phase, share done) is called often and may raise to stop. Raises ValueError, with what to do, where a
    concept cannot be merged.
    """
    if not concepts:
        raise ValueError("No concepts to merge: connect at least one Load Concept LoRA.")
    device = comfy.model_management.get_torch_device()
    seconds: dict[str, float] = {}
    if settings.captures == "clear the disk":
        capture_store.clear()

    start = time.perf_counter()
    if not settings.merge_text_encoder:
        concepts = [concept._replace(strength_clip=0.0) for concept in concepts]
    key_map = adapters.key_names(model, clip)
    matches, effects = [], []
    for concept in concepts:
        progress(f"reading {concept.lora_name}", 0.0)
        match = adapters.match(concept.lora_name, lora_file.read(concept.path)[0], key_map)
        matches.append(match)
        effects.append(
            (
                adapters.effect(match, model, concept.strength_model, device),
                adapters.effect(match, clip.patcher, concept.strength_clip, device),
            )
        )
    target = Target(
        *(model, clip),
        {key: adapters.layer(model, key) for key in _union(of_model.merge for of_model, _ in effects)},
        {key: adapters.layer(clip.patcher, key) for key in _union(of_clip.merge for _, of_clip in effects)},
    )
    seconds["reading"] = time.perf_counter() - start

    result = MergeResult({}, model, clip, lora_keys.architecture(model), concepts, settings, matches, effects)
    # One concept alone is already what every solver looks for.
    steps = settings.distillation_steps if len(concepts) > 1 else 0
    solving = 1 - DISTILLATION_SHARE if steps else 1.0
    if settings.solver == "sum (baseline)" or len(concepts) == 1:
        deltas = {key: lowrank.squeeze(_sum(effects, key)) for key in target.layers()}
    else:
        deltas = _solve_all(target, result, device, lambda phase, done: progress(phase, solving * done), seconds)
    if steps:
        start = time.perf_counter()
        deltas, result.agreements = distillation.distil(
            *(target, deltas, concepts, effects, steps, settings.capture),
            lambda phase, done: progress(phase, solving + (1 - solving) * done),
        )
        seconds["distillation"] = time.perf_counter() - start
    result.ranks = [delta.rank for delta in deltas.values()]

    progress("patching the model", 1.0)
    start = time.perf_counter()
    result.lora = _name(target, deltas, effects)
    result.model, result.clip = comfy.sd.load_lora_for_models(model, clip, result.lora, 1.0, 1.0)
    seconds["patching"] = time.perf_counter() - start
    result.seconds = seconds
    return result


def _solve_all(target: Target, result: MergeResult, device, progress, seconds: dict[str, float]) -> dict[str, LowRank]:
    settings = result.settings
    start = time.perf_counter()
    wanted = settings.capture
    if settings.solver == "adamw (paper)":
        wanted = wanted._replace(samples=ADAMW_SAMPLES)
    store = None
    if settings.captures == "on disk":
        try:
            store = CaptureStore(target, wanted, [concept.trigger for concept in result.concepts])
        except NotStorableError as error:
            result.kept = f"The captures of this model are not kept on disk: {error}."
    known, result.evaluations = captures.of_concepts(
        *(target, result.concepts, result.effects, wanted, settings.anchor_weight != 0, store, device),
        lambda phase, done: progress(phase, CAPTURE_SHARE * done),
    )
    if store:
        progress("keeping the captures on disk", CAPTURE_SHARE)
        result.kept = _keep(store, known, bool(result.evaluations))
    seconds["capture"] = time.perf_counter() - start

    start = time.perf_counter()
    deltas = {}
    for index, key in enumerate(target.layers()):
        done = index / len(target.layers())
        progress(f"solving layer {index + 1} of {len(target.layers())}", CAPTURE_SHARE + (1 - CAPTURE_SHARE) * done)
        concepts = [statistics[key] for statistics in known.statistics]
        if not all(concept.seen for concept in concepts):
            deltas[key] = lowrank.squeeze(_sum(result.effects, key))
            result.unseen.append(key)
            continue
        if settings.solver == "exact":
            gram = known.grams[key]
            if settings.anchor_weight != 0:
                # Weighted 1, the base counts as much as one concept.
                gram = gram.plus(known.base_grams[key], settings.anchor_weight / len(known.base_words))
            deltas[key] = exact.solve(gram, concepts, settings.ridge, settings.margin, device)
        else:
            deltas[key] = adamw.solve(concepts, settings.margin, device)
        result.layers.append(_judge(key, concepts, deltas[key], settings.margin))
        counted, seen = result.tokens
        result.tokens = (counted + concepts[0].tokens, seen + concepts[0].seen)
    if not result.layers:
        raise ValueError(
            f"None of the {len(deltas)} layers that the LoRAs change ran while their concepts were sampled, so there is nothing"
            " to merge by. Remove the patches that replace the model's layers, or choose the solver “sum (baseline)”."
        )
    seconds["solve"] = time.perf_counter() - start
    return deltas


def _keep(store: CaptureStore, known: Known, new: bool) -> str:
    """What became of them. The merge goes on without the disk."""
    try:
        if new or not store.path(known.concepts).exists():
            store.save(known)
    except OSError as error:
        return f"The captures could not be kept on disk: {error}."
    size, limit = (value / 2**30 for value in (capture_store.size(), capture_store.LIMIT))
    return f"Captures on disk: {size:.1f} of at most {limit:.0f} GiB, in {capture_store.folder()}."


def _judge(key: str, concepts: list[ConceptStatistics], delta: LowRank, margin: Margin) -> LayerResult:
    base = lowrank.zero(delta.up.shape[0], delta.down.shape[1])
    total = lowrank.add([concept.delta for concept in concepts])
    active = negative_distances(concepts, delta) < margin.resolve(concepts)

    def errors(of: LowRank) -> list[float]:
        return [held_out_error(concept, of) for concept in concepts]

    return LayerResult(key, delta.rank, errors(base), errors(total), errors(delta), active.tolist())


def _sum(effects: list[tuple[Effect, Effect]], key: str) -> LowRank:
    return lowrank.add([side.merge[key] for effect in effects for side in effect if key in side.merge])


def _name(target: Target, deltas: dict[str, LowRank], effects: list[tuple[Effect, Effect]]) -> dict[str, Tensor]:
    """The merged differences, and the sums of what cannot be merged, under the names of a LoRA file."""
    names = lora_keys.Names(target.model, target.clip)
    lora: dict[str, Tensor] = {}
    for patcher, sides in zip((target.model, target.clip.patcher), zip(*effects, strict=True), strict=True):
        merged, summed = _union(side.merge for side in sides), _union(side.add for side in sides)
        shapes = adapters.shapes(patcher, [*merged, *summed])
        for key in merged:
            lora |= names.factors(key, deltas[key], shapes[key])
        for key in summed:
            terms = [side.add[key] for side in sides if key in side.add]
            if all(isinstance(term, LowRank) for term in terms):
                lora |= names.factors(key, lowrank.add(terms), shapes[key])
            else:
                lora |= names.difference(key, torch.stack([dense(term, shapes[key]) for term in terms]).sum(dim=0))
    return lora


def _union(dictionaries: Iterable[dict]) -> list[str]:
    return list(dict.fromkeys(key for dictionary in dictionaries for key in dictionary))
