"""Make the demo's models from the weights trained in `bench/shapes/`: a checkpoint and eight concept LoRAs; and pictures to
train two of the concepts on (demo_pictures.py).

    python3 tools/host.py tools/demo_assets.py

The checkpoint has SD1.5's parts and key names at a fraction of its size, so the stock loaders take it. It paints plain
shapes: balls, boxes, kites and crosses. Its U-Net and decoder are stored in 8 bits, its text encoder comes from a seed, and
its picture encoder is worked out (demo_encoder.py). The LoRAs come in three file formats. A file that is there and made of
these weights is kept.
"""
# ruff: noqa: E402  (the host can be imported only after its folder and its device are settled)

import functools
import hashlib
import json
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
import folder_paths
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from demo_encoder import make_encoder
from demo_pictures import write_pictures

WEIGHTS = Path(__file__).resolve().parent.parent / "bench" / "shapes" / "weights"
CHECKPOINT = "loraclr_demo.safetensors"
RECIPE = "1"  # raise it whenever the same weights would be read differently
FILE_RECIPE = "2"  # raise it whenever a demo file of the same weights would come out different
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

Factors = dict[
    str, tuple[Tensor, Tensor]
]  # of each layer, by its diffusers name: up (out, rank, …), down (rank, in, …)


def make_unet(device: str = "cpu", **config) -> UNetModel:
    """config: what differs from `UNET`."""
    operations = comfy.ops.disable_weight_init
    return UNetModel(**{**UNET, **config}, dtype=torch.float32, device=device, operations=operations).eval()


def make_text_encoder(device: str = "cpu", **config) -> comfy.clip_model.CLIPTextModel:
    """config: what differs from `TEXT_ENCODER`."""
    operations = comfy.ops.disable_weight_init
    return comfy.clip_model.CLIPTextModel({**TEXT_ENCODER, **config}, torch.float32, device, operations).eval()


@torch.no_grad()
def damped_text_encoder() -> comfy.clip_model.CLIPTextModel:
    """CLIP-L from a seed, whose branches and positions are damped so that a token carries little but itself."""
    model = make_text_encoder()
    fill(model, TEXT_SEED, RESIDUAL_GAIN)
    model.text_model.embeddings.position_embedding.weight.mul_(POSITION_GAIN)
    return model


@torch.no_grad()
def fill(model: nn.Module, seed: int, residual_gain: float) -> None:
    """Seeded weights that keep the size of what passes through; branches beside the residual stream are damped."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        module, _, kind = name.rpartition(".")
        if weight.ndim == 1:
            weight.fill_(1.0 if kind == "weight" else 0.0)
        elif weight.ndim > 1:
            gain = 1.0 if "embedding" in name else weight[0].numel() ** -0.5
            weight.normal_(0.0, gain * (residual_gain if module.endswith(RESIDUAL_ENDS) else 1.0), generator=generator)


def lora_layers(unet: nn.Module, **config) -> dict[str, str]:
    """Diffusers name of every layer that LoRA trainers touch -> the host's name."""
    weights = unet.state_dict()
    # The host's map comes from sets, in another order in every process; who draws random factors layer by layer needs one.
    return {
        name.removesuffix(".weight"): key.removesuffix(".weight")
        for name, key in sorted(comfy.utils.unet_to_diffusers({**UNET, **config}).items())
        if key in weights and "attentions" in name and name.endswith(".weight") and "norm" not in name
    }


# --- stored weights --------------------------------------------------------------------------------------------------


def store(name: str, state: dict[str, Tensor], metadata: dict[str, str] | None = None, folder: Path = WEIGHTS) -> Path:
    """Into the trained weights: matrices in 8 bits with a scale per row, everything else in half precision."""
    path = folder / f"{name}.safetensors"
    packed = {}
    for key, tensor in state.items():
        tensor = tensor.detach().cpu().float().contiguous()
        if tensor.ndim < 2:
            packed[key] = tensor.half()
            continue
        scale = tensor.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
        packed[key] = (tensor / scale.view(-1, *[1] * (tensor.ndim - 1))).round().to(torch.int8)
        packed[f"{key}.scale"] = scale
    write(path, packed, metadata or {})
    return path


def stored(name: str, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """What `store` wrote among the trained weights, in float32."""
    tensors = load_file(folder / f"{name}.safetensors")
    scales = {key: tensors.pop(f"{key}.scale") for key in [*tensors] if f"{key}.scale" in tensors}
    return {
        key: tensor.float() * (scales[key].view(-1, *[1] * (tensor.ndim - 1)) if key in scales else 1)
        for key, tensor in tensors.items()
    }


# --- the files of the demo -------------------------------------------------------------------------------------------


def checkpoint(unet: nn.Module, text_encoder: comfy.clip_model.CLIPTextModel, taesd: TAESD) -> dict[str, Tensor]:
    """A state dict for the stock CheckpointLoaderSimple."""
    with torch.no_grad():
        taesd.vae_scale.fill_(comfy.latent_formats.SD15().scale_factor)
    parts = {
        "model.diffusion_model.": unet.state_dict(),
        "first_stage_model.": taesd.state_dict(),
        "cond_stage_model.transformer.": text_encoder.text_model.state_dict(prefix="text_model."),
    }
    return {prefix + key: tensor for prefix, part in parts.items() for key, tensor in part.items()}


def trained_checkpoint() -> dict[str, Tensor]:
    unet, taesd = make_unet(), TAESD()
    unet.load_state_dict(stored("unet"))
    taesd.taesd_encoder.load_state_dict(make_encoder().state_dict())
    taesd.taesd_decoder.load_state_dict(stored("decoder"))
    return checkpoint(unet, damped_text_encoder(), taesd)


def trained_factors(name: str) -> Factors:
    tensors = stored(name)
    layers = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
    return {f"unet.{layer}": (tensors[f"{layer}.up"], tensors[f"{layer}.down"]) for layer in layers}


def kohya_name(layer: str) -> str:
    part, _, name = layer.partition(".")
    return {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + name.replace(".", "_")


def kohya(factors: Factors, alpha: float) -> dict[str, Tensor]:
    """`lora_unet_….lora_down.weight`; the change is `alpha / rank · up @ down`."""
    tensors = {}
    for layer, (up, down) in factors.items():
        name = kohya_name(layer)
        tensors |= {
            f"{name}.lora_up.weight": up,
            f"{name}.lora_down.weight": down,
            f"{name}.alpha": torch.tensor(alpha),
        }
    return tensors


def peft(factors: Factors) -> dict[str, Tensor]:
    """`unet.….lora_A.weight`, no alpha. The host knows the attention layers of this format as `processor.to_q`."""
    tensors = {}
    for layer, (up, down) in factors.items():
        name = layer.replace(".to_", ".processor.to_").removesuffix(".0" if ".to_out" in layer else "")
        tensors |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return tensors


def loha(factors: Factors, others: Factors, alpha: float) -> dict[str, Tensor]:
    """LyCORIS LoHa: the change is the elementwise product of two low-rank matrices."""
    tensors = {}
    for layer in factors:
        name = kohya_name(layer)
        for factor, (up, down) in (("hada_w1", factors[layer]), ("hada_w2", others[layer])):
            tensors |= {f"{name}.{factor}_a": up.flatten(1), f"{name}.{factor}_b": down.flatten(1)}
        tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def kohya_metadata(name: str, trigger: str, rank: int, alpha: float) -> dict[str, str]:
    folder = f"10_{trigger}"
    return {
        "modelspec.title": name,
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.trigger_phrase": trigger,
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(alpha),
        "ss_output_name": name,
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 10, "img_count": 8}}),
        "ss_tag_frequency": json.dumps({folder: {trigger: 8, "on grass": 3, "in snow": 2}}),
    }


LOHA_METADATA = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps({"algo": "loha"})}


def stored_metadata(name: str) -> dict[str, str]:
    """Empty where there is no such file."""
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def triggers() -> dict[str, str]:
    """Of each concept that was trained, in alphabetical order: its name and the phrase it was trained on."""
    words = {path.stem: stored_metadata(path.stem).get("trigger") for path in sorted(WEIGHTS.glob("*.safetensors"))}
    return {name: trigger for name, trigger in words.items() if trigger}


def lora_file(name: str) -> str:
    """Return the name of a concept's file in the loras folder."""
    return f"loraclr_demo_{name}.safetensors"


def trained_lora(name: str, trigger: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict and metadata, of two concepts in other formats than kohya's. Every file says its trigger."""
    factors = trained_factors(name)
    rank = next(iter(factors.values()))[0].shape[1]
    said = {"modelspec.trigger_phrase": trigger}
    if name == "box":
        return peft(factors), {"format": "pt", **said}
    if name == "cross":
        # Times one, everywhere.
        ones = {
            layer: (torch.ones(len(up), 1), torch.ones(1, down[0].numel())) for layer, (up, down) in factors.items()
        }
        return loha(factors, ones, float(rank)), {**LOHA_METADATA, **said}
    return kohya(factors, float(rank)), kohya_metadata(
        lora_file(name).removesuffix(".safetensors"), trigger, rank, float(rank)
    )


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Whole or not at all: under a temporary name first."""
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
    print(f"demo assets: making {path.name}", file=sys.stderr, flush=True)
    tensors, metadata = make()
    half = {key: tensor.detach().half() for key, tensor in tensors.items()}
    write(path, half, {**metadata, RECIPE_KEY: recipe})


def recipe_of(*names: str) -> str:
    """Changes with the trained weights a file is made of."""
    digest = hashlib.sha256()
    for name in names:
        digest.update((WEIGHTS / f"{name}.safetensors").read_bytes())
    return f"{RECIPE}-{digest.hexdigest()[:16]}"


def write_assets() -> None:
    """The demo's files in the host's model folders, where they are not there already."""
    checkpoints, loras = (Path(folder_paths.get_folder_paths(folder)[0]) for folder in ("checkpoints", "loras"))
    title = {"modelspec.title": "LoRACLR demo checkpoint"}
    recipe = f"{FILE_RECIPE}-{recipe_of('unet', 'decoder')}"
    ensure(checkpoints / CHECKPOINT, recipe, lambda: (trained_checkpoint(), title))
    for name, trigger in triggers().items():
        make = functools.partial(trained_lora, name, trigger)
        ensure(loras / lora_file(name), f"{FILE_RECIPE}-{recipe_of(name)}", make)
    write_pictures()
    print("demo assets: all are there", file=sys.stderr, flush=True)


if __name__ == "__main__":
    write_assets()
