"""Names written onto pictures, in a font that has all their letters and no wider than the picture; else numbers."""

import functools
import importlib.util
import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

from PIL import ImageFont, features
from PIL.ImageFont import FreeTypeFont, Layout

STROKE = 2  # pixels around each letter
PLACE = (6, 4)  # upper left corner of a label
SMALLEST = 10  # font size in pixels
TRIED = 32  # font size in pixels at which letters are looked up

# Where Linux, macOS and Windows keep fonts, for all users and for a single one.
FOLDERS = (
    *("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts"),
    *("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
    *("$WINDIR/Fonts", "$LOCALAPPDATA/Microsoft/Windows/Fonts"),
)
KINDS = (".ttf", ".otf", ".ttc", ".otc", ".woff2")
STYLED = re.compile("italic|oblique|bold|black|heavy|light|thin|condensed|narrow|mono", re.IGNORECASE)


class Label(NamedTuple):
    text: str
    font: FreeTypeFont


def fit(names: list[str], height: int, width: int, files: tuple[Path, ...]) -> list[Label]:
    """Return a label for each name, for pictures of this size; see `_fit`. files: fonts beside PIL's own."""
    return [_fit(_one_line(name), number, height, width, files) for number, name in enumerate(names, 1)]


def _fit(line: str, number: int, height: int, width: int, files: tuple[Path, ...]) -> Label:
    """Return the line, smaller if it is long, or the number if no font has all letters or they would be too small."""
    largest = max(SMALLEST, height // 20)
    font = find_font(line, files)
    if font is not None:
        for size in range(largest, SMALLEST - 1, -1):
            sized = font.font_variant(size=size)
            if PLACE[0] + sized.getbbox(line, stroke_width=STROKE)[2] <= width:
                return Label(line, sized)
    return Label(str(number), _default_font(largest))


def legend(names: list[str], labels: list[Label]) -> str:
    """Return a text that lists whose each picture and mask is, and explains labels that are numbers."""
    text = ", ".join(f"{number} {_one_line(name)}" for number, name in enumerate(names, 1))
    if all(label.text == _one_line(name) for name, label in zip(names, labels, strict=True)):
        return text
    return (
        f"{text}. The heat maps have numbers where a name is too long for them or no font on ComfyUI's machine has all its"
        " letters. For those, install one there, such as Noto Sans CJK, and restart ComfyUI."
    )


@functools.cache
def font_files() -> tuple[Path, ...]:
    """Return the fonts that come with ComfyUI's page or with the system, upright ones of normal weight first."""
    page = importlib.util.find_spec("comfyui_frontend_package")
    folders = [Path(place) / "static" / "fonts" for place in (page and page.submodule_search_locations) or ()]
    folders += [Path(os.path.expandvars(os.path.expanduser(folder))) for folder in FOLDERS]
    files = [Path(path) / name for folder in folders for path, _, names in os.walk(folder) for name in sorted(names)]
    # macOS's font of last resort has a box for everything.
    fonts = [file for file in files if file.suffix.lower() in KINDS and "lastresort" not in file.stem.lower()]
    return tuple(sorted(fonts, key=lambda file: STYLED.search(file.stem) is not None))


@functools.cache
def find_font(text: str, files: tuple[Path, ...]) -> FreeTypeFont | None:
    """Return PIL's own font if it has every letter of the text, else the first such font of `files`, else None."""
    default = _default_font(TRIED)
    if _has_letters(default, text):
        return default
    if _needs_shaping(text) and not features.check("raqm"):
        return None
    for file in files:
        try:
            # The plain layout: an engine would hide a missing letter or put a mark beside it.
            if _has_letters(ImageFont.truetype(file, TRIED, layout_engine=Layout.BASIC), text):
                return ImageFont.truetype(file, TRIED)
        except OSError:
            continue  # not a font, or bitmaps of another size
    return None


def _default_font(size: int) -> FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont)
    return font


def _has_letters(font: FreeTypeFont, text: str) -> bool:
    """Return whether every letter is drawn, and none as the font's sign for a missing letter."""
    missing = _draw(font, "\U0010ffff")
    return all(
        _draw(font, letter) != missing and (any(_draw(font, letter)[1]) or _is_invisible(letter))
        for letter in text
        if not letter.isspace()
    )


def _draw(font: FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def _is_invisible(letter: str) -> bool:
    """Return whether this is a joiner or variation selector, which only changes the letters beside it."""
    return unicodedata.category(letter) in ("Cf", "Mn")


def _needs_shaping(text: str) -> bool:
    """Return whether letters join or change places: right to left, or with vowels around a consonant."""
    return any(unicodedata.bidirectional(char) in ("R", "AL") or unicodedata.category(char) == "Mc" for char in text)


def _one_line(name: str) -> str:
    """Return the name without line breaks and other controls, with accents composed where possible."""
    spaced = "".join(" " if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in name)
    return unicodedata.normalize("NFC", spaced)
