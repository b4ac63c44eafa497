"""How much of what was asked a picture shows, as the judge sees it.

A *figure* is a character in a picture: places that hang together, of one class and one outfit. Everything is told from
figures: a concept is there as far as one of its class wears its outfit, two touch where their figures do, and one is in
front of another where the judge sees that other one covered.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import scipy.ndimage
import torch
from torch import Tensor

from .judge import Judge
from .sprites import CLASSES, STYLES
from .world import CONCEPTS, Character

SMALLEST = 16  # places of a figure; about a third of the smallest character
SPLIT = 0.2  # of the places of one class that hang together: what a second outfit must have to be a second figure
REACH = 2  # how many places away a figure is that still touches
NEIGHBOURS = torch.ones(3, 3).numpy()  # places that meet at a corner hang together


class Figure(NamedTuple):
    """A character in a picture."""

    class_word: str
    # Whose outfit it wears; None for nobody's.
    outfit: Character | None
    style: str
    # Whether another stands before it.
    covered: bool
    # How sure the judge is of class and outfit, 0…1.
    certainty: float
    # (h, w), whether it is there
    places: Tensor

    def shows(self, concept: Character) -> bool:
        """Return whether it is this concept."""
        return self.class_word == concept.class_word and self.outfit == concept


@torch.no_grad()
def find_figures(judge: Judge, pictures: Tensor) -> list[list[Figure]]:
    """Return the figures of each picture. pictures: (n, 3, SIDE, SIDE), 0…1."""
    shares = {head: logits.softmax(dim=1) for head, logits in judge(pictures).items()}
    return [list(figures_in({head: share[n] for head, share in shares.items()})) for n in range(len(pictures))]


def figures_in(shares: dict[str, Tensor]) -> Iterator[Figure]:
    """Yield the figures of one picture. shares: of each of the judge's heads, (choices, h, w)."""
    classes, outfits = shares["class"].argmax(dim=0), shares["outfit"].argmax(dim=0)
    for number, class_word in enumerate(CLASSES, 1):
        for together in _components(classes == number, SMALLEST):
            least = max(SMALLEST, SPLIT * float(together.sum()))
            for outfit in outfits[together].unique().tolist():
                for places in _components(together & (outfits == outfit), least):
                    certainty = (shares["class"][number] * shares["outfit"][outfit])[places].mean()
                    yield Figure(
                        class_word,
                        CONCEPTS[outfit - 1] if outfit else None,
                        [*STYLES][int(shares["style"][:, places].mean(dim=1).argmax())],
                        bool(shares["covered"][1, places].mean() > 0.5),
                        float(certainty),
                        places,
                    )


def _components(where: Tensor, least: float) -> Iterator[Tensor]:
    """Yield the places that hang together, so many at least. where: (h, w), bool."""
    labels, count = scipy.ndimage.label(where.numpy(), NEIGHBOURS)  # pyright: ignore[reportGeneralTypeIssues]
    for number in range(1, count + 1):
        places = torch.from_numpy(labels == number)
        if places.sum() >= least:
            yield places


def identity(figures: list[Figure], concept: Character) -> float:
    """Return how surely a concept is in a picture, 0…1."""
    return max((figure.certainty for figure in figures if figure.shows(concept)), default=0.0)


def bleeding(figures: list[Figure], concepts: tuple[Character, ...]) -> float:
    """Return how surely somebody of another class wears one of these concepts' outfits, 0…1."""
    return max(
        (
            figure.certainty
            for figure in figures
            if figure.outfit in concepts and figure.class_word != figure.outfit.class_word
        ),
        default=0.0,
    )


def touch(first: Figure, second: Figure) -> bool:
    """Return whether two figures touch."""
    grown = scipy.ndimage.binary_dilation(first.places.numpy(), NEIGHBOURS, iterations=REACH)
    return bool((torch.from_numpy(grown) & second.places).any())


def in_contact(figures: list[Figure], first: str, second: str) -> bool:
    """Return whether a figure of one class touches one of another, or two of one class touch."""
    return any(
        touch(one, other)
        for one, other in itertools.permutations(figures, 2)
        if (one.class_word, other.class_word) == (first, second)
    )


def in_front(figures: list[Figure], first: Character, second: Character) -> bool:
    """Return whether the first concept is whole and the second behind something."""
    whole = any(figure.shows(first) and not figure.covered for figure in figures)
    return whole and any(figure.shows(second) and figure.covered for figure in figures)


def in_style(figures: list[Figure], style: str) -> float:
    """Return the share of figures that are in a style; 0 without figures."""
    return sum(figure.style == style for figure in figures) / max(len(figures), 1)
