"""A world of plain shapes whose every picture is known exactly: what is in it, where, and what it looks like.

A *class* is a form with a hue family and a texture of its own, drawn anew in every picture. A *concept* is one particular
thing of a class: its form and a colour of its hues, with a mark in a colour far from them that no prompt word describes,
always the same. Like a real subject it is a member of its class: in colours far from it, a LoRA would lay out another picture
than the plain model from the same noise. Pictures hold one to four things, each in a quarter of its own, on a background named
in the prompt; at any place, a model this small forgets every fourth thing or draws it twice. Some things are *odd*, of any
look: a model that knows only its classes' looks does not see a picture with two concepts for what it is, as no real model
would.
"""

import colorsys
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SIDE = 128  # pixels
CELL = 8  # pixels of a latent's cell
RADII, GAP = (22, 27), 2  # of things and between them and their quarter's border; pixels

Field = Callable[[Tensor, Tensor], Tensor]  # of local coordinates u (right), v (down), −1…1 across the thing
Colour = tuple[float, float, float]

FORMS: dict[str, Field] = {
    "ball": lambda u, v: u * u + v * v <= 1,
    "box": lambda u, v: torch.maximum(u.abs(), v.abs()) <= 0.88,
    "kite": lambda u, v: u.abs() + v.abs() <= 1,
    "cross": lambda u, v: (torch.minimum(u.abs(), v.abs()) <= 0.4) & (torch.maximum(u.abs(), v.abs()) <= 1),
}
CLASSES = tuple(FORMS)

# Where one of two colours is; the other is everywhere else.
PATTERNS: dict[str, Field] = {
    "rim": lambda u, v: u * u + v * v > 0.36,
    "dot": lambda u, v: u * u + v * v < 0.18,
    "heart": lambda u, v: torch.maximum(u.abs(), v.abs()) < 0.45,
    "stripes": lambda u, v: (torch.floor((v + 1) * 2.5).long() % 2).bool(),
    "bars": lambda u, v: (torch.floor((u + 1) * 2.5).long() % 2).bool(),
    "belt": lambda u, v: v.abs() < 0.33,
    "line": lambda u, v: v.abs() < 0.22,
    "mast": lambda u, v: u.abs() < 0.33,
}


class ClassLook(NamedTuple):
    """hues: in degrees, from … to. A thing has a light and a dark tone of one hue, in this pattern."""

    hues: tuple[float, float]
    pattern: str


CLASS_LOOKS = {
    "ball": ClassLook((-12, 18), "rim"),
    "box": ClassLook((205, 235), "stripes"),
    "kite": ClassLook((42, 62), "heart"),
    "cross": ClassLook((270, 300), "bars"),
}


@dataclass(frozen=True)
class ShapeConcept:
    """trigger: the phrase its LoRA is trained on, a rare word and the class."""

    name: str
    word: str
    class_word: str
    pattern: str
    first: Colour
    second: Colour

    @property
    def trigger(self) -> str:
        return f"{self.word} {self.class_word}"

    @property
    def braced(self) -> str:
        """Its name as CLoRA's prompts have it."""
        return f"{{{self.name}}}"


# Of the classes' hues, and of marks, which no class and no background has. Each mark is that of two concepts of two classes,
# so that it alone tells none; a pair that is asked for together has marks of two colours.
RED, BLUE, GOLD, PURPLE = (0.9, 0.05, 0.1), (0.1, 0.3, 1.0), (1.0, 0.78, 0.0), (0.6, 0.1, 0.9)
LIME, AQUA = (0.25, 1.0, 0.05), (0.0, 0.95, 0.75)

CONCEPTS = (
    ShapeConcept("ball", "sks", "ball", "belt", LIME, RED),
    ShapeConcept("box", "zwx", "box", "belt", AQUA, BLUE),
    ShapeConcept("kite", "qvk", "kite", "mast", LIME, GOLD),
    ShapeConcept("cross", "ohwx", "cross", "mast", AQUA, PURPLE),
    ShapeConcept("ball2", "mrf", "ball", "mast", AQUA, RED),
    ShapeConcept("box2", "jbl", "box", "mast", LIME, BLUE),
    ShapeConcept("kite2", "wug", "kite", "belt", AQUA, GOLD),
    ShapeConcept("cross2", "dax", "cross", "belt", LIME, PURPLE),
)

ODD = "odd "  # before a class word
ODD_PICTURES, ODD_THINGS = 0.35, 0.7

# Words after the things, and the colour of what is behind them.
BACKGROUNDS: dict[str, Colour] = {
    "on grass": (0.30, 0.55, 0.25),
    "in snow": (0.88, 0.90, 0.93),
    "at night": (0.08, 0.09, 0.15),
    "on sand": (0.82, 0.76, 0.66),
    "in fog": (0.55, 0.56, 0.57),
}


class Thing(NamedTuple):
    """One object of a picture. x, y: centre; radius; all in pixels. words: what a prompt calls it."""

    class_word: str
    words: str
    x: float
    y: float
    radius: float
    pattern: str
    first: Colour
    second: Colour

    def place(self) -> tuple[Tensor, Tensor]:
        """Local coordinates of every pixel, (SIDE, SIDE)."""
        pixels = torch.arange(SIDE) + 0.5
        v, u = torch.meshgrid((pixels - self.y) / self.radius, (pixels - self.x) / self.radius, indexing="ij")
        return u, v

    def mask(self) -> Tensor:
        """(SIDE, SIDE), True inside."""
        return FORMS[self.class_word](*self.place())

    def look(self) -> Tensor:
        """(3, SIDE, SIDE), 0…1, meant only inside."""
        where = PATTERNS[self.pattern](*self.place())
        first, second = (torch.tensor(colour)[:, None, None] for colour in (self.first, self.second))
        return torch.where(where, first, second)


class Scene(NamedTuple):
    """things: from back to front; they do not overlap."""

    things: tuple[Thing, ...]
    background: str
    brightness: float

    def prompt(self) -> str:
        return prompt([thing.words for thing in self.things], self.background)

    def picture(self) -> Tensor:
        """(3, SIDE, SIDE), 0…1."""
        colour = torch.tensor(BACKGROUNDS[self.background])[:, None, None] + self.brightness
        shade = torch.linspace(0.04, -0.04, SIDE)[:, None]
        picture = (colour + shade).clamp(0, 1).expand(3, SIDE, SIDE)
        for thing in self.things:
            picture = torch.where(thing.mask(), thing.look(), picture)
        return picture


def prompt(words: list[str], background: str) -> str:
    """`a photo of a ball and a zwx box on grass`"""
    return "a photo of " + " and ".join(f"a {each}" for each in words) + f" {background}"


def class_look(class_word: str, rng: random.Random) -> tuple[str, Colour, Colour]:
    """A new thing of the class: its pattern and two tones."""
    hues, pattern = CLASS_LOOKS[class_word]
    hue = (rng.uniform(*hues) % 360) / 360
    light = colorsys.hsv_to_rgb(hue, rng.uniform(0.45, 0.65), rng.uniform(0.85, 1.0))
    dark = colorsys.hsv_to_rgb(hue, rng.uniform(0.85, 1.0), rng.uniform(0.55, 0.75))
    return pattern, dark, light


def any_look(rng: random.Random) -> tuple[str, Colour, Colour]:
    """Of an odd thing: any pattern in two strong colours."""
    first, second = (colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.7, 1.0), rng.uniform(0.6, 1.0)) for _ in range(2))
    return rng.choice([*PATTERNS]), first, second


def make_scene(kinds: Sequence[str | ShapeConcept], rng: random.Random, background: str | None = None) -> Scene:
    """A picture of these things, in the order given, each somewhere in a quarter of its own.

    kinds: class words, ODD before them or not, or concepts.
    """
    things = []
    for kind, quarter in zip(kinds, rng.sample(range(4), len(kinds)), strict=True):
        radius = rng.uniform(*RADII)
        free = SIDE / 4 - GAP - radius
        x, y = (SIDE / 4 + SIDE / 2 * half + rng.uniform(-free, free) for half in divmod(quarter, 2))
        place = x, y, radius
        if isinstance(kind, ShapeConcept):
            things.append(Thing(kind.class_word, kind.trigger, *place, kind.pattern, kind.first, kind.second))
        elif kind.startswith(ODD):
            things.append(Thing(kind.removeprefix(ODD), kind, *place, *any_look(rng)))
        else:
            things.append(Thing(kind, kind, *place, *class_look(kind, rng)))
    return Scene(tuple(things), background or rng.choice(list(BACKGROUNDS)), rng.uniform(-0.04, 0.04))


def training_scene(asked: random.Random, rng: random.Random) -> Scene:
    """What the base model is trained on: one to four things, now and then two of one class, in a third of them odd ones.

    asked: for what the prompt says; the same state gives the same prompt.
    """
    count = asked.choices((1, 2, 3, 4), (3, 4, 2, 1))[0]
    kinds = asked.choices(CLASSES, k=count) if asked.random() < 0.25 else asked.sample(CLASSES, count)
    odd = ODD_THINGS if asked.random() < ODD_PICTURES else 0.0
    kinds = [ODD + kind if asked.random() < odd else kind for kind in kinds]
    return make_scene(kinds, rng, asked.choice([*BACKGROUNDS]))
