"""Writes the pictures of README, the help pages and the templates, from what the page's tests kept while they ran.

make pictures
"""

import sys
from pathlib import Path

import workflows
from PIL import Image
from thumbnails import further_thumbnail, thumbnail
from workflows import ROOT

SHOTS = ROOT / ".host" / "screenshots"
HELP = ROOT / "web" / "docs" / "pictures"
NODES = ("LoadConceptLoRA", "ConceptArea", "Merge", "SaveMergedLoRA", "CLoRASampler", "CLoRAMaps", "TrainConcept")
WIDEST = 720  # pixels


def main() -> None:
    try:
        pictures = {HELP / f"LoRACLR_{name}.jpg": _narrow(_shot(f"LoRACLR_{name}_nodes2")) for name in NODES}
        for name in workflows.WORKFLOWS:
            pictures[workflows.FOLDER / f"{name}.jpg"] = thumbnail(
                name, lambda title, name=name: _shot(f"template_{name}_{title}")
            )
        for name in workflows.FURTHER:
            pictures[workflows.FOLDER / f"{name}.jpg"] = further_thumbnail(
                name, lambda title: _shot(f"template_{workflows.TWO}_{title}")
            )
    except FileNotFoundError as error:
        sys.exit(f"pictures: run `make pictures`; this is missing: {error.filename}")
    for path, picture in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=85, optimize=True)
        print(f"wrote: {path.relative_to(ROOT)}")


def _shot(name: str) -> Image.Image:
    return Image.open(Path(SHOTS / f"{name}.png")).convert("RGB")


def _narrow(picture: Image.Image) -> Image.Image:
    """Return a picture that is no wider than a help page needs."""
    scale = min(1, WIDEST / picture.width)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
