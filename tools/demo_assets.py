"""Make the demo's models from fixed seeds: a small checkpoint and three concept LoRAs in three file formats.

    python3 tools/host.py tools/demo_assets.py

The checkpoint has SD1.5's parts and key names at a fraction of its size, so the stock loaders take it. Its weights are
random but for the last convolution of the UNet and of the decoder, which are fitted by least squares: sampling then ends
in soft colours that follow the prompt. A file that is there and of this recipe is kept.
"""
# ruff: noqa: E402  (the host can be imported only after its folder and its device are settled)

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

if "COMFYUI_PATH" in os.environ:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])

from comfy.cli_args import args

args.cpu = args.cpu or not torch.cuda.is_available()  # before the rest of the host is imported

import comfy.clip_model
import comfy.latent_formats
import comfy.ops
import comfy.utils
import folder_paths
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD

RECIPE = "1"  # raise it whenever a file of the same name would come out different
RECIPE_KEY = "loraclr_demo_recipe"

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
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
START_TOKEN, END_TOKEN, WORD_TOKENS = 49406, 49407, 49406

RESIDUAL_ENDS = ("to_out.0", "ff.net.2", "proj_out", "out_layers.3", "out_proj", "mlp.fc2", "conv.4")
RESIDUAL_GAIN = 0.4


def make_unet(device: str = "cpu") -> UNetModel:
    return UNetModel(**UNET, dtype=torch.float32, device=device, operations=comfy.ops.disable_weight_init).eval()


def make_text_encoder(device: str = "cpu") -> comfy.clip_model.CLIPTextModel:
    operations = comfy.ops.disable_weight_init
    return comfy.clip_model.CLIPTextModel(TEXT_ENCODER, torch.float32, device, operations).eval()


@torch.no_grad()
def fill(model: nn.Module, seed: int, residual_gain: float = RESIDUAL_GAIN) -> None:
    """Seeded weights that keep the size of what passes through; branches beside the residual stream are damped."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if weight.ndim == 1:
            weight.fill_(1.0 if kind == "weight" else 0.0)
        elif weight.ndim > 1:
            gain = 1.0 if "embedding" in name else weight[0].numel() ** -0.5
            weight.normal_(0.0, gain * (residual_gain if module.endswith(RESIDUAL_ENDS) else 1.0), generator=generator)


@torch.no_grad()
def fit(
    conv: nn.Conv2d, run: Callable[[Tensor], object], samples: Tensor, targets: Tensor, ridge: float = 1e-3
) -> None:
    """Set a 3×3 convolution to the least-squares map from what reaches it in `run(indices)` to `targets[indices]`."""
    seen: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    size = conv.weight[0].numel() + 1
    gram, cross = torch.zeros(size, size), torch.zeros(size, conv.out_channels)
    for indices in samples.split(8):
        run(indices)
        features = F.unfold(seen.pop(), 3, padding=1).movedim(1, -1).reshape(-1, size - 1)
        features = F.pad(features, (0, 1), value=1.0)
        gram += features.T @ features
        cross += features.T @ targets[indices].movedim(1, -1).reshape(-1, conv.out_channels)
    hook.remove()
    gram += ridge * gram.diagonal().mean() * torch.eye(size)
    solution = torch.linalg.solve(gram, cross).T
    conv.weight.copy_(solution[:, :-1].reshape(conv.weight.shape))
    conv.bias.copy_(solution[:, -1])


def smooth_noise(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(count, channels, 3, 3, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)


@torch.no_grad()
def fit_unet(unet: UNetModel, text_encoder: comfy.clip_model.CLIPTextModel, seed: int, count: int = 128) -> None:
    """Teach the last layer to tell noise from soft colours whose mean follows the text (latents 16×16)."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(WORD_TOKENS, (count, 77), generator=generator)
    words[torch.arange(77) > torch.randint(2, 12, (count, 1), generator=generator)] = END_TOKEN
    words[:, 0] = START_TOKEN
    text = torch.cat([text_encoder(part)[0] for part in words.split(16)])

    colour = text.mean(1) @ torch.randn(768, 4, generator=generator)
    colour = (colour - colour.mean(0)) / colour.std(0)
    clean = 0.5 * smooth_noise(count, 4, 16, generator) + colour[:, :, None, None]

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)
    steps = torch.linspace(0, 999, count).long()
    noise = torch.randn(clean.shape, generator=generator)
    noisy = kept[steps].sqrt()[:, None, None, None] * clean + (1 - kept[steps]).sqrt()[:, None, None, None] * noise

    fit(unet.out[2], lambda i: unet(noisy[i], steps[i].float(), text[i]), torch.arange(count), noise)


@torch.no_grad()
def fit_decoder(taesd: TAESD, seed: int, count: int = 16) -> None:
    """Teach the last layer the colours that SD1.5 latents stand for."""
    latents = smooth_noise(count, 4, 8, torch.Generator().manual_seed(seed))
    to_rgb = torch.tensor(comfy.latent_formats.SD15().latent_rgb_factors)
    colours = torch.einsum("nchw,cr->nrhw", latents, to_rgb) * 0.5 + 0.5
    targets = F.interpolate(colours.clamp(0, 1), scale_factor=8, mode="bilinear")
    decoder = taesd.taesd_decoder
    fit(decoder[-1], lambda i: decoder(latents[i]), torch.arange(count), targets)


def write_checkpoint(path: Path, seed: int = 0) -> None:
    """A checkpoint for the stock CheckpointLoaderSimple, float16, about 305 MB."""
    unet, text_encoder, taesd = make_unet(), make_text_encoder(), TAESD()
    for offset, model in enumerate((unet, text_encoder, taesd)):
        fill(model, seed + offset)
    fit_unet(unet, text_encoder, seed + 3)
    fit_decoder(taesd, seed + 4)
    with torch.no_grad():
        taesd.vae_scale.fill_(comfy.latent_formats.SD15().scale_factor)
    parts = {
        "model.diffusion_model.": unet.state_dict(),
        "first_stage_model.": taesd.state_dict(),
        "cond_stage_model.transformer.": text_encoder.text_model.state_dict(prefix="text_model."),
    }
    tensors = {prefix + key: tensor.half() for prefix, part in parts.items() for key, tensor in part.items()}
    save(path, tensors, {"modelspec.title": "LoRACLR demo checkpoint"})


def lora_layers(text_encoder: bool = True) -> dict[str, torch.Size]:
    """Weight shape of every layer that LoRA trainers touch, by its diffusers name with `unet.` or `text_encoder.`."""
    shapes = {key: tensor.shape for key, tensor in make_unet("meta").state_dict().items()}
    layers = {
        f"unet.{name.removesuffix('.weight')}": shapes[key]
        for name, key in comfy.utils.unet_to_diffusers(UNET).items()
        if "attentions" in name and name.endswith(".weight") and "norm" not in name
    }
    if text_encoder:
        model = make_text_encoder("meta").text_model.encoder
        layers |= {
            f"text_encoder.text_model.encoder.{name}": module.weight.shape
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear)
        }
    return layers


def kohya_name(layer: str) -> str:
    part, _, name = layer.partition(".")
    return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + name.replace(".", "_")


def up_and_down(shape: torch.Size, rank: int, size: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random factors (out, rank) and (rank, in) whose product has entries of standard deviation `size`."""
    std = math.sqrt(size / math.sqrt(rank))
    up = torch.randn(shape[0], rank, generator=generator) * std
    down = torch.randn(rank, math.prod(shape[1:]), generator=generator) * std
    return up, down


def write_lora_kohya(
    path: Path,
    trigger: str = "sks cat",
    rank: int = 8,
    alpha: float = 4.0,
    strength: float = 0.1,
    seed: int = 1,
    text_encoder: bool = True,
) -> None:
    """`lora_unet_….lora_down.weight`; `strength` is the size of a layer's change beside a random layer's own size."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, shape in lora_layers(text_encoder).items():
        size = strength * math.prod(shape[1:]) ** -0.5 * rank / alpha
        up, down = up_and_down(shape, rank, size, generator)
        ones = (1,) * (len(shape) - 2)
        tensors[f"{kohya_name(layer)}.lora_up.weight"] = up.reshape(shape[0], rank, *ones)
        tensors[f"{kohya_name(layer)}.lora_down.weight"] = down.reshape(rank, shape[1], *ones)
        tensors[f"{kohya_name(layer)}.alpha"] = torch.tensor(alpha)
    folder = f"10_{trigger}"
    metadata = {
        "modelspec.title": path.stem,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.trigger_phrase": trigger,
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_output_name": path.stem,
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 10, "img_count": 8}}),
        "ss_tag_frequency": json.dumps({folder: {trigger: 8, "outdoors": 3, "sitting": 2}}),
    }
    save(path, tensors, metadata)


def write_lora_peft(path: Path, rank: int = 6, strength: float = 0.1, seed: int = 2, text_encoder: bool = True) -> None:
    """`unet.….lora_A.weight`, no alpha. The host knows the attention layers of this format as `processor.to_q`."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, shape in lora_layers(text_encoder).items():
        up, down = up_and_down(shape, rank, strength * math.prod(shape[1:]) ** -0.5, generator)
        ones = (1,) * (len(shape) - 2)
        name = layer.replace(".to_", ".processor.to_").removesuffix(".0" if ".to_out" in layer else "")
        tensors[f"{name}.lora_A.weight"] = down.reshape(rank, shape[1], *ones)
        tensors[f"{name}.lora_B.weight"] = up.reshape(shape[0], rank, *ones)
    save(path, tensors, {"format": "pt"})


def write_lora_loha(
    path: Path,
    rank: int = 4,
    alpha: float = 2.0,
    strength: float = 0.1,
    seed: int = 3,
    text_encoder: bool = True,
) -> None:
    """LyCORIS LoHa: the change is the elementwise product of two low-rank matrices."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, shape in lora_layers(text_encoder).items():
        size = math.sqrt(strength * math.prod(shape[1:]) ** -0.5 * rank / alpha)
        for factor in ("hada_w1", "hada_w2"):
            up, down = up_and_down(shape, rank, size, generator)
            tensors[f"{kohya_name(layer)}.{factor}_a"] = up
            tensors[f"{kohya_name(layer)}.{factor}_b"] = down
        tensors[f"{kohya_name(layer)}.alpha"] = torch.tensor(alpha)
    save(path, tensors, {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "loha"})})


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Whole or not at all: under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        half = {key: tensor.detach().half().contiguous() for key, tensor in tensors.items()}
        save_file(half, scratch, metadata={**metadata, RECIPE_KEY: RECIPE})
        scratch.chmod(0o644)  # safetensors makes files that only their owner can read
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def is_current(path: Path) -> bool:
    if not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(RECIPE_KEY) == RECIPE


def write_assets(checkpoints: Path, loras: Path) -> list[Path]:
    """All four files, skipping those that are there already; returns their paths."""
    recipes: dict[Path, Callable[[Path], None]] = {
        checkpoints / "loraclr_demo.safetensors": write_checkpoint,
        loras / "loraclr_demo_cat.safetensors": write_lora_kohya,
        loras / "loraclr_demo_dog.safetensors": write_lora_peft,
        loras / "loraclr_demo_bird.safetensors": write_lora_loha,
    }
    for path, write in recipes.items():
        if is_current(path):
            print(f"demo assets: {path.name} is there", file=sys.stderr, flush=True)
            continue
        print(f"demo assets: making {path.name}", file=sys.stderr, flush=True)
        write(path)
    return list(recipes)


if __name__ == "__main__":
    write_assets(Path(folder_paths.get_folder_paths("checkpoints")[0]), Path(folder_paths.get_folder_paths("loras")[0]))
