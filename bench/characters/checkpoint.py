"""The world's checkpoint, of SD1.5's form: its landed U-Net and autoencoder, and the text encoder from a seed."""

import hashlib
from pathlib import Path

import folder_paths
import nodes
import small_models
from comfy.taesd.taesd import TAESD
from pack import World
from torch import Tensor

from . import autoencoder, base
from .landed import file_of

NAME = "loraclr_characters.safetensors"


def weights() -> dict[str, Tensor]:
    """Return a state dict for the stock CheckpointLoaderSimple."""
    unet, taesd = small_models.make_unet(**base.UNET), TAESD()
    unet.load_state_dict(base.trained().weights)
    pictures, _ = autoencoder.trained()
    taesd.taesd_encoder.load_state_dict(pictures.encoder.state_dict())
    taesd.taesd_decoder.load_state_dict(pictures.decoder.state_dict())
    return small_models.checkpoint(unet, small_models.damped_text_encoder(), taesd)


def load() -> World:
    """Return the checkpoint as the stock loader gives it, made anew where other weights were landed."""
    digest = hashlib.sha256()
    for stage in (autoencoder, base):
        stage.trained()  # ends the run where it is not
        digest.update(file_of(stage.STAGE).read_bytes())
    path = Path(folder_paths.get_folder_paths("checkpoints")[0]) / NAME
    small_models.ensure(path, digest.hexdigest()[:16], lambda: (weights(), {"modelspec.title": "LoRACLR characters"}))
    return World(*nodes.CheckpointLoaderSimple().load_checkpoint(NAME))
