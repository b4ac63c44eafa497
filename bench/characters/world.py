"""A world of characters that people tell apart at a glance, whose every picture is known exactly.

A *class* is a kind of character, drawn anew in every picture: in one of two styles, with another tint and, now and then, an
accessory in two of eight colours. A *concept* is one individual of a class: it always wears the same two accessories in the same
colours, which no prompt describes. Pictures hold one to four characters: apart, touching, or one before another.
"""

import io
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from .sprites import ACCESSORIES, CLASSES, PROPS, STYLES, Colour, css, icon

SIDE = 128  # pixels
CELL = 8  # pixels of a latent's cell
# All characters are of one size, and centres lie on the cells' corners, so that a look is nearly the same numbers in the latent
# wherever it stands. With that and few places, a small model learns to draw them much sooner.
SIZE = 56  # of a character's side; pixels
# Where centres may be, x and y, by how many characters there are; pixels. A hat on the highest is still in the picture.
ROOM = {
    1: (range(40, 89, CELL), range(56, 89, CELL)),
    2: (range(32, 97, CELL), range(56, 89, CELL)),
    3: (range(32, 97, CELL), range(40, 97, CELL)),
    4: (range(32, 97, CELL), range(40, 97, CELL)),
}
LEAN = 8  # degrees that those who hug turn
PROP_SIZE, PROP_ROOM = 32, range(16, 113, CELL)
HORIZONS = 56, 64, 72, 80, 88  # pixels from above
ROUND = 0.45  # a face's radius, as a share of its side
TINT, SHADE = 12, 0.08  # most: degrees of hue; lightness
UNNAMED_STYLE = "a photo of"  # as prompts of real models begin

# The ground, its upper part and its lower part.
GROUNDS: dict[str, tuple[Colour, Colour]] = {
    "in a park": ((0.72, 0.88, 0.98), (0.45, 0.72, 0.35)),
    "in snow": ((0.80, 0.86, 0.92), (0.97, 0.98, 1.0)),
    "at night": ((0.08, 0.09, 0.22), (0.16, 0.20, 0.30)),
    "on a beach": ((0.55, 0.82, 0.95), (0.96, 0.87, 0.65)),
    "in a room": ((0.93, 0.84, 0.78), (0.62, 0.45, 0.36)),
}

# Colours that tell a scene's characters apart where they are mixed at their edges, too.
KEYS: tuple[Colour, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))

# How two characters stand to each other: how far apart their centres are, as a share of the sum of their radii.
APART, NEAR, TOUCHING, HUGGING, OVERLAPPING = (1.08, 9.0), (1.08, 1.4), (0.93, 1.03), (0.74, 0.93), (0.55, 0.70)

MAGENTA, LIME, AQUA = (0.93, 0.05, 0.65), (0.35, 0.95, 0.10), (0.0, 0.85, 0.90)
VIOLET, BLUE = (0.45, 0.12, 0.90), (0.08, 0.25, 0.95)
RED, YELLOW, WHITE = (0.90, 0.10, 0.10), (1.0, 0.85, 0.10), (1.0, 1.0, 1.0)
# Of what is worn.
COLOURS: tuple[Colour, ...] = (MAGENTA, LIME, AQUA, VIOLET, BLUE, RED, YELLOW, WHITE)


class Worn(NamedTuple):
    """An accessory in its two colours."""

    name: str
    first: Colour
    second: Colour


@dataclass(frozen=True)
class Character:
    """A concept. word: a rare one that stands before its class."""

    name: str
    word: str
    class_word: str
    worn: tuple[Worn, ...]

    @property
    def trigger(self) -> str:
        """Return the phrase that its LoRA is trained on."""
        return f"{self.word} {self.class_word}"

    @property
    def braced(self) -> str:
        """Return its name as CLoRA's prompts have it."""
        return f"{{{self.name}}}"


CONCEPTS = (
    Character("cat", "sks", "cat", (Worn("hat", VIOLET, LIME), Worn("scarf", LIME, VIOLET))),
    Character("dog", "zwx", "dog", (Worn("glasses", MAGENTA, AQUA), Worn("hat", AQUA, MAGENTA))),
    Character("fox", "qvk", "fox", (Worn("bow", AQUA, VIOLET), Worn("scarf", AQUA, BLUE))),
    Character("robot", "ohwx", "robot", (Worn("bow", MAGENTA, LIME), Worn("glasses", LIME, MAGENTA))),
    Character("cat2", "mrf", "cat", (Worn("glasses", BLUE, AQUA), Worn("bow", MAGENTA, BLUE))),
    Character("dog2", "jbl", "dog", (Worn("patch", VIOLET, LIME), Worn("scarf", MAGENTA, LIME))),
    Character("girl", "wug", "girl", (Worn("hat", LIME, BLUE), Worn("glasses", VIOLET, LIME))),
    Character("frog", "dax", "frog", (Worn("hat", MAGENTA, BLUE), Worn("scarf", VIOLET, MAGENTA))),
)

WEARING, SAID = 0.4, 0.75  # share of plain characters that wear something; of these, what prompts say
RELATIONS = {
    "and": (APART, TOUCHING, OVERLAPPING),
    "beside": (NEAR, TOUCHING),
    "in front of": (OVERLAPPING,),
    "hugging": (HUGGING,),
}


class Place(NamedTuple):
    """x, y: centre; size: side; all in pixels. turn: degrees."""

    x: int
    y: int
    size: int = SIZE
    turn: int = 0

    def transform(self) -> str:
        """Return it as SVG puts things in their place."""
        scale = self.size / 100
        return f"translate({self.x} {self.y}) rotate({self.turn}) scale({scale:.4f}) translate(-50 -50)"


class Thing(NamedTuple):
    """A character. words: what a prompt calls it; hue: degrees its face is turned by; shade: of 1, its lightness."""

    class_word: str
    words: str
    place: Place
    worn: tuple[Worn, ...] = ()
    hue: float = 0.0
    shade: float = 1.0

    def svg(self, style: str) -> str:
        """Return it as SVG."""
        tint = tint_filter(self.hue, self.shade)
        face = f'<g filter="url(#{tint.name})">{icon(style, STYLES[style].faces[self.class_word].icon)}</g>'
        return f'{tint.svg}<g transform="{self.place.transform()}">{face}{self.outfit(style)}</g>'

    def silhouette(self, style: str, colour: Colour) -> str:
        """Return it as SVG, in one colour."""
        flat, face = colour_filter(colour), icon(style, STYLES[style].faces[self.class_word].icon)
        outer = f'transform="{self.place.transform()}" filter="url(#{flat.name})"'
        return f"{flat.svg}<g {outer}><g>{face}</g>{self.outfit(style)}</g>"

    def outfit(self, style: str) -> str:
        """Return what it wears as SVG, in its face's units."""
        face = STYLES[style].faces[self.class_word]
        return "".join(ACCESSORIES[worn.name](face, worn.first, worn.second) for worn in self.worn)


class Filter(NamedTuple):
    """A filter of SVG: its id and its definition."""

    name: str
    svg: str


def tint_filter(hue: float, shade: float) -> Filter:
    """Return a filter that turns hues by degrees and scales lightness."""
    name = f"tint{10 * hue:.0f}_{1000 * shade:.0f}"
    scaled = "".join(f'<feFunc{c} type="linear" slope="{shade:.3f}"/>' for c in "RGB")
    return Filter(
        name,
        f'<filter id="{name}" color-interpolation-filters="sRGB"><feColorMatrix type="hueRotate" values="{hue:.1f}"/>'
        f"<feComponentTransfer>{scaled}</feComponentTransfer></filter>",
    )


def colour_filter(colour: Colour) -> Filter:
    """Return a filter that makes everything one colour."""
    name = f"flat{css(colour)[1:]}"
    rows = " ".join(f"0 0 0 0 {value}" for value in colour)
    return Filter(
        name,
        f'<filter id="{name}" color-interpolation-filters="sRGB"><feColorMatrix values="{rows} 0 0 0 1 0"/></filter>',
    )


class Scene(NamedTuple):
    """A picture. things: from back to front. named: what the prompt calls them, in its order; relation: of the first two.
    style: of the characters; style_words: what the prompt says of it. prop: a word and its place."""

    things: tuple[Thing, ...]
    named: tuple[str, ...]
    relation: str
    style: str
    style_words: str
    ground: str
    horizon: int
    prop: tuple[str, Place] | None

    def prompt(self) -> str:
        """Return what it shows, in words."""
        return prompt(self.named, self.ground, self.relation, self.style_words, self.prop and self.prop[0])

    def picture(self) -> Tensor:
        """Return the picture, (3, SIDE, SIDE), 0…1."""
        above, below = (css(colour) for colour in GROUNDS[self.ground])
        parts = [
            f'<rect width="{SIDE}" height="{SIDE}" fill="{above}"/>'
            f'<rect y="{self.horizon}" width="{SIDE}" height="{SIDE}" fill="{below}"/>'
        ]
        if self.prop:
            word, place = self.prop
            parts.append(f'<g transform="{place.transform()}">{icon(self.style, PROPS[word])}</g>')
        return render([*parts, *(thing.svg(self.style) for thing in self.things)])

    def masks(self) -> Tensor:
        """Return what is visible of each thing, (things, SIDE, SIDE), 0…1."""
        black = f'<rect width="{SIDE}" height="{SIDE}" fill="#000"/>'
        flat = render(
            [black, *(thing.silhouette(self.style, key) for thing, key in zip(self.things, KEYS, strict=False))]
        )
        white = flat.amin(dim=0, keepdim=True)
        return torch.cat([flat - white, white])[: len(self.things)]


def prompt(
    named: Sequence[str], ground: str, relation: str = "and", style: str = UNNAMED_STYLE, prop: str | None = None
) -> str:
    """Return a prompt, such as `a sticker of a cat with a hat in front of a dog near a tree in a park`."""
    words = [f"a {name}" for name in named]
    first = f" {relation} ".join(words[:2])
    near = f" near a {prop}" if prop else ""
    return f"{style} {' and '.join([first, *words[2:]])}{near} {ground}"


def render(parts: Sequence[str]) -> Tensor:
    """Return a picture of SVG parts, (3, SIDE, SIDE), 0…1."""
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{SIDE}" height="{SIDE}"'
        f' viewBox="0 0 {SIDE} {SIDE}">{"".join(parts)}</svg>'
    )
    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGB")
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


def any_colour(rng: random.Random) -> Colour:
    """Return one of the colours of what is worn."""
    return rng.choice(COLOURS)


def dress(class_word: str, asked: random.Random, rng: random.Random) -> tuple[str, tuple[Worn, ...]]:
    """Return what a prompt calls a plain character, and what it wears."""
    if asked.random() >= WEARING:
        return class_word, ()
    name = asked.choice([*ACCESSORIES])
    said = f"{class_word} with {'' if name == 'glasses' else 'a '}{name}" if asked.random() < SAID else class_word
    return said, (Worn(name, *rng.sample(COLOURS, 2)),)


def arrange(count: int, distance: tuple[float, float], rng: random.Random, relation: str = "and") -> list[Place]:
    """Return places for so many characters, the first two at this distance, all others apart.

    distance: from … to, as a share of the sum of the radii. Those who hug or are “beside” are side by side, and those who hug
    lean to each other.
    """
    anywhere = places_in(*ROOM[count])
    for _ in range(1000):
        first = rng.choice(anywhere)
        places = [first]
        for number in range(1, count):
            near = distance if number == 1 else APART
            free = [
                place
                for place in anywhere
                if stand(first, place, near) and all(stand(other, place, APART) for other in places[1:])
            ]
            if number == 1 and relation in ("hugging", "beside"):
                free = [place for place in free if abs(place.x - first.x) > 4 * abs(place.y - first.y)]
            if not free:
                break
            places.append(rng.choice(free))
        else:
            return lean(*places) if relation == "hugging" else places
    raise ValueError(f"No room for {count} characters")


def lean(first: Place, second: Place, *others: Place) -> list[Place]:
    """Return the places, the first two turned to each other."""
    turn = LEAN if first.x < second.x else -LEAN
    return [first._replace(turn=turn), second._replace(turn=-turn), *others]


def places_in(across: range, down: range, size: int = SIZE) -> list[Place]:
    """Return all places in a part of the picture. across, down: x and y of centres, in pixels."""
    return [Place(x, y, size) for x in across for y in down]


def clearance(first: Place, second: Place) -> float:
    """Return how far apart two places are, as a share of the sum of their radii."""
    return math.hypot(first.x - second.x, first.y - second.y) / (ROUND * (first.size + second.size))


def stand(first: Place, second: Place, distance: tuple[float, float]) -> bool:
    """Return whether two places are so far apart: from … to, as a share of the sum of the radii."""
    least, most = distance
    return least <= clearance(first, second) <= most


def make_scene(
    kinds: Sequence[str | Character],
    rng: random.Random,
    asked: random.Random | None = None,
    relation: str = "and",
    distance: tuple[float, float] | None = None,
    ground: str | None = None,
    style: str | None = None,
    plain: bool = True,
) -> Scene:
    """Return a picture of these characters, in the order in which the prompt names them.

    asked: for what the prompt says; the same state gives the same prompt. style: one that the prompt names.
    plain: class words wear nothing.
    """
    asked = asked or rng
    distance = distance or rng.choice(RELATIONS[relation])
    things = []
    for kind, place in zip(kinds, arrange(len(kinds), distance, rng, relation), strict=True):
        look = rng.uniform(-TINT, TINT), 1 - rng.uniform(0, SHADE)
        if isinstance(kind, Character):
            things.append(Thing(kind.class_word, kind.trigger, place, kind.worn, *look))
        else:
            words, worn = (kind, ()) if plain else dress(kind, asked, rng)
            things.append(Thing(kind, words, place, worn, *look))
    named = tuple(thing.words for thing in things)
    if relation == "in front of" or (relation == "and" and rng.random() < 0.5):
        things.reverse()
    word = asked.choice([*PROPS]) if asked.random() < 0.3 else None
    prop = (word, prop_beside([thing.place for thing in things], rng)) if word else None
    return Scene(
        tuple(things),
        named,
        relation,
        style or rng.choice([*STYLES]),
        STYLES[style].words if style else UNNAMED_STYLE,
        ground or asked.choice([*GROUNDS]),
        rng.choice(HORIZONS),
        prop,
    )


def prop_beside(places: list[Place], rng: random.Random) -> Place:
    """Return a prop's place, where there is most room."""
    tries = rng.sample(places_in(PROP_ROOM, PROP_ROOM, PROP_SIZE), 30)
    return max(tries, key=lambda place: min(clearance(place, other) for other in places))


def training_scene(asked: random.Random, rng: random.Random) -> Scene:
    """Return one of the pictures that the base model is trained on: one to four characters, now and then two of one class.

    asked: for what the prompt says; the same state gives the same prompt.
    """
    count = draw_count(asked)
    kinds = asked.choices(CLASSES, k=count) if asked.random() < 0.2 else asked.sample(CLASSES, count)
    relation = asked.choices([*RELATIONS], (5, 1, 2, 1))[0] if count > 1 else "and"
    style = asked.choice([*STYLES]) if asked.random() < 0.6 else None
    distances = RELATIONS[relation]
    distance = rng.choices(distances, (3, 1, 1)[: len(distances)])[0]
    return make_scene(kinds, rng, asked, relation, distance, style=style, plain=False)


def draw_count(asked: random.Random) -> int:
    """Return how many characters a training scene has; it is the first that is asked of it."""
    return asked.choices((1, 2, 3, 4), (3, 5, 2, 1))[0]
