"""How clearly the plain picture shows where each concept goes, said before any LoRA draws.

A concept that the plain picture does not show, or shows on another's object, cannot come out right, and the finished
picture would not tell why. The bounds below were set by looking at about fifty plain pictures.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..concept import Concept
from . import masks

# Below this share of the picture, an area is too small to draw in.
SMALLEST = 0.015
# A word with less than this share of the attention of the concept with most is ignored.
FAINT = 0.25
# A word's claim to its own object is less than this share of that to another concept's.
ELSEWHERE = 0.6
# The mean claim in a concept's area is less than this many times that in the whole picture.
SPREAD = 1.25

REMEDY = "Try another seed, or give it an area (Concept Area)."


class Evidence(NamedTuple):
    """What the plain picture tells of the concepts, picture by picture."""

    # Each concept's area, (batch, concepts, height, width), and whether the user gave it, (batch, concepts).
    areas: Tensor
    is_given: Tensor
    # How strongly each concept's class word claims each place, (batch, concepts, h, w).
    claims: Tensor
    # The mean attention to it, (batch, concepts).
    attention: Tensor


def sizes(concepts: Sequence[Concept], evidence: Evidence) -> list[str]:
    """Return a sentence for each concept: how large its area is, and how much of its word's attention lies in it."""
    shares, within = _shares(evidence.areas), _within(evidence)
    sentences = []
    for number, concept in enumerate(concepts):
        size = f"“{concept.name}”: {_percent(shares[:, number])} of the picture"
        given = evidence.is_given[:, number]
        if given.all():
            sentences.append(f"{size}, by its mask.")
        else:
            sentences.append(f"{size}, with {_percent(within[~given, number])} of the attention to its class word.")
    return sentences


def warnings(concepts: Sequence[Concept], evidence: Evidence) -> list[str]:
    """Return a sentence, with what to do, for each concept that is unclear, and in which pictures of the batch."""
    pictures: dict[str, list[int]] = {}
    for picture in range(len(evidence.areas)):
        one = Evidence(*(part[picture] for part in evidence))
        for number in range(len(concepts)):
            if doubt := _doubt(concepts, number, one):
                pictures.setdefault(doubt, []).append(picture)
    count = len(evidence.areas)
    return [_in_pictures(numbers, count) + doubt for doubt, numbers in pictures.items()]


def _doubt(concepts: Sequence[Concept], number: int, picture: Evidence) -> str | None:
    """Return what is unclear about a concept in one picture, if anything is. picture: without the batch's dimension."""
    concept, area = concepts[number], float(picture.areas[number].mean())
    name, word = f"“{concept.name}”", f"“{concept.class_word}”"
    if picture.is_given[number]:
        if area < SMALLEST:
            return f"{name}: its mask covers {_share(area)} of the picture, too little to draw in. Make it larger."
        return None
    attention = picture.attention
    if attention[number] < FAINT * attention.max():
        return (
            f"{name}: the model pays hardly any attention to its class word {word}. Write a plainer word for it into"
            f" class_word of its Load Concept LoRA. {REMEDY}"
        )
    size = picture.claims.shape[-2:]
    areas = masks.resize(picture.areas[None], (size[0], size[1]), "area")[0]
    mean_claims = [float((picture.claims[number] * other).sum() / other.sum().clamp(min=1e-6)) for other in areas]
    rival = max(
        (other for other in range(len(concepts)) if other != number), key=mean_claims.__getitem__, default=number
    )
    whole = float(picture.claims[number].mean())
    if area == 0:
        if mean_claims[rival] > whole:
            return f"{name}: no object of its own: its class word {word} means that of “{concepts[rival].name}”, too. {REMEDY}"
        return f"{name}: the plain picture has no object for it. {REMEDY}"
    if mean_claims[number] < ELSEWHERE * mean_claims[rival]:
        return (
            f"{name}: its class word {word} means the object of “{concepts[rival].name}” more than its own, so both may be"
            f" drawn on one. {REMEDY}"
        )
    if mean_claims[number] < SPREAD * whole:
        return f"{name}: attention to its class word {word} is spread over the picture, not on one object. {REMEDY}"
    if area < SMALLEST:
        return f"{name}: its object is {_share(area)} of the picture, too small to draw in. {REMEDY}"
    return None


def _shares(areas: Tensor) -> Tensor:
    """Return the share of the picture that each area covers, (batch, concepts)."""
    return areas.mean(dim=(-2, -1))


def _within(evidence: Evidence) -> Tensor:
    """Return the share of each word's claim that lies in its area, (batch, concepts)."""
    height, width = evidence.claims.shape[-2:]
    areas = masks.resize(evidence.areas, (height, width), "area").to(evidence.claims)
    total = evidence.claims.sum(dim=(-2, -1)).clamp(min=masks.NONE)
    return (evidence.claims * areas).sum(dim=(-2, -1)) / total


def _percent(shares: Tensor) -> str:
    """Return the shares of a batch's pictures as one percentage or a range."""
    low, high = _share(float(shares.min())), _share(float(shares.max()))
    return low if low == high else f"{low.removesuffix(' %')}–{high}"


def _share(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f} %" if 0 < percent < 10 else f"{percent:.0f} %"


def _in_pictures(numbers: list[int], count: int) -> str:
    """Return which pictures of a batch a sentence is about, as its beginning; empty where it is about all."""
    if len(numbers) == count:
        return ""
    named = [str(number + 1) for number in numbers]
    return f"Picture{'s' if len(named) > 1 else ''} {', '.join(named)} of {count}: "
