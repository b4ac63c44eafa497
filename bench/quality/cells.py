"""A cell: the scores of every picture of one row and column, with a hash of all that they depend on.

Measures a cell, keeps it in `bench/shapes/cells/`, and confirms it after a change of code that should change no picture.
"""

import ast
import functools
import hashlib
import inspect
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import demo_assets
import nodes
import pack
import torch
from pack import World
from PIL import Image
from sd15 import say
from shapes import scores
from shapes.world import CLASSES, CONCEPTS, make_scene
from torch import Tensor

from .columns import BATCH, COLUMNS, count_pictures
from .methods import LATENT, ROOT, SAMPLING, SHARED, Ask, Conditioned, Group, Method, base
from .rows import ROWS

CELLS = ROOT / "bench" / "shapes" / "cells"
PICTURES = ROOT / ".host" / "shapes" / "pictures"

SAME = 0.01  # how far a score moves when only the order of floating-point sums changes

# --- fingerprints ----------------------------------------------------------------------------------------------------


@functools.cache
def strip_documentation(source: str) -> str:
    """Return a module's code without comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@functools.cache
def hash_weights() -> list[str]:
    """Return names and digests of the shipped weights; cached, as they are 30 MB."""
    return [path.stem + hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(demo_assets.WEIGHTS.iterdir())]


def fingerprint(row: str, column: str) -> str:
    """Hash all that a cell's scores depend on: settings, prompts, code and weights."""
    method, asks = ROWS[row], COLUMNS[column].asks(count_pictures(row, column))
    world = ("bench/shapes/world.py", "bench/shapes/scores.py")
    sampling = sample_one if method.one_by_one else sample_in_steps if method.steps else sample
    functions = (method.prepare, *SHARED, sampling, score, sample_base)
    parts = [
        *([method.steps] if method.steps else []),
        *((pack.defaults(method.node) if method.node else {}) | method.settings, SAMPLING, BATCH),
        *(asks[kind] for kind in method.kinds),
        *(strip_documentation(inspect.getsource(function)) for function in functions),
        *(strip_documentation((ROOT / path).read_text("utf-8")) for path in (*world, *method.code)),
        *hash_weights(),
    ]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def is_current(row: str, column: str) -> bool:
    """Return whether a cell was measured with the code and settings of today."""
    cell = read_cell(row, column)
    return cell is not None and cell["made_with"] == fingerprint(row, column)


# --- files -----------------------------------------------------------------------------------------------------------


def cell_path(row: str, column: str) -> Path:
    return CELLS / f"{row}_{column}.json"


def read_cell(row: str, column: str) -> dict | None:
    """Return a measured cell, or None."""
    path = cell_path(row, column)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def write_cell(cell: dict) -> None:
    """Write a cell whole or not at all."""
    CELLS.mkdir(parents=True, exist_ok=True)
    path = cell_path(cell["row"], cell["column"])
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(cell) + "\n", "utf-8")
    scratch.replace(path)


def picture_path(row: str, column: str) -> Path:
    return PICTURES / f"{row}_{column}.png"


def save_picture(row: str, column: str, picture: Tensor) -> None:
    """Save a cell's picture for the grid. picture: (3, SIDE, SIDE), 0…1."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    pixels = (picture.movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(picture_path(row, column))


# --- measuring -------------------------------------------------------------------------------------------------------


def sample(world: World, conditioned: Conditioned, seed: int) -> Tensor:
    """Return the pictures of one prompt, (BATCH, 3, SIDE, SIDE), 0…1."""
    model, positive, negative = conditioned
    latent = {"samples": LATENT["samples"].expand(BATCH, -1, -1, -1)}
    values = SAMPLING | {"positive": positive, "negative": negative, "latent_image": latent, "denoise": 1.0}
    sampled = nodes.KSampler().sample(model, seed, **values)[0]
    return nodes.VAEDecode().decode(world.vae, sampled)[0].movedim(-1, 1)


def sample_one(world: World, conditioned: Conditioned, seed: int, number: int) -> Tensor:
    """Return one of the pictures of a prompt, (1, 3, SIDE, SIDE), 0…1, from the same noise as in the batch."""
    model, positive, negative = conditioned
    latent = LATENT | {"batch_index": [number]}
    values = SAMPLING | {"positive": positive, "negative": negative, "latent_image": latent}
    return nodes.VAEDecode().decode(world.vae, nodes.KSampler().sample(model, seed, **values)[0])[0].movedim(-1, 1)


def sample_in_steps(world: World, conditioned: Conditioned, seed: int, steps: int) -> Tensor:
    """Return the pictures of one prompt in another number of steps, (BATCH, 3, SIDE, SIDE), 0…1."""
    model, positive, negative = conditioned
    latent = {"samples": LATENT["samples"].expand(BATCH, -1, -1, -1)}
    values = SAMPLING | {"steps": steps, "positive": positive, "negative": negative, "latent_image": latent}
    return nodes.VAEDecode().decode(world.vae, nodes.KSampler().sample(model, seed, **values)[0])[0].movedim(-1, 1)


@functools.cache  # the same for every row
def sample_base(world: World, ask: Ask) -> Tensor:
    """Return the base model's pictures of a prompt."""
    return sample(world, base(world, ())(ask), ask.seed)


def score(world: World, ask: Ask, pictures: Tensor) -> dict[str, Tensor]:
    """Return each score's value in every picture, (BATCH,) or (BATCH, things)."""
    if not ask.named:
        unchanged = sample_base(world, ask._replace(group=()))
        to_others = (unchanged - unchanged.roll(1, 0)).square().mean()
        shown = [scores.match(pictures, scores.class_template(word)).score for word in ask.plain]
        return {
            "kept": (1 - (pictures - unchanged).square().mean(dim=(1, 2, 3)) / to_others).clamp(min=0),
            "shown": torch.stack(shown, dim=1),
        }
    matches = {concept: scores.identity(pictures, concept) for concept in ask.named}
    result = {
        "identity": torch.stack([match.score for match in matches.values()], dim=1),
        "background": scores.background(pictures, ask.background),
    }
    if len(ask.named) > 1:
        elsewhere = [
            scores.bleeding(pictures, concept, onto, matches[concept])
            for concept, onto in itertools.permutations(ask.named, 2)
        ]
        result["bleeding"] = torch.stack(elsewhere, dim=1).amax(dim=1)
    return result


@functools.lru_cache(maxsize=len(CONCEPTS))  # no column has more groups; a row's kinds of pictures share them
def prepare(world: World, method: Callable, group: Group, settings: tuple) -> Callable[..., Conditioned]:
    """Prepare a method for a group once, for example merge its concepts."""
    return method(world, group, **dict(settings))


def measure_asks(world: World, method: Method, asks: list[Ask]) -> Iterator[tuple[dict[str, list], Tensor]]:
    """Yield the scores and the pictures of each prompt."""
    for ask in asks:
        prepared = prepare(world, method.prepare, ask.group, tuple(method.settings.items()))
        if method.one_by_one:
            single = [sample_one(world, prepared(ask, number), ask.seed, number) for number in range(BATCH)]
            pictures = torch.cat(single)
        elif method.steps:
            pictures = sample_in_steps(world, prepared(ask), ask.seed, method.steps)
        else:
            pictures = sample(world, prepared(ask), ask.seed)
        scored = {key: value.double().numpy().round(3).tolist() for key, value in score(world, ask, pictures).items()}
        yield scored | {"prompt": [ask.seed] * BATCH}, pictures


def measure_cell(world: World, row: str, column: str) -> None:
    """Measure every picture of a cell, and write it when all are done."""
    method, start = ROWS[row], time.monotonic()
    asks = COLUMNS[column].asks(count_pictures(row, column))
    cell: dict = {"row": row, "column": column, "made_with": fingerprint(row, column)}
    for kind in method.kinds:
        cell[kind] = {}
        for number, (scored, pictures) in enumerate(measure_asks(world, method, asks[kind])):
            say(f"{row}, {column}: {kind} pictures, {number + 1} of {len(asks[kind])} prompts")
            for key, values in scored.items():
                cell[kind].setdefault(key, []).extend(values)
            if kind == "together" and number == 0:
                save_picture(row, column, pictures[0])
    write_cell(cell | {"seconds": round(time.monotonic() - start)})


def confirm_cell(world: World, row: str, column: str) -> None:
    """Measure the first prompt of each kind again; if the scores are the same, mark the cell as made by today's code."""
    method, cell = ROWS[row], read_cell(row, column)
    if cell is None or is_current(row, column):
        return
    asks, furthest = COLUMNS[column].asks(count_pictures(row, column)), 0.0
    for kind in method.kinds:
        say(f"{row}, {column}: {kind} pictures, the first prompt again")
        scored, _ = next(measure_asks(world, method, asks[kind][:1]))
        for key, values in scored.items():
            away = torch.tensor(values) - torch.tensor(cell[kind][key][:BATCH])
            furthest = max(furthest, float(away.abs().max()))
    same = furthest <= SAME
    print(f"{row}, {column}: {'the same' if same else 'different'}, at most {furthest:.3f} away")
    if same:
        write_cell(cell | {"made_with": fingerprint(row, column)})


def validate_scores(trials: int = 200) -> None:
    """End the run unless identity tells what is in rendered pictures, whose truth is known, from what is not."""
    rng = random.Random(0)
    identities: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(trials):
        kinds = rng.sample([*CONCEPTS, *CLASSES], rng.randint(1, 3))
        picture = make_scene(kinds, rng).picture()[None]
        for concept in CONCEPTS:
            identities[concept in kinds].append(float(scores.identity(picture, concept).score))
    lowest, highest = min(identities[True]), max(identities[False])
    print(
        f"identity on {trials} rendered pictures: concepts that are there score at least {lowest:.3f},"
        f" the others at most {highest:.3f}"
    )
    if lowest < 0.9 or highest > 0.4:
        sys.exit("quality: the scores do not tell true concepts (≥ 0.9) from others (≤ 0.4)")
