"""LoRACLR (arXiv 2412.09622) as a whole: load the concepts, capture them, solve, distil, patch."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ... import lowrank
from ...concept import Concept, require_class_words
from ...lowrank import LowRank
from ...merge import adamw, exact
from ...merge.moments import ConceptStatistics
from ...merge.objective import Margin, held_out_error, negative_distances
from ...progress import Progress
from ..content import NotStorableError
from ..lora import adapters, keys
from ..lora.layers import Layers, dense
from ..lora.load import Loaded, load
from ..lora.match import key_names
from . import store
from .cache import Source, capture_all, key_of
from .distillation import Agreement, Distilled, distil
from .store import Captures, CaptureStore
from .target import CaptureSettings, Target
from .together import Together

Solver = Literal["exact", "adamw (paper)", "sum (baseline)"]
SOLVERS: tuple[Solver, ...] = ("exact", "adamw (paper)", "sum (baseline)")
Keeping = Literal["in memory", "on disk", "clear the disk"]
KEEPINGS: tuple[Keeping, ...] = ("in memory", "on disk")
# A setting of version 0.1 that saved workflows may still have.
FORMER_KEEPING: Keeping = "clear the disk"
# The published optimiser works on the features themselves, so more of them are kept for it.
ADAMW_SAMPLES = 400
# The shares of the progress bar: captures beside the solve, and distillation beside both.
CAPTURE_SHARE, DISTILLATION_SHARE = 0.9, 0.8

Deltas = dict[str, LowRank]


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    solver: Solver = "exact"
    margin: Margin = field(default_factory=Margin)
    # ρ of the exact solver.
    ridge: float = 0.1
    # Weight of the plain model on the class words; 1 = as much as one concept.
    anchor_weight: float = 0.0
    capture: CaptureSettings
    merge_text_encoder: bool = True
    # Where captures are kept for further merges.
    captures: Keeping = "in memory"
    distillation_steps: int = 0
    # Pictures of several concepts for the distillation.
    together: list[Together] = field(default_factory=list)


class LayerResult(NamedTuple):
    """The errors of one layer, one per concept: ‖X (Δ − ΔW)ᵀ‖² per held-out token for Δ = 0, the sum, the merged Δ."""

    key: str
    rank: int
    base: list[float]
    sum: list[float]
    merged: list[float]
    margin_active: list[bool]


class Captured(NamedTuple):
    captures: Captures
    evaluations: int
    # Message about the captures on disk; may be empty.
    note: str


@dataclass(frozen=True)
class Solution:
    """One weight difference per layer, and its errors."""

    deltas: Deltas
    layers: list[LayerResult] = field(default_factory=list)
    # Layers that did not run in every concept's capture, such as those for conditioning by a picture; they are summed.
    unseen: list[str] = field(default_factory=list)
    # The number of tokens in the moments, and of all tokens.
    tokens: tuple[int, int] = (0, 0)


@dataclass(frozen=True, kw_only=True)
class MergeResult:
    """The merge and how it was made."""

    # By the keys of the LoRA file.
    lora: dict[str, Tensor]
    model: ModelPatcher
    clip: comfy.sd.CLIP
    architecture: str
    settings: MergeSettings
    loaded: list[Loaded]
    # Concepts that change nothing and took no part.
    without_effect: list[Concept]
    solution: Solution
    ranks: list[int]
    evaluations: int = 0
    capture_note: str = ""
    # One per concept; empty without distillation.
    agreements: list[Agreement] = field(default_factory=list)
    # By phase.
    seconds: dict[str, float]


def merge(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    concepts: list[Concept],
    settings: MergeSettings,
    report: Callable[[str, float], None],
) -> MergeResult:
    """Merge the concepts into one LoRA and a clone of the model patched with it; `model` and `clip` stay as they are.

    report(phase, share done) is called often and may raise to stop. Raises ValueError, with the remedy, where a concept
    cannot be merged.
    """
    _check(concepts, settings)
    run = _Run(settings, comfy.model_management.get_torch_device(), Progress(report), seconds={})
    with run.timed("reading"):
        loaded, without_effect = _load_all(model, clip, concepts, run)
        target = _target(model, clip, loaded)
    distils = settings.distillation_steps > 0 and len(loaded) > 1 and len(target.model_layers) > 0
    if settings.together and not distils:
        raise ValueError(
            "pictures_together teaches several concepts at once, but there are fewer than two that change the model: connect"
            " more concepts, or disconnect it."
        )
    solving = run.progress.part(0.0, 1 - DISTILLATION_SHARE if distils else 1.0)
    captured = _capture(target, loaded, run, solving.part(0.0, CAPTURE_SHARE))
    solution = _solve(target, loaded, captured.captures, run, solving.part(CAPTURE_SHARE, 1.0))
    distilled = _distil(target, solution.deltas, loaded, run) if distils else Distilled(solution.deltas, [])
    run.progress("patching the model", 1.0)
    with run.timed("patching"):
        lora = _name_keys(target, distilled.deltas, loaded)
        patched_model, patched_clip = comfy.sd.load_lora_for_models(model, clip, lora, 1.0, 1.0)
    return MergeResult(
        lora=lora,
        model=patched_model,
        clip=patched_clip,
        architecture=keys.architecture(model),
        settings=settings,
        loaded=loaded,
        without_effect=without_effect,
        solution=solution,
        ranks=[delta.rank for delta in distilled.deltas.values()],
        evaluations=captured.evaluations,
        capture_note=captured.note,
        agreements=distilled.agreements,
        seconds=run.seconds,
    )


def capture_only(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    concepts: list[Concept],
    settings: MergeSettings,
    report: Callable[[str, float], None],
) -> str:
    """Capture the concepts that have no file yet, and return what was done. Raises NotStorableError, OSError."""
    _check(concepts, settings)
    run = _Run(settings, comfy.model_management.get_torch_device(), Progress(report), seconds={})
    loaded, _ = _load_all(model, clip, concepts, run)
    target = _target(model, clip, loaded)
    disk = CaptureStore(target, settings.capture, [concept.concept.trigger for concept in loaded])
    missing = [concept for concept in loaded if not disk.holds(key_of(concept))] if target.layers() else []
    source = Source(target, settings.capture, disk, run.device, run.progress, len(missing))
    for concept in missing:
        name, trigger = concept.concept.name, concept.concept.trigger
        source.take(disk, key_of(concept), name, trigger, concept.model, concept.clip)
        if source.fault:
            raise OSError(f"The capture of {name} could not be kept on disk: {source.fault}. Free some space there.")
    count = source.evaluations // settings.capture.evaluations()
    files = ", ".join(disk.path(key_of(concept)).name for concept in loaded)
    return (
        f"{count} of {len(concepts)} concepts captured, {source.evaluations} model evaluations; the others were there or"
        f" change nothing. {_describe_disk('')} Files: {files}."
    )


class _Run(NamedTuple):
    """The state that all phases of a merge share."""

    settings: MergeSettings
    device: torch.device
    progress: Progress
    # By phase, in order.
    seconds: dict[str, float]

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Measure the time of a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start


def _is_solved(settings: MergeSettings, concepts: int) -> bool:
    """Return whether there is anything to solve. A single concept is already the solution of every solver."""
    return settings.solver != "sum (baseline)" and concepts > 1


def _check(concepts: list[Concept], settings: MergeSettings) -> None:
    """Raise ValueError, with what to do, where these concepts cannot be merged with these settings."""
    if not concepts:
        raise ValueError("No concepts to merge: connect at least one Load Concept LoRA.")
    if settings.anchor_weight != 0 and _is_solved(settings, len(concepts)):
        require_class_words(concepts, "anchor_weight above 0 keeps the plain model in place on the class words")
    if settings.distillation_steps and len(concepts) > 1:
        require_class_words(concepts, "distillation_steps above 0 keeps the plain model as it is on the class words")


def _load_all(
    model: ModelPatcher, clip: comfy.sd.CLIP, concepts: list[Concept], run: _Run
) -> tuple[list[Loaded], list[Concept]]:
    """Return the concepts that change the model, and those that change nothing.

    A concept that affects only the model or only the text encoder still takes part in the other's layers, where its
    target is the plain output.
    """
    names = key_names(model, clip)
    loaded, without_effect = [], []
    for concept in concepts:
        if concept.strength_model == concept.strength_clip == 0:
            without_effect.append(concept)
            continue
        run.progress(f"reading {concept.lora_name}", 0.0)
        candidate = load(concept, model, clip, names, run.device, with_clip=run.settings.merge_text_encoder)
        if candidate.changes_nothing():
            without_effect.append(concept)
        else:
            loaded.append(candidate)
    return loaded, without_effect


def _target(model: ModelPatcher, clip: comfy.sd.CLIP, loaded: list[Loaded]) -> Target:
    def layers(patcher: ModelPatcher, merged: Iterable[dict]) -> Layers:
        return {key: adapters.layer(patcher, key) for key in _union(merged)}

    return Target(
        model=model,
        clip=clip,
        model_layers=layers(model, (concept.model.merge for concept in loaded)),
        clip_layers=layers(clip.patcher, (concept.clip.merge for concept in loaded)),
    )


def _capture(target: Target, loaded: list[Loaded], run: _Run, progress: Progress) -> Captured:
    """Return the concepts' captures; none where nothing has to be solved."""
    settings = run.settings
    if not _is_solved(settings, len(loaded)) or not target.layers():
        return Captured(Captures(), 0, "")
    capture_settings, note, disk = settings.capture, "", None
    if settings.captures == FORMER_KEEPING:
        note = "The captures on disk were not cleared: that is what the node Clear Captures is for. Set captures to in memory."
    if settings.solver == "adamw (paper)":
        capture_settings = capture_settings._replace(samples=ADAMW_SAMPLES)
    with run.timed("capture"):
        if settings.captures == "on disk":
            try:
                disk = CaptureStore(target, capture_settings, [concept.concept.trigger for concept in loaded])
            except NotStorableError as error:
                note = f"The captures of this model are not kept on disk: {error}."
        with_base = settings.anchor_weight != 0
        captures, evaluations, fault = capture_all(
            target, loaded, capture_settings, with_base, disk, run.device, progress
        )
        if disk:
            note = _describe_disk(fault)
    return Captured(captures, evaluations, note)


def _describe_disk(fault: str) -> str:
    """Return a message about the captures on disk. The merge goes on where one could not be written."""
    if fault:
        return f"The captures could not be kept on disk: {fault}."
    size, limit = (value / 2**30 for value in (store.size(), store.LIMIT))
    return f"Captures on disk: {size:.1f} of at most {limit:.0f} GiB, in {store.folder()}."


def _solve(target: Target, loaded: list[Loaded], captures: Captures, run: _Run, progress: Progress) -> Solution:
    """Return the merged difference of every layer, or the sum where nothing was captured.

    Raises ValueError where there are captures but none of the layers ran in them.
    """
    if not captures.statistics:
        return Solution({key: lowrank.squeeze(_sum(loaded, key)) for key in target.layers()})
    deltas: Deltas = {}
    layers, unseen, counted, seen = [], [], 0, 0
    with run.timed("solve"):
        for index, key in enumerate(target.layers()):
            progress(f"solving layer {index + 1} of {len(target.layers())}", index / len(target.layers()))
            statistics = [layers_statistics[key] for layers_statistics in captures.statistics]
            if not all(concept.seen for concept in statistics):
                deltas[key] = lowrank.squeeze(_sum(loaded, key))
                unseen.append(key)
                continue
            deltas[key] = _solve_layer(key, statistics, captures, run)
            layers.append(_judge(key, statistics, deltas[key], run.settings.margin))
            counted, seen = counted + statistics[0].tokens, seen + statistics[0].seen
    if not layers:
        raise ValueError(
            f"None of the {len(deltas)} layers that the LoRAs change ran while their concepts were sampled, so there is nothing"
            " to merge by. Remove the patches that replace the model's layers, or choose the solver “sum (baseline)”."
        )
    return Solution(deltas, layers, unseen, (counted, seen))


def _solve_layer(key: str, statistics: list[ConceptStatistics], captures: Captures, run: _Run) -> LowRank:
    settings = run.settings
    if settings.solver != "exact":
        return adamw.solve(statistics, settings.margin, run.device)
    gram = captures.grams[key]
    if settings.anchor_weight != 0:
        # Weighted 1, the base counts as much as one concept.
        gram = gram.plus(captures.base_grams[key], settings.anchor_weight / len(captures.base_words))
    return exact.solve(gram, statistics, settings.ridge, settings.margin, run.device)


def _distil(target: Target, deltas: Deltas, loaded: list[Loaded], run: _Run) -> Distilled:
    settings, progress = run.settings, run.progress.part(1 - DISTILLATION_SHARE, 1.0)
    with run.timed("distillation"):
        return distil(
            target, deltas, loaded, settings.distillation_steps, settings.capture, settings.together, progress
        )


def _judge(key: str, statistics: list[ConceptStatistics], delta: LowRank, margin: Margin) -> LayerResult:
    """Return the errors of a layer's merged difference on the held-out tokens."""
    base = lowrank.zero(delta.up.shape[0], delta.down.shape[1])
    total = lowrank.add([concept.delta for concept in statistics])

    def errors(candidate: LowRank) -> list[float]:
        return [held_out_error(concept, candidate) for concept in statistics]

    return LayerResult(
        key=key,
        rank=delta.rank,
        base=errors(base),
        sum=errors(total),
        merged=errors(delta),
        margin_active=(negative_distances(statistics, delta) < margin.resolve(statistics)).tolist(),
    )


def _sum(loaded: list[Loaded], key: str) -> LowRank:
    return lowrank.add([concept.merged()[key] for concept in loaded if key in concept.merged()])


def _name_keys(target: Target, deltas: Deltas, loaded: list[Loaded]) -> dict[str, Tensor]:
    """Return the merged differences, and the sums of those that cannot be merged, by the keys of a LoRA file."""
    names = keys.Names(target.model, target.clip)
    lora: dict[str, Tensor] = {}
    sides = (
        (target.model, target.model_layers, [concept.model.add for concept in loaded]),
        (target.clip.patcher, target.clip_layers, [concept.clip.add for concept in loaded]),
    )
    for patcher, merged, summed in sides:
        shapes = adapters.shapes(patcher, [*merged, *_union(summed)])
        for key in merged:
            lora |= names.factors(key, deltas[key], shapes[key])
        for key in _union(summed):
            terms = [differences[key] for differences in summed if key in differences]
            if all(isinstance(term, LowRank) for term in terms):
                lora |= names.factors(key, lowrank.add(terms), shapes[key])
            else:
                lora |= names.difference(key, torch.stack([dense(term, shapes[key]) for term in terms]).sum(dim=0))
    return lora


def _union(dictionaries: Iterable[dict]) -> list[str]:
    return list(dict.fromkeys(key for dictionary in dictionaries for key in dictionary))
