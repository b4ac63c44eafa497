"""SD1.5 at full size with random weights, and LoRAs for it."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import comfy.model_detection
import comfy.model_management
import comfy.sd
import safetensors.torch
import torch
from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.model_base import BaseModel
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.sd1_clip import SD1ClipModel
from comfy.supported_models import SD15
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.host.lora import file as lora_file
from loraclr.loraclr_core.host.lora.keys import Names
from loraclr.loraclr_core.host.merge.merge import Keeping, MergeSettings
from loraclr.loraclr_core.host.merge.target import CaptureSettings
from loraclr.loraclr_core.lowrank import LowRank
from torch import Tensor, nn

RANK = 16
# ‖ΔW‖ / ‖W‖ of a trained LoRA.
STRENGTHS = (0.05, 0.10)

# SD1.5's UNet as the host's detection describes it to `model_config_from_unet_config`.
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "use_temporal_attention": False,
    "legacy": False,
}
UNET_PARAMETERS = 859_520_964


def exact_merge(capture: CaptureSettings, keeping: Keeping = "in memory") -> MergeSettings:
    """As the merge node's defaults have it, with the text encoder."""
    return MergeSettings(capture=capture, captures=keeping)


def say(message: str) -> None:
    print(f"bench: {message}", file=sys.stderr, flush=True)


def sd15(device: str, dtype: torch.dtype = torch.float32) -> tuple[BaseModel, SD15]:
    """SD1.5's diffusion model, its weights not set."""
    config = comfy.model_detection.model_config_from_unet_config(UNET_CONFIG, {})
    assert isinstance(config, SD15)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, device=device)
    parameters = sum(p.numel() for p in model.diffusion_model.parameters())
    if parameters != UNET_PARAMETERS:
        raise RuntimeError(f"this is not SD1.5's UNet: it has {parameters} parameters instead of {UNET_PARAMETERS}")
    return model, config


def lora_layers(model: nn.Module, text_encoder: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that LoRA trainers train, by their names in the host."""
    for name, block in model.named_modules():
        if isinstance(block, SpatialTransformer | DoubleStreamBlock | SingleStreamBlock):
            yield from ((f"{name}.{inner}", m) for inner, m in block.named_modules() if is_matrix(m))
    yield from ((name, m) for name, m in text_encoder.named_modules() if ".layers." in name and is_matrix(m))


def is_matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


def layer_shapes() -> Counter[tuple[int, int]]:
    """(in, out) -> how many layers of SD1.5 have that shape."""
    layers = lora_layers(sd15("meta")[0], SD1ClipModel(device="meta"))
    return Counter((module.weight.shape[1], module.weight.shape[0]) for _, module in layers)


def random_sd15(seed: int, dtype: torch.dtype = torch.float32) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """SD1.5's diffusion model and text encoder, built by the host."""
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model, config = sd15("cpu", dtype)
    patcher = CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)
    clip = comfy.sd.CLIP(config.clip_target())
    fill(seed, model.diffusion_model, clip.cond_stage_model)
    return patcher, clip


def fill(seed: int, *modules: nn.Module) -> None:
    """Seeded weights that keep what passes finite."""
    generator = torch.Generator().manual_seed(seed)
    for module in modules:
        for name, weight in module.named_parameters():
            if weight.ndim <= 1:
                weight.data.fill_(float(name.endswith("weight")))
            else:
                weight.data.normal_(0.0, 0.5 * weight[0].numel() ** -0.5, generator=generator)


def of_strength(delta: LowRank, weight: Tensor, generator: torch.Generator) -> LowRank:
    low, high = STRENGTHS
    strength = low + (high - low) * float(torch.rand((), generator=generator))
    return delta.scaled(float(strength * weight.norm() / delta.norm()))


def random_concept(model: ModelPatcher, clip, folder: Path, index: int) -> Concept:
    """A LoRA of random factors on every layer that trainers train, as a kohya file in half precision."""
    generator = torch.Generator().manual_seed(100 + index)
    names = Names(model, clip)
    tensors: dict[str, Tensor] = {}
    for name, module in lora_layers(model.model, clip.cond_stage_model):
        weight = module.weight.flatten(1)
        up, down = (torch.randn(*s, generator=generator) for s in ((weight.shape[0], RANK), (RANK, weight.shape[1])))
        delta = of_strength(LowRank(up, down / weight.shape[1] ** 0.5), weight, generator)
        tensors |= names.factors(f"{name}.weight", delta, module.weight.shape)
    path = folder / f"concept{index}.safetensors"
    safetensors.torch.save_file({key: tensor.half() for key, tensor in tensors.items()}, path)
    return Concept(f"c{index}", f"sks{index}", "thing", path.name, path, lora_file.sha256(path), 1.0, 1.0)
