"""Pictures as vectors, by any image encoder that ComfyUI loads as CLIP vision."""

from collections.abc import Callable

import comfy.model_management
import torch
from comfy.clip_model import clip_preprocess
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

FAMILIES = {
    "clip_vision_model": "CLIP",
    "siglip_vision_model": "SigLIP",
    "siglip2_vision_model": "SigLIP 2",
    "dinov2": "DINOv2",
    "dinov3": "DINOv3",
}
SIZES = {1024: "ViT-L", 1152: "so400m", 1280: "ViT-H", 1536: "ViT-g", 1664: "ViT-bigG"}


def name(config: dict) -> str:
    """Return the name of an encoder with these settings, such as “CLIP ViT-L/14, 224 px”."""
    family = FAMILIES.get(config["model_type"], config["model_type"])
    size = SIZES.get(config["hidden_size"], f"width {config['hidden_size']}")
    pixels = f"{config['image_size']} px" if config["image_size"] > 0 else "any shape"
    return f"{family} {size}/{config['patch_size']}, {pixels}"


def check(encoder: ClipVisionModel) -> None:
    """Raise ValueError for an encoder without one vector per picture."""
    if encoder.config.get("projector_type") is not None:
        raise ValueError(
            "This CLIP vision model is LLaVA's, which has no vector for a whole picture: load another one, such as CLIP"
            " ViT-L, SigLIP or DINOv2."
        )


def encode(encoder: ClipVisionModel, batches: list[Tensor], done: Callable[[], None]) -> Tensor:
    """Return one vector per picture of some batches. `done` is called after each picture.

    Pictures are encoded one by one: a batch then needs no more memory, and equal pictures get equal vectors.
    """
    vectors = []
    for batch in batches:
        for picture in batch.split(1):
            vectors.append(_vector(encoder, picture))
            done()
    return torch.cat(vectors)


def _vector(encoder: ClipVisionModel, picture: Tensor) -> Tensor:
    if encoder.model_type == "dinov3":  # for which ComfyUI 0.30's encode_image fails
        embedding = _encode_dinov3(encoder, picture)
    else:
        embedding = encoder.encode_image(picture)["image_embeds"]
    embedding = embedding.float()
    return embedding.mean(dim=1) if embedding.ndim == 3 else embedding  # SigLIP gives one vector per token


def _encode_dinov3(encoder: ClipVisionModel, picture: Tensor) -> Tensor:
    """Return the class token."""
    comfy.model_management.load_model_gpu(encoder.patcher)
    pixels = clip_preprocess(
        picture.to(encoder.load_device), size=encoder.image_size, mean=encoder.image_mean, std=encoder.image_std
    )
    _, _, class_token, _ = encoder.model(pixel_values=pixels.float())
    return class_token.to(comfy.model_management.intermediate_device())
