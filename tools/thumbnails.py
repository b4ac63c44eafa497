"""The templates' own pictures in the template browser, drawn from what their runs have made: each looks like what it teaches."""

from collections.abc import Callable

import workflows
from PIL import Image, ImageDraw, ImageFont

SIDE = 384  # pixels, of a square
CAPTION, LABEL = 34, 48  # font sizes: the browser shows a thumbnail at two thirds of its size, or less
BAND = 56  # height of a caption
DARK, LIGHT = (24, 26, 30), (245, 245, 240)
BLUE, ORANGE, GREEN = (0, 114, 178), (230, 159, 0), (0, 158, 115)  # apart for colour-blind readers, too
TRAINED = (("before training", "before"), ("with trigger", "trained"))
Shot = Callable[[str], Image.Image]  # a picture that the workflow saved, by its node's title and number


def thumbnail(name: str, shot: Shot) -> Image.Image:
    """Return a template's thumbnail."""
    return DRAWINGS[name](shot)


def further_thumbnail(name: str, shot: Shot) -> Image.Image:
    """Return the thumbnail of a template for which the demo has no models. shot: of the first one."""
    return _captioned([[shot("Picture 1")]], name.removeprefix("two characters ").removeprefix("on "))


def _two(shot: Shot) -> Image.Image:
    return _captioned([[shot("Picture 1")]], "2 characters, 1 picture")


def _areas(shot: Shot) -> Image.Image:
    picture = shot("Picture 1").resize((SIDE, SIDE))
    for left, colour in ((0, BLUE), (SIDE // 2, ORANGE)):
        half = (left, 0, left + SIDE // 2, SIDE)
        picture.paste(Image.blend(picture.crop(half), Image.new("RGB", (SIDE // 2, SIDE), colour), 0.2), half)
        ImageDraw.Draw(picture).rectangle((left + 4, 4, left + SIDE // 2 - 5, SIDE - 5), outline=LIGHT, width=4)
    return _captioned([[picture]], "each in its area")


def _paint(shot: Shot) -> Image.Image:
    before, after = _labelled(shot("Before 1"), "before"), _labelled(shot("Picture 1"), "after")
    return _captioned([[before, after]], "paint into a picture")


def _maps(shot: Shot) -> Image.Image:
    rows = [[shot(f"{title} {number}") for number in (1, 2)] for title in ("Masks", "Heat maps")]
    return _captioned(rows, "see where each is drawn")


def _merge(shot: Shot) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE - BAND), DARK)
    for top, colour in ((42, BLUE), (132, ORANGE), (222, GREEN)):
        _file(picture, (24, top), "LoRA", colour)
        ImageDraw.Draw(picture).line((150, top + 32, 214, 164), fill=LIGHT, width=6)
    ImageDraw.Draw(picture).polygon([(236, 164), (210, 148), (210, 180)], fill=LIGHT)
    _file(picture, (244, 132), "1 LoRA", (150, 90, 140))
    return _captioned([[picture]], "3 LoRAs become 1")


def _reuse(shot: Shot) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE - BAND), DARK)
    _file(picture, (14, 132), "1 LoRA", (150, 90, 140))
    ImageDraw.Draw(picture).line((138, 164, 166, 164), fill=LIGHT, width=6)
    ImageDraw.Draw(picture).polygon([(186, 164), (162, 148), (162, 180)], fill=LIGHT)
    picture.paste(shot("Picture 1").resize((188, 188)), (190, 70))
    return _captioned([[picture]], "use the merged LoRA")


def _compare(shot: Shot) -> Image.Image:
    """Return the pictures in a row, with the names of the ways: README shows it, too."""
    ways = ("stacked", "merged", "sampler")
    panels = [_captioned([[shot(f"Picture: {way} 1")]], way, (240, 240 + BAND)) for way in ways]
    row = Image.new("RGB", (sum(panel.width for panel in panels), panels[0].height), DARK)
    for number, panel in enumerate(panels):
        row.paste(panel, (number * panel.width, 0))
    return row


def _train(shot: Shot) -> Image.Image:
    pair = [_labelled(shot(f"Picture: {title} 1"), label) for title, label in TRAINED]
    return _captioned([pair], "train a character")


def _train_two(shot: Shot) -> Image.Image:
    return _captioned([[shot("Picture: both 1")]], "train 2, draw both")


DRAWINGS = {
    workflows.TWO: _two,
    workflows.AREAS: _areas,
    workflows.PAINT: _paint,
    workflows.MAPS: _maps,
    workflows.MERGE: _merge,
    workflows.REUSE: _reuse,
    workflows.COMPARE: _compare,
    workflows.TRAIN: _train,
    workflows.TRAIN_TWO: _train_two,
}


def _captioned(rows: list[list[Image.Image]], caption: str, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Return pictures in rows above a caption, each as large as its cell allows."""
    width, height = size
    result = Image.new("RGB", size, DARK)
    cell_height = (height - BAND) // len(rows)
    for row, pictures in enumerate(rows):
        cell_width = width // len(pictures)
        for column, picture in enumerate(pictures):
            scale = min(cell_width / picture.width, cell_height / picture.height)
            scaled = picture.resize(
                (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
            )
            left = column * cell_width + (cell_width - scaled.width) // 2
            result.paste(scaled, (left, row * cell_height + (cell_height - scaled.height) // 2))
    _write(result, caption, (width / 2, height - BAND / 2), CAPTION)
    return result


def _labelled(picture: Image.Image, label: str) -> Image.Image:
    """Return a copy at the side of a cell with a label at its top."""
    picture = picture.resize((SIDE, SIDE))
    _write(picture, label, (SIDE / 2, 40), LABEL)
    return picture


def _file(picture: Image.Image, at: tuple[int, int], name: str, colour: tuple[int, int, int]) -> None:
    """Draw a file with its name."""
    left, top = at
    ImageDraw.Draw(picture).rounded_rectangle((left, top, left + 124, top + 64), 12, fill=colour)
    _write(picture, name, (left + 62, top + 32), 30)


def _write(picture: Image.Image, text: str, middle: tuple[float, float], size: int) -> None:
    """Write a line around a point, smaller where it would not fit the picture's width."""
    font = ImageFont.load_default(size)
    while font.getlength(text) > picture.width - 12:
        size -= 1
        font = ImageFont.load_default(size)
    ImageDraw.Draw(picture).text(middle, text, fill=LIGHT, font=font, anchor="mm", stroke_width=2, stroke_fill=DARK)
