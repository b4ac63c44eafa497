"""Writes the pictures of README, the help pages and the templates, from what the page's tests kept while they ran.

make pictures
"""

import sys

import workflows
from PIL import Image
from workflows import ROOT

SHOTS = ROOT / ".host" / "screenshots"
HELP = ROOT / "web" / "docs" / "pictures"
NODES = ("LoadConceptLoRA", "Merge", "SaveMergedLoRA", "CLoRASampler", "CLoRAMaps")
TO_WRITE = {
    **{SHOTS / f"LoRACLR_{name}_nodes2.png": HELP / f"LoRACLR_{name}.jpg" for name in NODES},
    **{SHOTS / f"template_{name}.png": workflows.FOLDER / f"{name}.jpg" for name in workflows.WORKFLOWS},
}
WIDEST, SMALLEST = 720, 256  # pixels


def main() -> None:
    missing = [str(shot) for shot in TO_WRITE if not shot.exists()]
    if missing:
        sys.exit("pictures: run `make pictures`; these are missing:\n  " + "\n  ".join(missing))
    for shot, path in TO_WRITE.items():
        picture = Image.open(shot).convert("RGB")
        scale = min(WIDEST / picture.width, max(1, SMALLEST / picture.height))
        size = (round(picture.width * scale), round(picture.height * scale))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize(size, Image.Resampling.LANCZOS).save(path, quality=85, optimize=True)
        print(f"wrote: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
