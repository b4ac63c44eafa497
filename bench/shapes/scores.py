"""How much of what was asked a picture shows, measured on its pixels alone.

A *template* is a form at every place and size: its regions, and for each region how well a pixel suits it. A region is there
as far as its pixels suit it in the mean, and the match is that of the worst region, at the best place: half a look is none.
The last region is the rim around the form, which must be unlike the inside: a thing of about that form and size has to be
there, not just its colours. (A cross fills most of a ball; such forms are told apart by their looks, not by this.)
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .world import BACKGROUNDS, CLASS_LOOKS, FORMS, PATTERNS, SIDE, Colour, Field, ShapeConcept

HALF = SIDE // 2  # scores work at half the pictures' resolution
RADII = torch.arange(9, 20.5, 0.5).tolist()  # of things, in half resolution
FIELD = 2 * SIDE // 2  # what correlations are padded to, so that nothing wraps around
TOLERANCE, RIM_TOLERANCE = 0.8, 0.5  # distance in RGB at which a colour has nothing left of another
NOTHING, ALL = 0.4, 0.75  # mean suitability of a region that counts as not there, and as there
INSIDE, RIM = 0.92, (1.12, 1.35)  # where the form surely is and where it surely is not, in radii

Suitability = Callable[[Tensor], Tensor]  # pictures (n, 3, h, w) -> (n, h, w), 0…1


Template = tuple[tuple[Field, Suitability], ...]  # regions: where, in local coordinates, and which pixels suit it


class Found(NamedTuple):
    """The best match in each of n pictures. x, y, radius in half resolution."""

    score: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor


def like(colour: Colour, tolerance: float = TOLERANCE) -> Suitability:
    def suits(pictures: Tensor) -> Tensor:
        distance = (pictures - torch.tensor(colour).view(3, 1, 1)).square().sum(dim=1).sqrt()
        return (1 - distance / tolerance).clamp(min=0)

    return suits


def of_family(class_word: str) -> Suitability:
    """The hues of a class, in any tone that has one."""
    start, end = CLASS_LOOKS[class_word].hues

    def suits(pictures: Tensor) -> Tensor:
        red, green, blue = pictures.unbind(dim=1)
        hue = torch.rad2deg(torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue))
        away = ((hue - (start + end) / 2 + 180) % 360 - 180).abs() - (end - start) / 2
        chroma = pictures.amax(dim=1) - pictures.amin(dim=1)
        return (1 - (away - 10) / 20).clamp(0, 1) * ((chroma - 0.15) / 0.15).clamp(0, 1)

    return suits


def any_of(*each: Suitability) -> Suitability:
    return lambda pictures: functools.reduce(torch.maximum, (suits(pictures) for suits in each))


def none_of(*each: Suitability) -> Suitability:
    return lambda pictures: 1 - any_of(*each)(pictures)


def inside(form: Field) -> Field:
    return lambda u, v: form(u / INSIDE, v / INSIDE)


def rim(form: Field) -> Field:
    inner, outer = RIM
    return lambda u, v: form(u / outer, v / outer) & ~form(u / inner, v / inner)


@functools.cache
def concept_template(concept: ShapeConcept, class_word: str | None = None) -> Template:
    """A concept's look, on its own form or on that of another class."""
    form, pattern = FORMS[class_word or concept.class_word], PATTERNS[concept.pattern]
    first, second = like(concept.first), like(concept.second)
    return (
        (lambda u, v: inside(form)(u, v) & pattern(u, v), first),
        (lambda u, v: inside(form)(u, v) & ~pattern(u, v), second),
        (rim(form), none_of(like(concept.first, RIM_TOLERANCE), like(concept.second, RIM_TOLERANCE))),
    )


@functools.cache
def class_template(class_word: str) -> Template:
    """A plain thing of a class: its form in its hues, on a background."""
    form, ground = FORMS[class_word], any_of(*(like(colour) for colour in BACKGROUNDS.values()))
    return (inside(form), of_family(class_word)), (rim(form), ground)


def match(pictures: Tensor, template: Template, apart_from: Found | None = None) -> Found:
    """pictures: (n, 3, SIDE, SIDE), 0…1. apart_from: only places that do not overlap these."""
    small = F.avg_pool2d(pictures, 2)
    radii = torch.tensor(RADII)
    worst = torch.full((len(pictures), len(RADII), HALF, HALF), torch.inf)
    for region, suits in template:
        found = torch.fft.rfft2(suits(small), s=(FIELD, FIELD))[:, None] * spectra(region).conj()
        mean = torch.fft.irfft2(found, s=(FIELD, FIELD))[..., :HALF, :HALF]
        worst = torch.minimum(worst, (mean - NOTHING) / (ALL - NOTHING))
    place = torch.arange(HALF) + 0.5
    reach = 0.9 * radii[:, None]
    whole = (place > reach) & (place < HALF - reach)
    allowed = (whole[:, :, None] & whole[:, None, :]).expand(len(pictures), -1, -1, -1)
    if apart_from is not None:
        x, y, radius = (value.view(-1, 1, 1, 1) for value in apart_from[1:])
        distance = ((place[:, None] - y).square() + (place - x).square()).sqrt()
        allowed = allowed & (distance > 0.8 * (radius + radii[:, None, None]))
    scores = torch.where(allowed, worst, 0.0)
    best = scores.flatten(1).argmax(dim=1)
    size, y, x = torch.unravel_index(best, scores.shape[1:])
    return Found(scores.flatten(1).amax(dim=1).clamp(0, 1), x + 0.5, y + 0.5, radii[size])


@functools.lru_cache(maxsize=64)
def spectra(region: Field) -> Tensor:
    """The region at every radius, around the origin, wrapped around, in sum 1; its transform, (radii, FIELD, …)."""
    offsets = torch.fft.fftfreq(FIELD, 1 / FIELD)
    v, u = torch.meshgrid(offsets, offsets, indexing="ij")
    kernels = torch.stack([region(u / radius, v / radius) for radius in RADII]).float()
    return torch.fft.rfft2(kernels / kernels.sum(dim=(1, 2), keepdim=True))


def identity(pictures: Tensor, concept: ShapeConcept) -> Found:
    """How well a concept's own look is found anywhere in each picture."""
    return match(pictures, concept_template(concept))


def bleeding(pictures: Tensor, concept: ShapeConcept, onto: ShapeConcept, own: Found) -> Tensor:
    """How well a concept's look is found on the form of another object, elsewhere than on its own place; (n,)."""
    return match(pictures, concept_template(concept, onto.class_word), apart_from=own).score


def background(pictures: Tensor, words: str) -> Tensor:
    """The share of what looks like any background that looks like the one asked for; (n,)."""
    colours = torch.tensor([*BACKGROUNDS.values()])
    distance = (pictures[:, None] - colours[:, :, None, None]).square().sum(dim=2).sqrt()
    nearest, which = distance.min(dim=1)
    counted = nearest < 0.25
    right = counted & (which == [*BACKGROUNDS].index(words))
    return right.sum(dim=(1, 2)) / counted.sum(dim=(1, 2)).clamp(min=1)
