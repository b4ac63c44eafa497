"""The report of a merge: in plain words, then in figures; in Markdown and for the page."""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from ...braces import literal_marks
from ...concept import Concept
from ..lora.load import Loaded
from .merge import LayerResult, MergeResult, MergeSettings
from .together import Together

# Longer lists of keys are cut, with a note of how many more there are.
LISTED = 5
# The share of its own LoRA's effect that a concept has lost: the square root of an error, which is a squared distance.
# Measured on the shapes world (docs/quality.md), where identity is 0.95 with each LoRA alone: 0.17 is identity 0.96 (two
# concepts, distilled), 0.25 is 0.81 (two), 0.33 is 0.55 (three), 0.39 is 0.51 (four), 0.52 is 0.26 (eight).
NEAR = 0.2
LOST = ((0.29, "about a quarter"), (0.41, "about a third"), (0.6, "about half"), (0.9, "most"))


class Errors(NamedTuple):
    """Squared distances of layers' outputs from those with each concept alone."""

    # Distance of the plain model.
    base: float
    # Distance of the stacked LoRAs.
    sum: float
    # Distance of the merged LoRA.
    merged: float

    @classmethod
    def of(cls, layers: list[LayerResult], concept: int | None = None) -> "Errors":
        """Return the sums over layers, for one concept or for all."""
        chosen = slice(None) if concept is None else slice(concept, concept + 1)
        return cls(*(sum(sum(getattr(layer, which)[chosen]) for layer in layers) for which in cls._fields))


class Verdict(NamedTuple):
    """What became of a concept, in plain words."""

    concept: str
    text: str


def verdicts(result: MergeResult) -> list[Verdict]:
    """Return one sentence per concept."""
    taking_part = [
        Verdict(concept.concept.name, _fate(_lost(result, index), result))
        for index, concept in enumerate(result.loaded)
    ]
    without_effect = [
        Verdict(concept.name, f"takes no part: {_why_without_effect(concept, result.settings)}")
        for concept in result.without_effect
    ]
    return taking_part + without_effect


def _lost(result: MergeResult, index: int) -> float | None:
    """Return what a concept has lost: after a distillation in the model's predictions, else in its layers' outputs.

    None where no error was measured.
    """
    if result.agreements:
        error, base = result.agreements[index].distilled, result.agreements[index].base
    else:
        errors = Errors.of(result.solution.layers, index)
        error, base = errors.merged, errors.base
    return math.sqrt(error / base) if base else None


def _fate(lost: float | None, result: MergeResult) -> str:
    if len(result.loaded) == 1:
        return "its own LoRA, unchanged"
    if not result.solution.layers:
        return "summed with the others, not measured"
    if lost is None:
        return "not measured: its own LoRA changes nothing in the captures"
    if lost <= NEAR:
        return "near its own LoRA"
    share = next((words for most, words in LOST if lost <= most), "nearly all")
    remedy = "more distillation steps, or the sampler" if result.agreements else "200 distillation steps"
    return f"lost {share}: try {remedy}"


def panel(result: MergeResult) -> dict:
    """Return a merge's data for the page (web/merge_report.js): verdicts, errors as bars, keys, and the report to copy."""
    layers = result.solution.layers
    concepts = [
        {
            "name": concept.concept.name,
            "matched": len(concept.lora.matched),
            "skipped": _skipped(concept),
            **_errors(layers, index),
        }
        for index, concept in enumerate(result.loaded)
    ]
    for concept in result.without_effect:
        concepts.append({"name": f"{concept.name} (takes no part)", "matched": "–", "skipped": "–"})
    groups = [
        {"name": name, "count": len(members), "margin_active": _margin_active(members), **_errors(members)}
        for name, members in _group_layers(layers).items()
    ]
    return {
        "solver": result.settings.solver,
        "verdicts": [verdict._asdict() for verdict in verdicts(result)],
        "concepts": concepts,
        "groups": groups,
        "markdown": markdown(result),
    }


def _skipped(loaded: Loaded) -> int:
    return len(loaded.lora.unmatched) + len(loaded.lora.embeddings)


def _errors(layers: list[LayerResult], concept: int | None = None) -> dict[str, float]:
    return Errors.of(layers, concept)._asdict() if layers else {}


def markdown(result: MergeResult) -> str:
    """Return the report of a merge: concepts, errors by layer group, weights that could not be merged, and times."""
    sections = [
        _summary(result),
        _concepts(result),
        _groups(result.solution.layers),
        _distillation(result),
        _notes(result),
        _seconds(result),
    ]
    return "\n\n".join(section for section in sections if section)


def _summary(result: MergeResult) -> str:
    ranks = f"rank {min(result.ranks)}–{max(result.ranks)}" if result.ranks else "no layer"
    counts = f"{len(result.loaded)} concepts, {len(result.ranks)} layers of {result.architecture}"
    sentences = "\n".join(f"- **{verdict.concept}**: {verdict.text}." for verdict in verdicts(result))
    lines = ["# LoRACLR merge", sentences, f"**{result.settings.solver}**, {counts}, {ranks}."]
    if result.solution.layers:
        lines += _capture(result)
    elif not result.loaded:
        lines.append("No concept changes anything: model and text encoder are as they came.")
    elif len(result.loaded) == 1:
        lines.append("One concept alone needs no merging: it is exported as it is.")
    else:
        lines.append("Summed as stacking LoRAs does; nothing was captured, so no errors are measured.")
    return "\n\n".join(lines)


def _capture(result: MergeResult) -> list[str]:
    settings, capture = result.settings, result.settings.capture
    counted, seen = result.solution.tokens
    evaluations = f"{result.evaluations} model evaluations in this run"
    return [
        f"Capture: {len(capture.prompts)} prompt(s) × {capture.steps} steps per concept, seed {capture.seed};"
        f" {100 * counted / max(1, seen):.0f} % of the tokens counted; {evaluations}"
        + ("." if result.evaluations else " (captured before)."),
        f"Ridge {settings.ridge:g}, base anchor {settings.anchor_weight:g}, margin {settings.margin.value:g}"
        f" ({settings.margin.mode}).",
    ]


def _concepts(result: MergeResult) -> str:
    layers = result.solution.layers
    head = [
        "concept",
        "LoRA",
        "strength model / clip",
        "tensors matched",
        "unmatched",
        "weights merged / summed / idle",
    ]
    rows = [_concept_row(concept) for concept in result.loaded]
    text = ""
    if layers:
        head += ["error stacked", "error merged"]
        for index, row in enumerate(rows):
            errors = Errors.of(layers, index)
            row += [_share(errors.sum, errors.base), _share(errors.merged, errors.base)]
        text = (
            "\n\nErrors: squared distance of each layer's output from what the concept alone would give, on tokens held"
            " out of the solve; 100 % is the base model without any LoRA."
        )
    return "## Concepts\n\n" + _table(head, rows) + text


def _concept_row(loaded: Loaded) -> list[str]:
    concept = loaded.concept
    idle = len(loaded.model.idle) + len(loaded.clip.idle)
    return [
        concept.name,
        f"`{concept.lora_name}`",
        f"{concept.strength_model:g} / {concept.strength_clip:g}",
        f"{len(loaded.lora.matched)}",
        f"{_skipped(loaded)}",
        f"{len(loaded.merged())} / {len(loaded.summed())} / {idle}",
    ]


def _groups(layers: list[LayerResult]) -> str:
    if not layers:
        return ""
    rows = []
    for name, members in _group_layers(layers).items():
        errors = Errors.of(members)
        ranks = [member.rank for member in members]
        rows.append(
            [
                name,
                str(len(members)),
                f"{min(ranks)}–{max(ranks)}",
                f"{errors.base:.4g}",
                f"{errors.sum:.4g} ({_share(errors.sum, errors.base)})",
                f"{errors.merged:.4g} ({_share(errors.merged, errors.base)})",
                f"{100 * _margin_active(members):.0f} %",
            ]
        )
    head = ["layers", "count", "rank", "error base", "error stacked", "error merged", "margin active"]
    return "## Layer groups\n\n" + _table(head, rows)


def _distillation(result: MergeResult) -> str:
    if not result.agreements:
        return ""
    rows = [
        [concept.concept.name, _share(agreement.solved, agreement.base), _share(agreement.distilled, agreement.base)]
        for concept, agreement in zip(result.loaded, result.agreements, strict=True)
    ]
    return (
        f"## Distillation, {result.settings.distillation_steps} steps\n\n"
        + _table(["concept", "error before", "error after"], rows)
        + _together(result.settings.together)
        + "\n\nErrors: squared distance of the model's predictions from those with the concept's own LoRA, on pictures of its"
        " own; 100 % is the base model without any LoRA. The layers' errors above are of the solve."
    )


def _together(together: list[Together]) -> str:
    if not together:
        return ""
    pictures = "; ".join(f"{len(each.latents)} of `{each.prompt}`" for each in together)
    return f"\n\nAlso taught, pictures of several concepts: {pictures}."


def _group_layers(layers: list[LayerResult]) -> dict[str, list[LayerResult]]:
    """Group layers by name, sorted, because ComfyUI keeps the names of a model's layers in unordered sets."""
    groups: dict[str, list[LayerResult]] = {}
    for layer in layers:
        groups.setdefault(_group(layer.key), []).append(layer)
    return dict(sorted(groups.items()))


def _margin_active(layers: list[LayerResult]) -> float:
    """Return the share of layers and concepts whose margin is active."""
    active = [flag for layer in layers for flag in layer.margin_active]
    return sum(active) / len(active)


def _notes(result: MergeResult) -> str:
    settings, concepts = result.settings, [concept.concept for concept in result.loaded]
    notes = [
        f"{concept.name} takes no part, as if it were not connected: {_why_without_effect(concept, settings)}"
        for concept in result.without_effect
    ]
    for concept in result.loaded:
        notes += _notes_of(concept)
    if result.solution.unseen:
        notes.append(f"Summed, not merged, because they did not run in the captures: {_list(result.solution.unseen)}")
    if result.capture_note:
        notes.append(result.capture_note)
    literal = [mark for prompt in settings.capture.prompts for mark in literal_marks(prompt)]
    if literal := sorted(set(literal) - {"{trigger}"}):
        notes.append(f"The capture prompts hold {_list(literal)}, which is taken as it stands.")
    if settings.distillation_steps and len(result.loaded) > 1 and not result.agreements:
        notes.append("No distillation: the LoRAs change no layer of the diffusion model that could be trained.")
    if not settings.merge_text_encoder:
        notes.append("The text encoder was left as it is; text-encoder parts of the LoRAs are not in the merge.")
    digests = [concept.sha256 for concept in concepts]
    for file in sorted({concept.lora_name for concept in concepts if digests.count(concept.sha256) > 1}):
        notes.append(f"`{file}` is the same file as another concept's: it counts twice.")
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""


def _notes_of(loaded: Loaded) -> list[str]:
    lora, notes = loaded.lora, []
    if lora.unmatched:
        notes.append(f"{len(lora.unmatched)} tensors match nothing in this model: {_list(lora.unmatched)}")
    if lora.repeated:
        notes.append(
            f"{len(lora.repeated)} tensors repeat others of the same weights and count once: {_list(lora.repeated)}"
        )
    if lora.embeddings:
        notes.append(f"bundled embeddings are not merged: {_list(lora.embeddings)}")
    strengths = (loaded.concept.strength_model, loaded.concept.strength_clip)
    sides = zip((loaded.model, loaded.clip), strengths, strict=True)
    if idle := [key for side, strength in sides if strength for key in side.idle]:
        notes.append(f"the adapter changes nothing at {len(idle)} weights: {_list(idle)}")
    if loaded.summed():
        why = "bias, norm, convolution too wide, or input widened by a control LoRA"
        notes.append(f"summed, not merged ({why}): {_list(loaded.summed())}")
    return [f"{loaded.concept.name}: {note}" for note in notes]


def _why_without_effect(concept: Concept, settings: MergeSettings) -> str:
    strength_clip = concept.strength_clip if settings.merge_text_encoder else 0.0
    if concept.strength_model or strength_clip:
        why = "its LoRA changes nothing" + ("" if settings.merge_text_encoder else " but the text encoder at most")
    else:
        why = "both strengths are 0" if settings.merge_text_encoder else "its model strength is 0"
    return why


def _seconds(result: MergeResult) -> str:
    return "## Seconds\n\n" + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items())


def _group(key: str) -> str:
    """Return a key's group: "diffusion_model.….0.attn1.to_q.weight" -> "diffusion_model … attn1.to_q"."""
    first, *parts = re.sub(r"\b\d+\b", "*", key.removesuffix(".weight")).split(".")
    return f"{first} … {'.'.join(parts[-3:]).lstrip('*.')}"


def _share(value: float, of: float) -> str:
    return f"{100 * value / of:.1f} %" if of else "–"


def _list(keys: list[str]) -> str:
    more = f", and {len(keys) - LISTED} more" if len(keys) > LISTED else ""
    return ", ".join(f"`{key}`" for key in keys[:LISTED]) + more


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
