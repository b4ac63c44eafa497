"""The demo's training pictures: twelve of each of two concepts, alone, with captions, drawn from seeds.

They are folders of ComfyUI's input folder, as the stock node Load Image-Text (from Folder) takes them.
"""

import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import folder_paths
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))

from shapes.world import CONCEPTS, make_scene

COUNT = 12
NAMES = ("ball", "box")


def folder(name: str) -> str:
    """Return the name of a concept's folder within the input folder."""
    return f"loraclr_demo_{name}"


def write_pictures() -> None:
    """Write the pictures and captions that are not there yet."""
    for concept in CONCEPTS:
        if concept.name not in NAMES:
            continue
        root = Path(folder_paths.get_input_directory()) / folder(concept.name)
        root.mkdir(parents=True, exist_ok=True)
        for file, content in training_files(concept):
            if not (root / file).exists() or (root / file).read_bytes() != content:
                (root / file).write_bytes(content)


def training_files(concept) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each picture and of its caption."""
    for number in range(1, COUNT + 1):
        scene = make_scene([concept], random.Random(f"{concept.name} {number}"))
        pixels = (scene.picture().movedim(0, -1) * 255).round().byte().numpy()
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, format="PNG")
        yield f"{number:02}.png", png.getvalue()
        yield f"{number:02}.txt", scene.prompt().encode()
