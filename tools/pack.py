"""The pack in this process, loaded by the host's own loader: for tests and measurements.

The host must be importable and its arguments settled before this is imported. After `load()`, `import loraclr…` finds the
pack's modules and `run` runs its nodes.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import NamedTuple

# First, as ComfyUI's main.py does: older versions' nodes.py puts comfy/ on the path, whose utils.py hides this package.
import utils.extra_config  # noqa: F401  # isort: skip
import nodes
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from demo_assets import CHECKPOINT, write_assets


def load() -> None:
    folder = Path(os.environ["COMFYUI_PATH"]) / "custom_nodes" / "loraclr"
    if not asyncio.run(nodes.load_custom_node(str(folder))):
        raise RuntimeError(f"ComfyUI could not load the pack from {folder}; see the log above")
    # ComfyUI imports a pack under its path; here it is known as `loraclr`.
    host_name = str(folder).replace(".", "_x_")
    for name, module in list(sys.modules.items()):
        if name == host_name or name.startswith(f"{host_name}."):
            sys.modules["loraclr" + name.removeprefix(host_name)] = module


def node(node_id: str):
    return nodes.NODE_CLASS_MAPPINGS[node_id]


def defaults(node_id: str) -> dict:
    """What a node's widgets hold when it is added."""
    return {i.id: i.default for i in node(node_id).define_schema().inputs if getattr(i, "default", None) is not None}


def run(node_id: str, **inputs) -> tuple:
    """Outputs of one of the pack's nodes, as the executor runs it; widgets that are not given have their defaults.

    A node that takes lists is given them.
    """
    node(node_id).VALIDATE_CLASS()
    values = defaults(node_id)
    if node(node_id).INPUT_IS_LIST:
        values = {name: [value] for name, value in values.items()}
    return node(node_id).PREPARE_CLASS_CLONE(None).execute(**(values | inputs)).args


class World(NamedTuple):
    """A checkpoint, as the stock loader gives it."""

    model: ModelPatcher
    clip: CLIP
    vae: VAE


def demo_models() -> World:
    """Return the demo checkpoint; its LoRAs are in the loras folder."""
    write_assets()
    return World(*nodes.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT))
