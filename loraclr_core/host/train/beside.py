"""Pictures of the subject beside other things: cut out of its own pictures and put into pictures that the base painted.

Trained on its subject alone, a LoRA redraws what stands beside it. Here it sees both, and what is not the subject is held
to the base's prediction: objective.py has the term. Pasting subjects side by side is Seg-Mix (MuDI, arXiv 2404.04243).
Where a thing is, DiffEdit says (arXiv 2210.11427, section 3.2): where the base's prediction changes when its word is taken
out of the caption.
"""

import random
import re
from typing import NamedTuple

import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...progress import Progress
from ...train.captions import Caption
from ..loaded import LoadedModel
from . import painting
from .data import Dataset, Other, Picture, Sources, default_side, encode_picture, fitted
from .rows import Conds
from .settings import TrainSettings

PAINTED = 12  # pictures
NOISES, LEVEL, THRESHOLD = 6, 0.5, 0.4  # of DiffEdit; the level is a place in the schedule
LARGEST = 0.55  # share of a picture's sides that a subject may take
FREE = 0.1  # of the range between the freest place and the least free one: places that count as free


class Scene(NamedTuple):
    """A picture of another thing by the base, into which a subject is put."""

    # Whose picture's subject and background it is.
    picture: int
    # With both the subject and the other thing.
    caption: Caption
    # With the other thing alone, and with nothing.
    other: str
    empty: str


class Found(NamedTuple):
    """What the base model says and paints."""

    # The cells of each picture that are its subject's, (h, w), 1 there and 0 elsewhere.
    subjects: list[Tensor]
    # Of each scene: (1, channels, …), and how much of the other thing is in each cell, (h, w), 0…1.
    painted: list[Tensor]
    occupied: list[Tensor]


def names(settings: TrainSettings) -> list[str]:
    """Return what the subject is shown beside, with articles; nothing where no such pictures are wanted."""
    if settings.preservation == 0 or not settings.class_word:
        return []
    things = [thing.strip() for thing in settings.beside.split(",")]
    return [_with_article(thing, settings.class_word) for thing in things if thing]


def _with_article(thing: str, class_word: str) -> str:
    if thing == class_word:
        return f"another {thing}"
    return f"an {thing}" if re.match("[aeiou]", thing, re.IGNORECASE) else f"a {thing}"


def scenes(dataset: Dataset, settings: TrainSettings) -> list[Scene]:
    """Return what is to be painted; nothing where no such pictures are wanted."""
    others = names(settings)
    if not others:
        return []
    chosen = []
    for number in range(PAINTED):
        index = number % len(dataset.pictures)
        chosen.append(_scene(index, dataset.pictures[index].caption, others[number % len(others)], number, settings))
    return chosen


def _scene(index: int, caption: Caption, other: str, number: int, settings: TrainSettings) -> Scene:
    """Return a scene with a picture's caption; the other thing is named after the subject, or before it in turn."""
    concept, plain = _split(caption.concept, settings.trigger), _split(caption.plain, settings.class_word)
    both = "{1} and {0}" if number % 2 else "{0} and {1}"
    caption = Caption(*(part.with_thing(both.format(part.thing, other)) for part in (concept, plain)))
    return Scene(index, caption, plain.with_thing(other), plain.with_thing(""))


class _Parts(NamedTuple):
    """A caption in three parts; the thing has its article."""

    before: str
    thing: str
    after: str

    def with_thing(self, thing: str) -> str:
        return " ".join(f"{self.before}{thing}{self.after}".split())


def _split(text: str, phrase: str) -> _Parts:
    place = re.search(rf"(\b(an?|the) )?{re.escape(phrase)}", text, re.IGNORECASE)
    return _Parts(text[: place.start()], place[0], text[place.end() :]) if place else _Parts("", phrase, f", {text}")


def prompts(dataset: Dataset, chosen: list[Scene], settings: TrainSettings) -> list[str]:
    """Return the prompts that `find` needs."""
    captions = [picture.caption.plain for picture in dataset.pictures]
    unnamed = [_split(caption, settings.class_word).with_thing("") for caption in captions]
    return ["", *captions, *unnamed, *(text for scene in chosen for text in (scene.other, scene.empty))]


def find(
    model: LoadedModel, conds: Conds, dataset: Dataset, chosen: list[Scene], settings: TrainSettings, progress: Progress
) -> Found:
    """Return where subjects are, and paint the scenes."""
    subjects, painted, occupied = [], [], []
    for number, picture in enumerate(dataset.pictures):
        progress(f"finding the subject in picture {number + 1} of {len(dataset.pictures)}", 0.0)
        subjects.append(_find_subject(model, conds, picture, settings) if picture.subject is None else picture.subject)
    for number, scene in enumerate(chosen):
        progress(f"painting other things, picture {number + 1} of {len(chosen)}", 0.0)
        shape = dataset.pictures[scene.picture].latent.shape
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(settings.seed + number))
        latent = painting.paint(model, {}, conds[scene.other], conds[""], noise.to(model.noise.device))
        painted.append(latent.cpu())
        occupied.append(_change(model, conds[scene.other], conds[scene.empty], latent))
    return Found(subjects, painted, occupied)


def _find_subject(model: LoadedModel, conds: Conds, picture: Picture, settings: TrainSettings) -> Tensor:
    named = picture.caption.plain
    unnamed = _split(named, settings.class_word).with_thing("")
    change = _change(model, conds[named], conds[unnamed], picture.latent.to(model.noise.device))
    # With the cells around them, so that nothing of the subject is left out.
    return F.max_pool2d((change > THRESHOLD).float()[None], 3, 1, 1)[0]


def _change(model: LoadedModel, named: list, unnamed: list, latent: Tensor) -> Tensor:
    """Return how much a word changes the prediction in each cell, (h, w), from 0 to 1."""
    sampling = model.inner.model_sampling
    sigma = torch.full((1,), sampling.percent_to_sigma(LEVEL)).to(latent)
    change = torch.zeros(latent.shape[-2:], device=latent.device)
    for seed in range(NOISES):
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).to(latent)
        x = sampling.noise_scaling(sigma, noise, latent)
        with_word, without = (model.evaluate(cond, x, sigma) for cond in (named, unnamed))
        change += (with_word - without).float().abs().flatten(0, -3).mean(dim=0)
    smooth = F.avg_pool2d(change[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()).clamp(min=1e-12)).cpu()


def compose(
    model: ModelPatcher, vae: VAE, sources: Sources, chosen: list[Scene], found: Found, settings: TrainSettings
) -> list[Picture]:
    """Return the scenes with their subjects in them."""
    composed = []
    side, cell = settings.resolution or default_side(model), vae.spacial_compression_encode()
    for number, scene in enumerate(chosen):
        pixels = fitted(sources.pictures[scene.picture].movedim(-1, 1), side, cell)
        rng = random.Random(f"{settings.seed} beside {number}")
        canvas, known = _place(pixels, found.subjects[scene.picture], found.occupied[number], rng)
        latent = encode_picture(model, vae, canvas)
        subject = F.adaptive_avg_pool2d(known, latent.shape[-2:])[0, 0].gt(0.5).float()
        composed.append(Picture(torch.lerp(found.painted[number], latent, subject), scene.caption, subject))
    return composed


def preserved(chosen: list[Scene], found: Found, composed: list[Picture]) -> list[Other]:
    """Return what the LoRA is to leave alone: these pictures under captions with the class word, and the painted ones.

    Without the first, a caption of two plain things would come to mean the concept, too.
    """
    plain = [Other(picture.latent, picture.caption.plain) for picture in composed]
    return [*plain, *(Other(latent, scene.other) for scene, latent in zip(chosen, found.painted, strict=True))]


def _place(pixels: Tensor, subject: Tensor, occupied: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Return a grey canvas with the subject where the scene is free, and which pixels are the subject's.

    pixels, and the canvas: (1, 3, h, w). subject, occupied: (h, w) in cells. Which pixels: (1, 1, h, w), 0…1.
    """
    size, cells = pixels.shape[-2:], subject.shape
    mask = F.interpolate(subject[None, None], size=tuple(size), mode="nearest")
    rows, columns = _extent(mask[0, 0].amax(dim=1)), _extent(mask[0, 0].amax(dim=0))
    cut = torch.cat([pixels, mask], dim=1)[..., rows, columns]
    scale = min(1.0, *(LARGEST * size[axis] / cut.shape[2 + axis] for axis in (0, 1)))
    lengths = [max(1, int(scale * length)) for length in cut.shape[2:]]
    window = [max(1, min(cells[axis], -(-lengths[axis] * cells[axis] // size[axis]))) for axis in (0, 1)]
    crowded = F.avg_pool2d(occupied[None, None], window, stride=1)[0, 0]
    limit = crowded.min() + FREE * (crowded.max() - crowded.min())
    place = rng.choice(torch.nonzero(crowded <= limit).tolist())
    top, left = (place[axis] * size[axis] // cells[axis] for axis in (0, 1))
    canvas = torch.cat([torch.full_like(pixels, 0.5), torch.zeros_like(mask)], dim=1)
    canvas[..., top : top + lengths[0], left : left + lengths[1]] = F.interpolate(cut, size=lengths, mode="area")
    return canvas[:, :3], canvas[:, 3:]


def _extent(line: Tensor) -> slice:
    """Return from the first to the last entry of (n,) that is not 0; all of it where there is none."""
    places = torch.nonzero(line).flatten()
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, len(line))
