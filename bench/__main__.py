"""Measures the pack and ends with one line `RESULT {json}`.

    python3 tools/host.py bench [section …]            # measure; without names all but “scale”, “files” and “sdxl”
    python3 tools/host.py bench shapes base [steps]    # train the shapes world, stage by stage (bench/shapes/)
    python3 tools/host.py bench quality [row …]        # score the methods on it (quality/)
    python3 tools/host.py bench quality training       # train concepts and score what their LoRAs leave alone (quality/training/)
    python3 tools/host.py bench faults [runs]          # hundreds of runs in one server, some cancelled (faults.py)
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
LONG = ["scale", "files", "sdxl"]  # only when named

sys.path[:0] = [os.environ["COMFYUI_PATH"], str(Path(__file__).resolve().parent.parent / "tools")]

import comfy.options

comfy.options.enable_args_parsing(False)

import torch
from comfy.cli_args import args

args.cpu = not torch.cuda.is_available()  # before the rest of the host is imported

import pack

pack.load()


def main(names: list[str]) -> None:
    if names[:1] == ["shapes"]:
        importlib.import_module("shapes.train").main(names[1:])
        return
    if names[:2] == ["quality", "training"]:
        importlib.import_module("quality.training").main(names[2:])
        return
    if names[:1] == ["quality"]:
        importlib.import_module("quality").main(names[1:])
        return
    if names[:1] == ["digests"]:
        importlib.import_module("digests").main(names[1:])
        return
    if names[:1] == ["faults"]:
        print("RESULT", json.dumps(importlib.import_module("faults").run(*map(int, names[1:]))))
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
