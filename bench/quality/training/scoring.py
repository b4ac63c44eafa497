"""What trained LoRAs are asked for, and the cells: the scores of every picture of one way of training.

A LoRA alone draws four kinds of pictures. All ways answer the same prompts with the same seeds.

    own      the concept alone; *identity* is how well it is found
    class    the same prompts with its class word in the trigger's place; *unasked* is its identity there, *kept* how like these stay to the base model's
    kept     two plain things of other prompts; *kept* as before
    beside   the concept and a plain thing of another class; *identity*, and *other*, how well that thing is found

LoRAs of several concepts together, by each of METHODS, draw pictures of all of them (`together`), scored as everywhere.
"""

import hashlib
import inspect
import itertools
import time
from collections.abc import Callable

import nodes
import pack
import torch
from pack import World
from sd15 import say
from shapes import model, scores
from shapes.world import BACKGROUNDS, CLASSES, ShapeConcept
from torch import Tensor

from ..cells import SAMPLING, read_cell, sample, sample_base, score, strip_documentation, write_cell
from ..columns import BATCH
from ..methods import (
    COMMON,
    LATENT,
    MERGE,
    NO_PICTURE,
    ROOT,
    SAMPLER,
    Ask,
    Conditioned,
    Group,
    chain,
    code,
    conditioned,
)
from . import ways
from .ways import TRAINED, ensure_lora

PICTURES = 16  # of each kind
PAIRS = (TRAINED[:2], TRAINED[2:])
Prepare = Callable[[Ask], Conditioned]


def stacked(world: World, way: str, group: Group) -> Prepare:
    loaded, clip = world.model, world.clip
    for each in group:
        loaded, clip = nodes.LoraLoader().load_lora(loaded, clip, ensure_lora(world, way, each), 1.0, 1.0)
    return lambda ask: conditioned(loaded, clip, ask.text())


def merged(world: World, way: str, group: Group) -> Prepare:
    concepts = chain(group, lambda each: ensure_lora(world, way, each))
    values = {"model": world.model, "clip": world.clip, "concepts": concepts, "latent": LATENT}
    loaded, clip, *_ = pack.run("LoRACLR_Merge", **values)
    return lambda ask: conditioned(loaded, clip, ask.text())


def composed(world: World, way: str, group: Group) -> Prepare:
    concepts = chain(group, lambda each: ensure_lora(world, way, each))
    values = {"model": world.model, "clip": world.clip, "concepts": concepts}
    return lambda ask: pack.run("LoRACLR_CLoRASampler", prompt=ask.text("braced"), **values)


METHODS: dict[str, tuple[Callable[[World, str, Group], Prepare], tuple[str, ...]]] = {
    "stacked": (stacked, ()),
    "exact": (merged, MERGE),
    "clora": (composed, SAMPLER),
}

# --- what is asked ---------------------------------------------------------------------------------------------------


def asks_alone(concept: ShapeConcept) -> dict[str, list[Ask]]:
    """Return the prompts of each kind of picture of one LoRA."""
    others = [word for word in CLASSES if word != concept.class_word]
    pairs = list(itertools.permutations(CLASSES, 2))
    asks: dict[str, list[Ask]] = {"own": [], "class": [], "kept": [], "beside": []}
    for number, background in zip(range(PICTURES // BATCH), itertools.cycle(BACKGROUNDS), strict=False):
        asks["own"].append(Ask((concept,), (concept,), (), background, number))
        asks["class"].append(Ask((concept,), (), (concept.class_word,), background, number))
        asks["kept"].append(Ask((concept,), (), pairs[5 * number % len(pairs)], background, number))
        asks["beside"].append(Ask((concept,), (concept,), (others[number % len(others)],), background, number))
    return asks


def asks_together(group: Group) -> dict[str, list[Ask]]:
    """Return the prompts of all concepts together."""
    backgrounds = zip(range(PICTURES // BATCH), itertools.cycle(BACKGROUNDS), strict=False)
    return {"together": [Ask(group, group, (), background, number) for number, background in backgrounds]}


# --- scores ----------------------------------------------------------------------------------------------------------


def score_alone(world: World, kind: str, ask: Ask, pictures: Tensor) -> dict[str, Tensor]:
    """Return each score's value in every picture of one LoRA, (BATCH,)."""
    (concept,) = ask.group
    result = {"identity": scores.identity(pictures, concept).score}
    if not ask.named:
        result["kept"] = score(world, ask, pictures)["kept"]
    if kind == "beside":
        result["other"] = scores.match(pictures, scores.class_template(ask.plain[0])).score
    return result


def likeness(pictures: Tensor, others: Tensor) -> Tensor:
    """Return how like each picture is to that at its place, 0…1, of the same seed: the cosine of their latents."""
    pairs = (model.encode(batch).flatten(1) for batch in (pictures, others))
    return (torch.cosine_similarity(*pairs) + 1) / 2


# --- cells -----------------------------------------------------------------------------------------------------------


def fingerprint(way: str, group: Group, method: str | None) -> str:
    """Hash all that a cell's scores depend on."""
    prepare, patterns = METHODS[method] if method else (stacked, ())
    asks = asks_together(group) if method else asks_alone(group[0])
    functions = (prepare, score_alone, likeness, sample, score, sample_base)
    files = ("bench/shapes/world.py", "bench/shapes/scores.py", *code((*COMMON, *patterns), NO_PICTURE))
    parts = [
        *(ways.fingerprint(way, concept) for concept in group),
        SAMPLING,
        *asks.values(),
        *(strip_documentation(inspect.getsource(function)) for function in functions),
        *(strip_documentation((ROOT / path).read_text("utf-8")) for path in files),
    ]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def cells_of(way: str) -> list[tuple[Group, str | None]]:
    """Return what is measured of a way: the concepts of each cell, and the method that loads them, None for one alone."""
    alone = [((concept,), None) for concept in ways.concepts_of(way)]
    together = [(group, method) for group in PAIRS for method in METHODS] if way in ways.COMPARED else []
    return [*alone, *together]


def row_of(way: str, method: str | None = None) -> str:
    way = way.replace(" ", "-")
    return f"training-{way}-{method}" if method else f"training-{way}"


def column_of(group: Group) -> str:
    return "+".join(concept.name for concept in group)


def read(way: str, group: Group, method: str | None = None) -> dict | None:
    """Return a measured cell, or None."""
    return read_cell(row_of(way, method), column_of(group))


def is_current(way: str, group: Group, method: str | None = None) -> bool:
    """Return whether a cell was measured with the code and settings of today."""
    cell = read(way, group, method)
    return cell is not None and cell["made_with"] == fingerprint(way, group, method)


def measure(world: World, way: str, group: Group, method: str | None = None) -> None:
    """Measure a cell, and write it when all of its pictures are done. method: None for one LoRA alone."""
    start, made_with = time.monotonic(), fingerprint(way, group, method)
    cell: dict = {"row": row_of(way, method), "column": column_of(group), "made_with": made_with}
    prepared = (METHODS[method][0] if method else stacked)(world, way, group)
    drawn: dict[str, list[Tensor]] = {}
    for kind, asks in (asks_together(group) if method else asks_alone(group[0])).items():
        cell[kind] = {}
        for ask in asks:
            say(f"{cell['row']}, {cell['column']}: {kind} pictures, prompt {ask.text()!r}")
            pictures = sample(world, prepared(ask), ask.seed)
            drawn.setdefault(kind, []).append(pictures)
            found = score(world, ask, pictures) if method else score_alone(world, kind, ask, pictures)
            for key, values in found.items():
                cell[kind].setdefault(key, []).extend(values.double().numpy().round(3).tolist())
    if not method:
        cell["own"]["like_class"] = likeness(*(torch.cat(drawn[kind]) for kind in ("own", "class"))).tolist()
    write_cell(cell | {"seconds": round(time.monotonic() - start)})
