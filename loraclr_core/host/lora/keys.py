"""The names in a merged LoRA file, which any ComfyUI reads and, for SD1.5 and SDXL, any kohya tool too."""

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...lowrank import LowRank

# Architectures with kohya names, by ComfyUI's configuration class, and the trainers' prefixes for text encoders there.
KOHYA_TEXT = {"SD15": ("lora_te_",), "SD20": ("lora_te_",), "SDXL": ("lora_te1_", "lora_te2_")}


def architecture(model: ModelPatcher) -> str:
    """Return ComfyUI's name for the model's configuration: SD15, SDXL, Flux, …"""
    return type(model.model.model_config).__name__


class Names:
    """Maps the keys of a model's and a text encoder's weights to LoRA names."""

    def __init__(self, model: ModelPatcher, clip):
        self.family = architecture(model)
        self.model_names = _inverse(comfy.lora.model_lora_keys_unet(model.model, {}))
        self.clip_names = _inverse(comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}))

    def name(self, key: str) -> str:
        """Return the LoRA name of a weight. Raises KeyError where the stock loader has none."""
        if key in self.model_names:
            names, generic = self.model_names[key], key.removesuffix(".weight")
            internal = "lora_unet_" + generic.removeprefix("diffusion_model.").replace(".", "_")
            kohya = [name for name in names if name.startswith("lora_unet_")]
            if self.family == "SDXL":
                return internal
            if self.family in KOHYA_TEXT:
                # Trainers name SD1.5 and SD2 layers after diffusers' blocks.
                return next((name for name in kohya if name != internal), internal)
            return generic
        names = self.clip_names[key]
        kohya = [name for name in names if name.startswith(KOHYA_TEXT.get(self.family, ()))]
        return next(iter(kohya), f"text_encoders.{key.removesuffix('.weight')}")

    def factors(self, key: str, delta: LowRank, shape: torch.Size) -> dict[str, Tensor]:
        """Return the tensors of a difference as two factors, or as the difference itself where that is no larger."""
        if delta.rank == 0:
            return {}
        if delta.up.numel() + delta.down.numel() >= shape.numel():
            return self.difference(key, delta.dense().reshape(shape))
        name = self.name(key)
        up, down = as_stored(delta, shape[1:])
        alpha = torch.tensor(float(delta.rank))
        return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": alpha}

    def difference(self, key: str, difference: Tensor) -> dict[str, Tensor]:
        """Return the tensor of a dense difference, by its LoRA name."""
        if key.endswith(".bias"):
            return {f"{self.name(key.removesuffix('.bias') + '.weight')}.diff_b": difference.contiguous()}
        return {f"{self.name(key)}.diff": difference.contiguous()}


def _inverse(key_map: dict) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name, target in key_map.items():
        if isinstance(target, str):  # tuples address a slice of a weight
            names.setdefault(target, []).append(name)
    return names


def as_stored(delta: LowRank, kernel: torch.Size) -> tuple[Tensor, Tensor]:
    """Return up and down as a file holds them. kernel: the shape of the weight after its first dimension."""
    up = delta.up.reshape(*delta.up.shape, *(1 for _ in kernel[1:])).contiguous()
    return up, delta.down.reshape(delta.rank, *kernel).contiguous()
