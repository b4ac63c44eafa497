"""The world's files for the host: a checkpoint of SD1.5's form, and its concepts' LoRAs, made of what was landed.

The checkpoint holds the landed U-Net and autoencoder, and the text encoder from a seed.
"""

import hashlib
from pathlib import Path

import folder_paths
import nodes
import small_models
from comfy.taesd.taesd import TAESD
from pack import World
from torch import Tensor

from .landed import AUTOENCODER, BASE, LORAS, file_of, require
from .world import Character

CHECKPOINT = "loraclr_characters.safetensors"

# Two levels, of 16×16 and 8×8 places for 128 pixels, and no middle block: 30 million parameters. Attention is in the first
# alone: there the sampler reads it as finely, for the size of the characters, as in SD1.5.
UNET = {
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 0],
    "transformer_depth_output": [1, 1, 0, 0],
    "transformer_depth_middle": -2,
}


def checkpoint() -> dict[str, Tensor]:
    """Return a state dict for the stock CheckpointLoaderSimple."""
    unet, taesd = small_models.make_unet(**UNET), TAESD()
    unet.load_state_dict(require(BASE).weights)
    pictures = {f"taesd_{key}": tensor for key, tensor in require(AUTOENCODER).weights.items()}
    taesd.load_state_dict(taesd.state_dict() | pictures)
    return small_models.checkpoint(unet, small_models.damped_text_encoder(), taesd)


def load() -> World:
    """Return the checkpoint as the stock loader gives it, made anew where other weights were landed."""
    said = {"modelspec.title": "LoRACLR characters"}
    small_models.ensure(_path("checkpoints", CHECKPOINT), _digest(AUTOENCODER, BASE), lambda: (checkpoint(), said))
    return World(*nodes.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT))


def ensure_lora(concept: Character) -> str:
    """Write a landed LoRA into the host's folder of LoRAs, unless it is there, and return its file name."""
    name = f"loraclr_characters_{concept.name}.safetensors"
    weights, said = require(concept.name, LORAS).weights, {"modelspec.trigger_phrase": concept.trigger}
    small_models.ensure(_path("loras", name), _digest(concept.name), lambda: (weights, said))
    return name


def _digest(*stages: str) -> str:
    """Return what changes with what was landed."""
    digest = hashlib.sha256()
    for stage in stages:
        require(stage)
        digest.update(file_of(stage).read_bytes())
    return digest.hexdigest()[:16]


def _path(folder: str, name: str) -> Path:
    return Path(folder_paths.get_folder_paths(folder)[0]) / name
