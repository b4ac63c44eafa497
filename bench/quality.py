"""Scores every method on the shapes world, through the real nodes, and writes README's tables and picture grid.

    make bench-quality                              # measure what is missing or older than its code; hours on two cores
    make bench-quality ARGS="exact clora"           # only these rows
    make bench-quality ARGS=show                    # measure nothing; tables and RESULT from the cells there are
    make bench-quality ARGS=confirm                 # after a change of code that is to change no picture, see below

A *row* is a method with its settings, a *column* how many concepts it is given, a *cell* the scores of every picture of one
row and column (`bench/shapes/cells/`). All rows of a column answer the same prompts with the same seeds. Cells carry a hash
of the code and settings they were made with; the tables mark the cells that are older than the code. `confirm` measures the
first prompt of each kind again, of every cell that is: where its scores are the same, the cell counts as today's code's.

    identity   how well a concept is found in pictures of its own prompt, with all concepts of the column loaded; mean
    both       the share of pictures of two (three, four) concepts in which every one is right
    bleeding   the share of these pictures in which a concept's look is on another object
    clean      the share of these pictures in which every one is right and no look is on another object
    kept       how like pictures of prompts without triggers stay to the base model's; 1 the same, 0 another seed's
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
from typing import NamedTuple

import demo_assets
import nodes
import pack
import torch
from PIL import Image, ImageDraw
from sd15 import say
from shapes import scores
from shapes.methods import HEADLINE, LATENT, ROOT, ROWS, SHARED, VARIANTS, Ask, Conditioned, Group, Method, World, base
from shapes.world import BACKGROUNDS, CLASSES, CONCEPTS, SIDE, make_scene
from torch import Tensor

CELLS = Path(__file__).parent / "shapes" / "cells"
GRID = Path(__file__).parent / "shapes" / "grid.png"
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"  # around README's tables
PICTURES = ROOT / ".host" / "shapes" / "pictures"

SAMPLING = {"steps": 12, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "normal"}
BATCH = 4  # pictures of one prompt
SAME = 0.01  # how far scores of one picture are apart where only the order of its sums is another
RIGHT = 0.65  # identity of a concept that counts as shown: midway between what true and other concepts may score

# --- columns: what is asked ------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """groups: what methods are given, every concept in one of them; together: what pictures of several concepts name."""

    groups: tuple[Group, ...]
    together: tuple[Group, ...] = ()

    def asks(self, pictures: int) -> dict[str, list[Ask]]:
        """For each kind of picture; sorted so that a group's stand together. Own and kept are the same in all columns."""
        asked: dict[str, list[Ask]] = {"own": [], "together": [], "kept": []}
        backgrounds, pairs = list(BACKGROUNDS), list(itertools.permutations(CLASSES, 2))
        for number in range(pictures // BATCH):
            background = backgrounds[number % len(backgrounds)]
            each = CONCEPTS[number % len(CONCEPTS)]
            asked["own"].append(Ask(self.holding((each,), number), (each,), (), background, number))
            if self.together:
                named = self.together[number % len(self.together)]
                asked["together"].append(Ask(self.holding(named), named, (), background, number))
            if number % 4 == 0:
                group = self.groups[number % len(self.groups)]
                asked["kept"].append(Ask(group, (), pairs[number % len(pairs)], background, number))
        return {kind: sorted(asks, key=lambda ask: self.groups.index(ask.group)) for kind, asks in asked.items()}

    def holding(self, named: Group, number: int = 0) -> Group:
        """A group with these concepts, in turn where there are several."""
        found = [group for group in self.groups if set(named) <= set(group)]
        return found[number // len(CONCEPTS) % len(found)]


BALL, BOX, KITE, CROSS, BALL2, BOX2, KITE2, CROSS2 = CONCEPTS
PAIRS = ((BALL, BOX), (KITE, CROSS), (BALL2, BOX2), (KITE2, CROSS2))
PAIRS += ((BALL, KITE2), (BOX, CROSS2), (BALL2, KITE), (BOX2, CROSS))
TRIPLES = ((BALL, BOX, KITE), (BALL2, BOX2, CROSS2), (CROSS, KITE2, BALL), (BOX, KITE, CROSS2))
QUADRUPLES = ((BALL, BOX, KITE, CROSS), (BALL2, BOX2, KITE2, CROSS2), (BALL, BOX2, KITE, CROSS2))
SIX = (CONCEPTS[:6], CONCEPTS[2:])

COLUMNS = {
    "1": Column(tuple((each,) for each in CONCEPTS)),
    "2": Column(PAIRS, PAIRS),
    "2-same-class": Column(
        tuple(zip(CONCEPTS[:4], CONCEPTS[4:], strict=True)), tuple(zip(CONCEPTS[:4], CONCEPTS[4:], strict=True))
    ),
    "3": Column(TRIPLES, TRIPLES),
    "4": Column(QUADRUPLES, QUADRUPLES),
    "6": Column(SIX, tuple(pair for pair in PAIRS if any(set(pair) <= set(group) for group in SIX))),
    "8": Column((CONCEPTS,), PAIRS),
}
MERGE_COLUMNS = tuple(column for column in COLUMNS if column != "1")
SAMPLER_COLUMNS = ("2", "2-same-class", "3", "4")  # more do not fit into one picture


def is_sampler(row: str) -> bool:
    return ROWS[row].kinds == ("together",)


def pictures_of(row: str, column: str) -> int:
    """64 where the headlines are, 32 elsewhere, 16 for the settings of the sampler, whose pictures take longest."""
    if is_sampler(row) and (row in VARIANTS or row == "clora-updates"):
        return 16
    headline = row in HEADLINE and column in (("2", "2-same-class") if is_sampler(row) else ("1", "8"))
    return 64 if headline else 32


def columns_of(row: str) -> tuple[str, ...]:
    if row == "alone":
        return ("1",)
    if row in VARIANTS:
        return ("2",) if is_sampler(row) else ("8",)
    return SAMPLER_COLUMNS if is_sampler(row) else MERGE_COLUMNS


# --- cells -----------------------------------------------------------------------------------------------------------


@functools.cache
def essence(source: str) -> str:
    """A module's code without its comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@functools.cache
def of_weights() -> list[str]:
    """Names and digests of the weights that are shipped; once, as they are 30 MB."""
    return [path.stem + hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(demo_assets.WEIGHTS.iterdir())]


def fingerprint(row: str, column: str) -> str:
    """Of all that a cell's scores depend on."""
    method, asks = ROWS[row], COLUMNS[column].asks(pictures_of(row, column))
    world = ("bench/shapes/world.py", "bench/shapes/scores.py")
    parts = [
        *((pack.defaults(method.node) if method.node else {}) | method.settings, SAMPLING, BATCH),
        *(asks[kind] for kind in method.kinds),
        *(essence(inspect.getsource(made)) for made in (method.prepare, *SHARED, sample, scored, before)),
        *(essence((ROOT / path).read_text("utf-8")) for path in (*world, *method.code)),
        *of_weights(),
    ]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def cell_path(row: str, column: str) -> Path:
    return CELLS / f"{row}_{column}.json"


def cell(row: str, column: str) -> dict | None:
    path = cell_path(row, column)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def is_current(row: str, column: str) -> bool:
    found = cell(row, column)
    return found is not None and found["made_with"] == fingerprint(row, column)


def sample(world: World, prepared: Conditioned, seed: int) -> Tensor:
    """(BATCH, 3, SIDE, SIDE), 0…1"""
    model, positive, negative = prepared
    latent = {"samples": LATENT["samples"].expand(BATCH, -1, -1, -1)}
    values = SAMPLING | {"positive": positive, "negative": negative, "latent_image": latent, "denoise": 1.0}
    sampled = nodes.KSampler().sample(model, seed, **values)[0]
    return nodes.VAEDecode().decode(world.vae, sampled)[0].movedim(-1, 1)


@functools.cache  # the same for every row
def before(world: World, ask: Ask) -> Tensor:
    """The base model's pictures."""
    return sample(world, base(world, ())(ask), ask.seed)


def scored(world: World, ask: Ask, pictures: Tensor) -> dict[str, Tensor]:
    """Score -> its value in each picture, (BATCH,) or (BATCH, things)."""
    if not ask.named:
        unchanged = before(world, ask._replace(group=()))
        to_others = (unchanged - unchanged.roll(1, 0)).square().mean()
        shown = [scores.match(pictures, scores.class_template(each)).score for each in ask.plain]
        return {
            "kept": (1 - (pictures - unchanged).square().mean(dim=(1, 2, 3)) / to_others).clamp(min=0),
            "shown": torch.stack(shown, dim=1),
        }
    own = {each: scores.identity(pictures, each) for each in ask.named}
    found = {
        "identity": torch.stack([each.score for each in own.values()], dim=1),
        "background": scores.background(pictures, ask.background),
    }
    if len(ask.named) > 1:
        elsewhere = [
            scores.bleeding(pictures, each, onto, own[each]) for each, onto in itertools.permutations(ask.named, 2)
        ]
        found["bleeding"] = torch.stack(elsewhere, dim=1).amax(dim=1)
    return found


@functools.lru_cache(maxsize=len(CONCEPTS))  # no column has more groups; a row's kinds of pictures share them
def prepared(world: World, prepare: Callable, group: Group, settings: tuple) -> Callable[[Ask], Conditioned]:
    return prepare(world, group, **dict(settings))


def measured(world: World, method: Method, asks: list[Ask]) -> Iterator[tuple[dict[str, list], Tensor]]:
    """Scores and pictures of each ask."""
    for ask in asks:
        prepare = prepared(world, method.prepare, ask.group, (*method.settings.items(),))
        pictures = sample(world, prepare(ask), ask.seed)
        found = scored(world, ask, pictures)
        yield {key: value.double().numpy().round(3).tolist() for key, value in found.items()}, pictures


def measure(world: World, row: str, column: str) -> None:
    """Every picture of a cell; written when all are done."""
    method, start = ROWS[row], time.monotonic()
    asks = COLUMNS[column].asks(pictures_of(row, column))
    result: dict = {"row": row, "column": column, "made_with": fingerprint(row, column)}
    for kind in method.kinds:
        result[kind] = {}
        for number, (found, pictures) in enumerate(measured(world, method, asks[kind])):
            say(f"{row}, {column}: {kind} pictures, {number + 1} of {len(asks[kind])} prompts")
            for key, values in (found | {"prompt": [asks[kind][number].seed] * BATCH}).items():
                result[kind].setdefault(key, []).extend(values)
            if kind == "together" and number == 0:
                keep_picture(row, column, pictures[0])
    write_cell(result | {"seconds": round(time.monotonic() - start)})


def confirm(world: World, row: str, column: str) -> None:
    """Measures a cell's first prompt of each kind again; if the scores are the same, the cell is today's code's too."""
    method, old = ROWS[row], cell(row, column)
    if old is None or is_current(row, column):
        return
    asks, furthest = COLUMNS[column].asks(pictures_of(row, column)), 0.0
    for kind in method.kinds:
        say(f"{row}, {column}: {kind} pictures, the first prompt again")
        found, _ = next(measured(world, method, asks[kind][:1]))
        for key, scores_now in (found | {"prompt": [asks[kind][0].seed] * BATCH}).items():
            away = torch.tensor(scores_now) - torch.tensor(old[kind][key][:BATCH])
            furthest = max(furthest, float(away.abs().max()))
    same = furthest <= SAME
    print(f"{row}, {column}: {'the same' if same else 'different'}, at most {furthest:.3f} away")
    if same:
        write_cell(old | {"made_with": fingerprint(row, column)})


def write_cell(found: dict) -> None:
    CELLS.mkdir(parents=True, exist_ok=True)
    path = cell_path(found["row"], found["column"])
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(found) + "\n", "utf-8")
    scratch.replace(path)


# --- what is shown ---------------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """of: one picture's scores -> a number."""

    kind: str
    title: str
    of: Callable[[dict], float]


SCORES = {
    "identity": Score("own", "Identity of a concept in pictures of its own prompt", lambda found: found["identity"][0]),
    "both": Score(
        "together",
        "Pictures of several concepts in which every one is right",
        lambda found: float(min(found["identity"]) >= RIGHT),
    ),
    "bleeding": Score(
        "together",
        "Pictures of several concepts in which a look is on another object",
        lambda found: float(found["bleeding"] >= RIGHT),
    ),
    "clean": Score(
        "together",
        "Pictures of several concepts in which every one is right and no look is on another object",
        lambda found: float(min(found["identity"]) >= RIGHT > found["bleeding"]),
    ),
    "kept": Score("kept", "Likeness of pictures without triggers to the base model's", lambda found: found["kept"]),
}


def values(row: str, column: str, score: str) -> dict[tuple[int, int], float]:
    """(prompt, place in its batch) -> the score of that picture; empty where it is not measured."""
    kind, _, of = SCORES[score]
    of_kind = (cell(row, column) or {}).get(kind)
    if of_kind is None:
        return {}
    pictures = [dict(zip(of_kind, each, strict=True)) for each in zip(*of_kind.values(), strict=True)]
    return {(picture["prompt"], number % BATCH): of(picture) for number, picture in enumerate(pictures)}


def difference(row: str, reference: str, column: str, score: str) -> tuple[float, float] | None:
    """Mean of the paired differences and half the width of its 95 % interval."""
    ours, theirs = values(row, column, score), values(reference, "1" if reference == "alone" else column, score)
    found = torch.tensor([ours[place] - theirs[place] for place in ours.keys() & theirs.keys()])
    if len(found) < 2:
        return None
    return float(found.mean()), float(1.96 * found.std() / len(found) ** 0.5)


def mean(row: str, column: str, score: str) -> float | None:
    found = values(row, column, score)
    return sum(found.values()) / len(found) if found else None


def table(score: str, rows: list[str], columns: list[str]) -> list[str]:
    """Markdown. * marks a cell that is older than its code."""
    lines = [f"| {SCORES[score].title} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for row in rows:
        found = [(mean(row, column, score), column) for column in columns]
        shown = [
            "" if value is None else f"{value:.2f}{'' if is_current(row, column) else '*'}" for value, column in found
        ]
        if any(shown):
            lines.append(f"| {row} | {' | '.join(shown)} |")
    return [*lines, ""] if len(lines) > 2 else []


def variants_table() -> list[str]:
    """Markdown: what each variant changes beside its method's defaults, picture by picture."""
    lines = ["| beside the defaults, ± 95 % | concepts | identity | every one right | kept |", f"|{' --- |' * 5}"]
    for row in VARIANTS:
        for column in columns_of(row):
            reference = "clora" if row.startswith("clora") else "exact"
            found = [difference(row, reference, column, score) for score in ("identity", "both", "kept")]
            shown = ["" if each is None else f"{each[0]:+.3f} ± {each[1]:.3f}" for each in found]
            if any(shown):
                lines.append(f"| {row}{'' if is_current(row, column) else '*'} | {column} | {' | '.join(shown)} |")
    return [*lines, ""] if len(lines) > 2 else []


def tables() -> str:
    columns = [*COLUMNS]
    lines = []
    for score in SCORES:
        lines += table(score, [*HEADLINE], columns)
    return "\n".join([*lines, *variants_table()]).rstrip()


def result() -> dict:
    found: dict = {}
    for row in ROWS:
        for column in columns_of(row):
            means = {score: mean(row, column, score) for score in SCORES}
            entry: dict = {score: round(value, 4) for score, value in means.items() if value is not None}
            if entry:
                entry["seeds"] = pictures_of(row, column)
                for reference in ("alone", "exact", "clora"):
                    for score in SCORES:
                        if reference != row and (away := difference(row, reference, column, score)):
                            entry[f"{score}_minus_{reference}"] = [round(value, 4) for value in away]
                found.setdefault(row, {})[column] = entry
    return {"quality": found}


def validate(trials: int = 200) -> None:
    """What the scores say of rendered pictures, whose truth is known; ends the run where they are not to be trusted."""
    rng = random.Random(0)
    asked: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(trials):
        kinds = rng.sample([*CONCEPTS, *CLASSES], rng.randint(1, 3))
        picture = make_scene(kinds, rng).picture()[None]
        for concept in CONCEPTS:
            asked[concept in kinds].append(float(scores.identity(picture, concept).score))
    lowest, highest = min(asked[True]), max(asked[False])
    print(
        f"identity on {trials} rendered pictures: of what is there at least {lowest:.3f}, of what is not at most {highest:.3f}"
    )
    if lowest < 0.9 or highest > 0.4:
        sys.exit("quality: the scores do not tell true concepts (≥ 0.9) from others (≤ 0.4)")


def picture_path(row: str, column: str) -> Path:
    return PICTURES / f"{row}_{column}.png"


def keep_picture(row: str, column: str, picture: Tensor) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    pixels = (picture.movedim(0, -1).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(picture_path(row, column))


def grid(world: World) -> Image.Image:
    """Every method's picture of the same prompt and seed, column by column."""
    rows = [row for row in HEADLINE if "together" in HEADLINE[row].kinds]
    columns = list(SAMPLER_COLUMNS)
    left, top, gap = 150, 20, 4
    canvas = Image.new("RGB", (left + len(columns) * (SIDE + gap), top + len(rows) * (SIDE + gap)), "white")
    draw = ImageDraw.Draw(canvas)
    for x, column in enumerate(columns):
        draw.text((left + x * (SIDE + gap), 4), f"{column} concepts", "black")
        for y, row in enumerate(rows):
            draw.text((4, top + y * (SIDE + gap) + SIDE // 2), row, "black")
            if cell(row, column) is None:
                continue  # not measured
            if not picture_path(row, column).exists():
                ask = COLUMNS[column].asks(pictures_of(row, column))["together"][:1]
                keep_picture(row, column, next(measured(world, ROWS[row], ask))[1][0])
            canvas.paste(Image.open(picture_path(row, column)), (left + x * (SIDE + gap), top + y * (SIDE + gap)))
    return canvas


def write_readme() -> None:
    path = ROOT / "README.md"
    text = path.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}", "utf-8")


def main(names: list[str]) -> None:
    rows = ROWS if names in ([], ["confirm"]) else [row for row in ROWS if row in names]
    if unknown := sorted(set(names) - set(ROWS) - {"show", "confirm"}):
        sys.exit(f"quality: there is no row {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    if names == ["show"]:
        show()
        return
    validate()
    with torch.inference_mode():
        world = World(*pack.demo_models())
        for row in rows:
            for column in columns_of(row):
                if "confirm" in names:
                    confirm(world, row, column)
                elif not is_current(row, column):
                    measure(world, row, column)
        if not names:
            grid(world).save(GRID, optimize=True)
    show()


def show() -> None:
    write_readme()
    print(tables())
    print("RESULT", json.dumps(result()))
