"""Small ControlNets of random weights for small models, by ComfyUI's own classes: what a template's loader of one gives."""

import functools
from collections.abc import Callable

import architectures
import comfy.cldm.cldm
import comfy.controlnet
import comfy.latent_formats
import comfy.ldm.flux.controlnet
import comfy.ldm.lumina.controlnet
import comfy.ldm.qwen_image.controlnet
import comfy.ops
import torch
from architectures import ARCHITECTURES, HEADS, OTHERS, ROTATED, TRANSFORMER_WIDTH, Z_IMAGE_WIDTH
from comfy.model_patcher import CoreModelPatcher
from torch import nn

CPU = torch.device("cpu")
UNION = 8  # controls of the file for SDXL
MADE = {"operations": comfy.ops.manual_cast, "dtype": torch.float32, "device": CPU}


def _filled(network: nn.Module) -> nn.Module:
    """Seeded random weights, for embeddings of tasks, too."""
    architectures.fill(network, 5)
    return network.eval()


def _sdxl() -> comfy.controlnet.ControlNet:
    sizes = dict(OTHERS["SDXL, wide"].sizes)
    for name in ("out_channels", "transformer_depth_output"):
        del sizes[name]
    network = comfy.cldm.cldm.ControlNet(
        **sizes, num_head_channels=64, hint_channels=3, union_controlnet_num_control_type=UNION, **MADE
    )
    return comfy.controlnet.ControlNet(_filled(network), load_device=CPU)


def _flux() -> comfy.controlnet.ControlNet:
    sizes = ARCHITECTURES["Flux"].sizes | {"depth_single_blocks": 0}
    network = comfy.ldm.flux.controlnet.ControlNetFlux(latent_input=True, control_latent_channels=16, **sizes, **MADE)
    how = {"compression_ratio": 1, "latent_format": comfy.latent_formats.Flux(), "extra_conds": ["y", "guidance"]}
    return comfy.controlnet.ControlNet(_filled(network), load_device=CPU, **how)


def _qwen() -> comfy.controlnet.ControlNet:
    sizes = {"inner_dim": TRANSFORMER_WIDTH, "num_attention_heads": HEADS, "attention_head_dim": sum(ROTATED)}
    network = comfy.ldm.qwen_image.controlnet.QwenImageFunControlNetModel(**sizes, **MADE)
    how = {"compression_ratio": 1, "latent_format": comfy.latent_formats.Wan21(), "extra_conds": []}
    return comfy.controlnet.QwenFunControlNet(_filled(network), load_device=CPU, **how)


def _z_image() -> CoreModelPatcher:
    heads = Z_IMAGE_WIDTH // sum(ROTATED)
    network = comfy.ldm.lumina.controlnet.ZImage_Control(dim=Z_IMAGE_WIDTH, n_heads=heads, n_kv_heads=heads, **MADE)
    return CoreModelPatcher(_filled(network), load_device=CPU, offload_device=CPU)


CONTROLS: dict[str, Callable[[], object]] = {
    "SDXL, wide": _sdxl,
    "Flux": _flux,
    "Z-Image": _z_image,
    "Qwen-Image": _qwen,
}


@functools.cache
def build(name: str) -> object:
    """Return the control for a small model, the same object at each call."""
    return CONTROLS[name]()
