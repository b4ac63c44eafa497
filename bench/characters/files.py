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

from .landed import AUTOENCODER, BASE, LORAS, check, file_of, require
from .world import Character

CHECKPOINT = "loraclr_characters.safetensors"
RECIPE = "1"  # raise it whenever a file of the same weights would come out different

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
    pictures = require(AUTOENCODER).weights
    for name, part in (("encoder.", taesd.taesd_encoder), ("decoder.", taesd.taesd_decoder)):
        part.load_state_dict({key.removeprefix(name): pictures[key] for key in pictures if key.startswith(name)})
    return small_models.checkpoint(unet, small_models.damped_text_encoder(), taesd)


def load() -> World:
    """Return the checkpoint as the stock loader gives it, made anew where other weights were landed."""
    said = {"modelspec.title": "LoRACLR characters"}
    for stage in (AUTOENCODER, BASE):
        check(stage)
    small_models.ensure(_path("checkpoints", CHECKPOINT), _recipe(AUTOENCODER, BASE), lambda: (checkpoint(), said))
    return World(*nodes.CheckpointLoaderSimple().load_checkpoint(CHECKPOINT))


def ensure_lora(concept: Character) -> str:
    """Write a landed LoRA into the host's folder of LoRAs, unless it is there, and return its file name."""
    check(concept.name, LORAS)
    name, said = f"loraclr_characters_{concept.name}.safetensors", {"modelspec.trigger_phrase": concept.trigger}
    small_models.ensure(_path("loras", name), _recipe(concept.name), lambda: (require(concept.name).weights, said))
    return name


def _recipe(*names: str) -> str:
    """Return what changes with what is landed under these names."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(file_of(name).read_bytes())
    return f"{RECIPE}-{digest.hexdigest()[:16]}"


def _path(folder: str, name: str) -> Path:
    return Path(folder_paths.get_folder_paths(folder)[0]) / name
