"""Measures the pack and ends with one line `RESULT {json}`.

    python3 tools/host.py bench [section …]

Sections are modules of this folder with `run() -> dict`, whose keys go into the result; all of them by default. Tables
go to stdout, progress to stderr. Figures are ratios within one run, so they compare between machines.
"""
# ruff: noqa: E402  (the host can be imported only after its folder and its device are settled)

import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

SECTIONS = ["merge", "clora"]
ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, os.environ["COMFYUI_PATH"])

import comfy.options

comfy.options.enable_args_parsing(False)

import torch
from comfy.cli_args import args

args.cpu = not torch.cuda.is_available()  # before the rest of the host is imported


def import_core() -> None:
    """Makes `import loraclr_core` work; the root itself stays off sys.path, where its `nodes` would hide ComfyUI's."""
    folder = ROOT / "loraclr_core"
    spec = importlib.util.spec_from_file_location(
        "loraclr_core", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["loraclr_core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main(names: list[str]) -> None:
    unknown = sorted(set(names) - set(SECTIONS))
    if unknown:
        sys.exit(f"bench: there is no section {', '.join(unknown)}; choose from {', '.join(SECTIONS)}")
    import_core()
    result = {}
    for name in names or SECTIONS:
        with torch.inference_mode():  # as ComfyUI runs nodes
            result |= importlib.import_module(name).run()
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
