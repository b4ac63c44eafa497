"""Scores the sampler's masks by themselves, and writes the table “Masks” of docs/quality.md; a minute.

    make bench-quality ARGS=masks

Scenes are rendered, so that the places of their things are known: two things apart, touching, or the second in front of the
first. The base model reads each scene at ten noise levels; the words' attention becomes masks as in the sampler. The score is the
intersection over union with the visible parts of both things, cell by cell; of two of one class either may be whose it likes.
"""

import math
import random
import sys
from typing import NamedTuple

import pack
import torch
import torch.nn.functional as F
from denoising import Text, noised, reading
from loraclr.loraclr_core.sampler import masks, objects
from loraclr.loraclr_core.sampler.areas import AreaSettings
from shapes import model
from shapes.world import BACKGROUNDS, CELL, CLASSES, RADII, SIDE, Scene, Thing, class_look, make_scene
from torch import Tensor

from .report import PAGE, replace_between

BEGIN, END = "<!-- masks: begin -->", "<!-- masks: end -->"  # around the table
SCENES = 48  # of each kind
THRESHOLDS = (AreaSettings().threshold, 0.4)
TIMESTEPS = range(950, 0, -100)
HALF = 0.5  # a cell belongs to a thing that covers more of it; an overlap below it counts as a failure


class Kind(NamedTuple):
    """How two things of a scene stand. distance: of their centres, in sums of their radii; None for apart."""

    title: str
    distance: float | None
    one_class: bool


KINDS = [
    Kind(f"{title}, {'one class' if one_class else 'two classes'}", distance, one_class)
    for title, distance in (("apart", None), ("touching", 1.0), ("overlapping", 0.72))
    for one_class in (False, True)
]


def main(names: list[str]) -> None:
    """Measure all kinds, write the table and print it."""
    if names:
        sys.exit(f"masks: takes no further words, not {' '.join(names)}")
    patcher, *_ = pack.demo_models()
    unet, text = patcher.model.diffusion_model.float(), Text(torch.device("cpu"))
    heads = ["two things", *(head for each in THRESHOLDS for head in (f"threshold {each}", f"below {HALF}"))]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for kind in KINDS:
        rng = random.Random(7)
        scenes = [make_pair(kind, rng) for _ in range(SCENES)]
        claims, truth = read_claims(unet, text, scenes), torch.stack([visible(scene) for scene in scenes])
        scored = [score(claims, truth, threshold, kind.one_class) for threshold in THRESHOLDS]
        lines.append(f"| {kind.title} | {' | '.join(map(format_scores, scored))} |")
    table = "\n".join(lines)
    PAGE.write_text(replace_between(PAGE.read_text("utf-8"), BEGIN, END, table), "utf-8")
    print(table)


def score(claims: Tensor, truth: Tensor, threshold: float, one_class: bool) -> Tensor:
    """Return the mean overlap of both masks with their things in each scene, (scenes,)."""
    derived = objects.masks(claims, threshold) > HALF
    scored = overlap(derived, truth).mean(dim=1)
    return torch.maximum(scored, overlap(derived.flip(1), truth).mean(dim=1)) if one_class else scored


def format_scores(scored: Tensor) -> str:
    """Return mean ± 95 % and the share of failures, as two columns."""
    interval = float(1.96 * scored.std() / len(scored) ** 0.5)
    return f"{float(scored.mean()):.2f} ± {interval:.2f} | {float((scored < HALF).float().mean()):.2f}"


def make_pair(kind: Kind, rng: random.Random) -> Scene:
    """Return a scene of two things, the second in front."""
    words = [rng.choice(CLASSES)] * 2 if kind.one_class else rng.sample(CLASSES, 2)
    if kind.distance is None:
        return make_scene(words, rng)
    radii = [rng.uniform(*RADII) for _ in words]
    angle, away = rng.uniform(0, 2 * math.pi), kind.distance * sum(radii) / 2
    x, y = (SIDE / 2 + rng.uniform(-CELL, CELL) for _ in range(2))
    things = tuple(
        Thing(
            word,
            word,
            x + side * away * math.cos(angle),
            y + side * away * math.sin(angle),
            radius,
            *class_look(word, rng),
        )
        for word, radius, side in zip(words, radii, (1, -1), strict=True)
    )
    return Scene(things, rng.choice(list(BACKGROUNDS)), 0.0)


@torch.no_grad()
def read_claims(unet: torch.nn.Module, text: Text, scenes: list[Scene]) -> Tensor:
    """Return the things' claims, averaged over noise levels, (scenes, 2, SIDE / CELL, SIDE / CELL)."""
    latents = model.encode(torch.stack([scene.picture() for scene in scenes]))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    context, words = text([scene.prompt() for scene in scenes]), [find_words(text, scene) for scene in scenes]
    total = torch.zeros(len(scenes), 2, SIDE // CELL, SIDE // CELL)
    for timestep in TIMESTEPS:
        timesteps = torch.full((len(scenes),), timestep)
        with reading(unet, len(scenes)) as (recorder, options):
            unet(noised(latents, noise, timesteps), timesteps.float(), context, transformer_options=options)
        for number, maps in enumerate(recorder.maps()[0]):
            of_words = [maps[..., positions].movedim(-1, 0)[None] for positions in words[number]]
            total[number] += torch.cat([masks.claim(each) for each in of_words])
    return total / len(TIMESTEPS)


def find_words(text: Text, scene: Scene) -> list[list[int]]:
    """Return the positions of each thing's words in the scene's prompt."""
    words = [thing.words for thing in scene.things]
    return [text.positions(scene.prompt(), word)[words[:number].count(word)] for number, word in enumerate(words)]


def visible(scene: Scene) -> Tensor:
    """Return the cells in which each thing is seen, (2, SIDE / CELL, SIDE / CELL)."""
    behind, front = (thing.mask() for thing in scene.things)
    return F.avg_pool2d(torch.stack([behind & ~front, front]).float(), CELL) > HALF


def overlap(ours: Tensor, truth: Tensor) -> Tensor:
    """Return intersection over union, (…, height, width) -> (…)."""
    union = (ours | truth).sum(dim=(-2, -1)).clamp(min=1)
    return (ours & truth).sum(dim=(-2, -1)) / union
