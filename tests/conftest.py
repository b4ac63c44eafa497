"""The real host, in this process: ComfyUI on the CPU, with the pack loaded by ComfyUI's own loader."""

import asyncio
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ""))

if not (COMFYUI / "main.py").is_file():
    raise pytest.UsageError("These tests run inside a real ComfyUI: start them with `make test`.")

sys.path[:0] = [str(COMFYUI), str(ROOT / "tools"), str(Path(__file__).parent)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing(False)

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import demo_assets  # noqa: E402
import folder_paths  # noqa: E402
import nodes  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from comfy.sd import CLIP, VAE  # noqa: E402

PACK = COMFYUI / "custom_nodes" / "loraclr"
if not asyncio.run(nodes.load_custom_node(str(PACK))):
    raise pytest.UsageError(f"ComfyUI could not load the pack from {PACK}; see the log above.")
# ComfyUI imports a pack under its path; tests know it as `loraclr`.
host_name = str(PACK).replace(".", "_x_")
for name, module in list(sys.modules.items()):
    if name == host_name or name.startswith(f"{host_name}."):
        sys.modules["loraclr" + name.removeprefix(host_name)] = module


class Demo(NamedTuple):
    """The demo checkpoint, as the stock loader gives it."""

    model: ModelPatcher
    clip: CLIP
    vae: VAE


@pytest.fixture(scope="session")
def demo() -> Demo:
    demo_assets.write_assets(*(Path(folder_paths.get_folder_paths(folder)[0]) for folder in ("checkpoints", "loras")))
    with torch.inference_mode():
        return Demo(*nodes.CheckpointLoaderSimple().load_checkpoint("loraclr_demo.safetensors"))


@pytest.fixture(autouse=True)
def _as_the_executor_runs_nodes():
    """ComfyUI runs nodes in inference mode, whose tensors autograd refuses."""
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
