"""Measures the pack and ends with one line `RESULT {json}`.

    python3 tools/host.py bench [section …]            # measure; without names all but “scale”, “files”, “sdxl” and “picture”
    python3 tools/host.py bench shapes base [steps]    # train the shapes world, stage by stage (bench/shapes/)
    python3 tools/host.py bench characters STAGE [steps]  # train the world of characters, stage by stage (bench/characters/)
    python3 tools/host.py bench quality [row …]        # score the methods on it (quality/)
    python3 tools/host.py bench quality masks          # score the sampler's masks by themselves (quality/masks.py)
    python3 tools/host.py bench quality training       # train concepts and score what their LoRAs leave alone (quality/training/)
    python3 tools/host.py bench faults [runs]          # hundreds of runs in one server, some cancelled (faults.py)
    python3 tools/host.py bench cuda                   # real sizes on a CUDA device (on_cuda.py)
    python3 tools/host.py bench digests FILE           # whether a change of the code changed what it makes (digests.py)

Sections are modules of this folder with `run() -> dict`, whose keys go into the result. Tables go to stdout, progress to
stderr. Figures are ratios within one run, so they compare between machines.
"""
# ruff: noqa: E402  (the host can be imported only after its folder and its device are settled)

import importlib
import json
import os
import sys
from pathlib import Path

SECTIONS = ["solve", "capture", "distillation", "sampling", "samplers", "training"]
LONG = ["scale", "files", "sdxl", "picture"]  # only when named
# The first words of a command -> the module whose `main` takes the others.
COMMANDS = {
    ("shapes",): "shapes.train",
    ("quality", "masks"): "quality.masks",
    ("quality", "training"): "quality.training",
    ("quality",): "quality",
    ("digests",): "digests",
    ("faults",): "faults",
    ("characters",): "characters.train",
    ("cuda",): "on_cuda",
}

sys.path[:0] = [os.environ["COMFYUI_PATH"], str(Path(__file__).resolve().parent.parent / "tools")]

import comfy.options

comfy.options.enable_args_parsing(False)

import vram

vram.settle()  # before the rest of the host is imported

import pack
import torch

pack.load()
vram.start()


def main(names: list[str]) -> None:
    """Run the command that `names` begins with, or else measure the named sections."""
    for words, module in COMMANDS.items():
        if tuple(names[: len(words)]) == words:
            importlib.import_module(module).main(names[len(words) :])
            return
    unknown = sorted(set(names) - {*SECTIONS, *LONG})
    if unknown:
        sys.exit(f"bench: there is no section {', '.join(unknown)}; choose from {', '.join([*SECTIONS, *LONG])}")
    result: dict[str, dict] = {}
    for name in names or SECTIONS:
        with torch.inference_mode():  # as ComfyUI runs nodes
            add(result, importlib.import_module(name).run())
    print("RESULT", json.dumps(result))


def add(result: dict, section: dict) -> None:
    """Figures of one thing may come from several sections."""
    for key, value in section.items():
        if isinstance(value, dict):
            add(result.setdefault(key, {}), value)
        else:
            result[key] = value


if __name__ == "__main__":
    main(sys.argv[1:])
