"""Small models of SD1.5's form, which the stock loaders take: their parts, weights kept in 8 bits, and files for the host."""
# ruff: noqa: E402  (the host can be imported only after its folder and its device are settled)

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

if "COMFYUI_PATH" in os.environ:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])

from comfy.cli_args import args

args.cpu = args.cpu or not torch.cuda.is_available()  # before the rest of the host is imported

import comfy.clip_model
import comfy.latent_formats
import comfy.ops
import comfy.utils
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD

RECIPE_KEY = "loraclr_demo_recipe"

# One level and no middle block: 18.7 million parameters.
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": -2,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
}
TEXT_ENCODER = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
TEXT_SEED = 1
RESIDUAL_ENDS = ("to_out.0", "ff.net.2", "proj_out", "out_layers.3", "out_proj", "mlp.fc2", "conv.4")
RESIDUAL_GAIN, POSITION_GAIN = 0.1, 0.3


def make_unet(device: str = "cpu", **config) -> UNetModel:
    """Return a U-Net without weights. config: what differs from `UNET`."""
    operations = comfy.ops.disable_weight_init
    return UNetModel(**{**UNET, **config}, dtype=torch.float32, device=device, operations=operations).eval()


def make_text_encoder(device: str = "cpu", **config) -> comfy.clip_model.CLIPTextModel:
    """Return a text encoder without weights. config: what differs from `TEXT_ENCODER`."""
    operations = comfy.ops.disable_weight_init
    return comfy.clip_model.CLIPTextModel({**TEXT_ENCODER, **config}, torch.float32, device, operations).eval()


@torch.no_grad()
def damped_text_encoder() -> comfy.clip_model.CLIPTextModel:
    """Return CLIP-L from a seed, whose branches and positions are damped so that a token carries little but itself."""
    model = make_text_encoder()
    fill(model, TEXT_SEED, RESIDUAL_GAIN)
    model.text_model.embeddings.position_embedding.weight.mul_(POSITION_GAIN)
    return model


@torch.no_grad()
def fill(model: nn.Module, seed: int, residual_gain: float) -> None:
    """Set weights from a seed that keep the size of what passes through; branches beside the residual stream are damped."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if weight.ndim == 1:
            weight.fill_(1.0 if kind == "weight" else 0.0)
        elif weight.ndim > 1:
            gain = 1.0 if "embedding" in name else weight[0].numel() ** -0.5
            weight.normal_(0.0, gain * (residual_gain if module.endswith(RESIDUAL_ENDS) else 1.0), generator=generator)


def lora_layers(unet: nn.Module, **config) -> dict[str, str]:
    """Return the diffusers name of every layer that LoRA trainers touch -> the host's name."""
    weights = unet.state_dict()
    # The host's map comes from sets, in another order in every process; who draws random factors layer by layer needs one.
    return {
        name.removesuffix(".weight"): key.removesuffix(".weight")
        for name, key in sorted(comfy.utils.unet_to_diffusers({**UNET, **config}).items())
        if key in weights and "attentions" in name and name.endswith(".weight") and "norm" not in name
    }


# --- stored weights --------------------------------------------------------------------------------------------------


def store(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Store trained weights: matrices in 8 bits with a scale per row, everything else in half precision."""
    packed = {}
    for key, tensor in state.items():
        tensor = tensor.detach().cpu().float().contiguous()
        if tensor.ndim < 2:
            packed[key] = tensor.half()
            continue
        scale = tensor.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
        packed[key] = (tensor / scale.view(-1, *[1] * (tensor.ndim - 1))).round().to(torch.int8)
        packed[f"{key}.scale"] = scale
    write(path, packed, metadata)


def stored(path: Path) -> dict[str, Tensor]:
    """Return what `store` wrote, in float32."""
    tensors = load_file(path)
    scales = {key: tensors.pop(f"{key}.scale") for key in [*tensors] if f"{key}.scale" in tensors}
    return {
        key: tensor.float() * (scales[key].view(-1, *[1] * (tensor.ndim - 1)) if key in scales else 1)
        for key, tensor in tensors.items()
    }


# --- files for the host ----------------------------------------------------------------------------------------------


def checkpoint(unet: nn.Module, text_encoder: comfy.clip_model.CLIPTextModel, taesd: TAESD) -> dict[str, Tensor]:
    """Return a state dict for the stock CheckpointLoaderSimple."""
    with torch.no_grad():
        taesd.vae_scale.fill_(comfy.latent_formats.SD15().scale_factor)
    parts = {
        "model.diffusion_model.": unet.state_dict(),
        "first_stage_model.": taesd.state_dict(),
        "cond_stage_model.transformer.": text_encoder.text_model.state_dict(prefix="text_model."),
    }
    return {prefix + key: tensor for prefix, part in parts.items() for key, tensor in part.items()}


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file whole or not at all: under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, scratch, metadata=metadata)
        scratch.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def ensure(path: Path, recipe: str, make: Callable[[], tuple[dict[str, Tensor], dict[str, str]]]) -> None:
    """Write a model file in half precision, unless it is there and of this recipe."""
    if path.exists():
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(RECIPE_KEY) == recipe:
                return
    print(f"models: making {path.name}", file=sys.stderr, flush=True)
    tensors, metadata = make()
    half = {key: tensor.detach().half() for key, tensor in tensors.items()}
    write(path, half, {**metadata, RECIPE_KEY: recipe})
