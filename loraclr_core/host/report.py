"""What a merge did, in Markdown."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..prompt import literal_marks
from .merging import LayerResult, MergeResult

# Lists of keys longer than this are cut, and say so.
LISTED = 5


class Errors(NamedTuple):
    """Squared distances of layers' outputs from what each concept alone gives: of the plain model, stacked, merged."""

    base: float
    sum: float
    merged: float

    @classmethod
    def of(cls, layers: list[LayerResult], concept: int | None = None) -> "Errors":
        """Of some layers together; of one concept or of all."""
        chosen = slice(None) if concept is None else slice(concept, concept + 1)
        return cls(*(sum(sum(getattr(layer, which)[chosen]) for layer in layers) for which in cls._fields))


def panel(result: MergeResult) -> dict:
    """What the page shows of a merge (web/merge_report.js): errors as bars, keys, and the whole report to copy."""
    counts = [(len(match.matched), len(match.unmatched) + len(match.embeddings)) for match in result.matches]
    concepts = [
        {"name": concept.name, "matched": matched, "skipped": skipped, **_errors(result.layers, index)}
        for index, (concept, (matched, skipped)) in enumerate(zip(result.concepts, counts, strict=True))
    ]
    groups = [
        {"name": name, "count": len(layers), "margin_active": _margin_active(layers), **_errors(layers)}
        for name, layers in _grouped(result.layers).items()
    ]
    return {"solver": result.settings.solver, "concepts": concepts, "groups": groups, "markdown": markdown(result)}


def _errors(layers: list[LayerResult], concept: int | None = None) -> dict[str, float]:
    return Errors.of(layers, concept)._asdict() if layers else {}


def markdown(result: MergeResult) -> str:
    """The report of a merge: concepts, errors by layer group, what could not be merged, and times."""
    sections = [_summary(result), _concepts(result)]
    if result.layers:
        sections.append(_groups(result.layers))
    if result.agreements:
        sections.append(_distillation(result))
    sections += [_notes(result), _seconds(result)]
    return "\n\n".join(section for section in sections if section)


def _summary(result: MergeResult) -> str:
    settings, capture = result.settings, result.settings.capture
    ranks = f"rank {min(result.ranks)}–{max(result.ranks)}" if result.ranks else "no layer"
    lines = [
        "# LoRACLR merge",
        f"**{settings.solver}**, {len(result.concepts)} concepts, {len(result.ranks)} layers of {result.architecture}, {ranks}.",
    ]
    if result.layers:
        counted, seen = result.tokens
        lines.append(
            f"Capture: {len(capture.prompts)} prompt(s) × {capture.steps} steps per concept, seed {capture.seed};"
            f" {100 * counted / max(1, seen):.0f} % of the tokens counted;"
            f" {result.evaluations} model evaluations in this run"
            + ("." if result.evaluations else " (captured before).")
        )
        margin = settings.margin
        lines.append(
            f"Ridge {settings.ridge:g}, base anchor {settings.anchor_weight:g}, margin {margin.value:g} ({margin.mode})."
        )
    elif len(result.concepts) == 1:
        lines.append("One concept alone needs no merging: it is exported as it is.")
    else:
        lines.append("Summed as stacking LoRAs does; nothing was captured, so no errors are measured.")
    return "\n\n".join(lines)


def _concepts(result: MergeResult) -> str:
    rows = []
    for i, (concept, match, sides) in enumerate(zip(result.concepts, result.matches, result.effects, strict=True)):
        merged = sum(len(side.merge) for side in sides)
        summed = sum(len(side.add) for side in sides)
        idle = sum(len(side.idle) for side in sides)
        row = [
            concept.name,
            f"`{concept.lora_name}`",
            f"{concept.strength_model:g} / {concept.strength_clip:g}",
            f"{len(match.matched)}",
            f"{len(match.unmatched) + len(match.embeddings)}",
            f"{merged} / {summed} / {idle}",
        ]
        if result.layers:
            errors = Errors.of(result.layers, i)
            row += [_share(errors.sum, errors.base), _share(errors.merged, errors.base)]
        rows.append(row)
    head = [
        "concept",
        "LoRA",
        "strength model / clip",
        "tensors matched",
        "unmatched",
        "weights merged / summed / idle",
    ]
    if result.layers:
        head += ["error stacked", "error merged"]
    text = "## Concepts\n\n" + _table(head, rows)
    if result.layers:
        text += (
            "\n\nErrors: squared distance of each layer's output from what the concept alone would give, on tokens held"
            " out of the solve; 100 % is the base model without any LoRA."
        )
    return text


def _groups(layers: list[LayerResult]) -> str:
    rows = []
    for name, members in _grouped(layers).items():
        base, total, merged = Errors.of(members)
        ranks = [member.rank for member in members]
        rows.append(
            [
                *(name, str(len(members)), f"{min(ranks)}–{max(ranks)}", f"{base:.4g}"),
                *(f"{total:.4g} ({_share(total, base)})", f"{merged:.4g} ({_share(merged, base)})"),
                f"{100 * _margin_active(members):.0f} %",
            ]
        )
    head = ["layers", "count", "rank", "error base", "error stacked", "error merged", "margin active"]
    return "## Layer groups\n\n" + _table(head, rows)


def _distillation(result: MergeResult) -> str:
    rows = [
        [concept.name, _share(agreement.solved, agreement.base), _share(agreement.distilled, agreement.base)]
        for concept, agreement in zip(result.concepts, result.agreements, strict=True)
    ]
    return (
        f"## Distillation, {result.settings.distillation_steps} steps\n\n"
        + _table(["concept", "error before", "error after"], rows)
        + "\n\nErrors: squared distance of the model's predictions from those with the concept's own LoRA, on pictures of its"
        " own; 100 % is the base model without any LoRA. The layers' errors above are of the solve."
    )


def _grouped(layers: list[LayerResult]) -> dict[str, list[LayerResult]]:
    """In the order of their names, since the host keeps the names of a model's layers in sets."""
    groups: dict[str, list[LayerResult]] = {}
    for layer in layers:
        groups.setdefault(_group(layer.key), []).append(layer)
    return dict(sorted(groups.items()))


def _margin_active(layers: list[LayerResult]) -> float:
    """The share of layers and concepts whose margin is active."""
    active = [flag for layer in layers for flag in layer.margin_active]
    return sum(active) / len(active)


def _notes(result: MergeResult) -> str:
    notes = []
    for concept, match, sides in zip(result.concepts, result.matches, result.effects, strict=True):
        if match.unmatched:
            notes.append(
                f"{concept.name}: {len(match.unmatched)} tensors match nothing in this model: {_list(match.unmatched)}"
            )
        if match.embeddings:
            notes.append(f"{concept.name}: bundled embeddings are not merged: {_list(match.embeddings)}")
        if concept.strength_model == 0 and concept.strength_clip == 0:
            notes.append(f"{concept.name}: both strengths are 0, so it adds nothing")
        else:
            idle = [
                key
                for side, s in zip(sides, (concept.strength_model, concept.strength_clip), strict=True)
                if s
                for key in side.idle
            ]
            if idle:
                notes.append(f"{concept.name}: the adapter changes nothing at {len(idle)} weights: {_list(idle)}")
        if summed := [key for side in sides for key in side.add]:
            notes.append(f"{concept.name}: summed, not merged (bias, norm, or convolution too wide): {_list(summed)}")
    if result.unseen:
        notes.append(f"Summed, not merged, because they did not run in the captures: {_list(result.unseen)}")
    if result.kept:
        notes.append(result.kept)
    literal = [mark for prompt in result.settings.capture.prompts for mark in literal_marks(prompt)]
    if literal := sorted(set(literal) - {"{trigger}"}):
        notes.append(f"The capture prompts hold {_list(literal)}, which is taken as it stands.")
    if not result.settings.merge_text_encoder:
        notes.append("The text encoder was left as it is; text-encoder parts of the LoRAs are not in the merge.")
    for file in sorted(
        {c.lora_name for c in result.concepts if [d.sha256 for d in result.concepts].count(c.sha256) > 1}
    ):
        notes.append(f"`{file}` is the same file as another concept's: it counts twice.")
    return "## Notes\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""


def _seconds(result: MergeResult) -> str:
    return "## Seconds\n\n" + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in result.seconds.items())


def _group(key: str) -> str:
    """ "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight" -> "diffusion_model … attn1.to_q"."""
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
