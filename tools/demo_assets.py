"""Make the demo's models from the weights trained in `bench/shapes/`: a checkpoint and eight concept LoRAs; and pictures to
train two of the concepts on (demo_pictures.py).

    python3 tools/host.py tools/demo_assets.py

The checkpoint has SD1.5's parts and key names at a fraction of its size, so the stock loaders take it. It paints plain
shapes: balls, boxes, kites and crosses. Its U-Net and decoder are stored in 8 bits, its text encoder comes from a seed, and
its picture encoder is worked out (demo_encoder.py). The LoRAs come in three file formats. A file that is there and made of
these weights is kept.
"""

import functools
import hashlib
import json
import sys
from pathlib import Path

import small_models  # first: it settles the host's folder and device
import torch
from safetensors import safe_open
from torch import Tensor

# isort: split
import folder_paths
from comfy.taesd.taesd import TAESD
from demo_encoder import make_encoder
from demo_pictures import write_pictures

WEIGHTS = Path(__file__).resolve().parent.parent / "bench" / "shapes" / "weights"
CHECKPOINT = "loraclr_demo.safetensors"
RECIPE = "1"  # raise it whenever the same weights would be read differently
FILE_RECIPE = "2"  # raise it whenever a demo file of the same weights would come out different

Factors = dict[
    str, tuple[Tensor, Tensor]
]  # of each layer, by its diffusers name: up (out, rank, …), down (rank, in, …)


def weights_of(name: str) -> Path:
    """Return where trained weights are kept."""
    return WEIGHTS / f"{name}.safetensors"


def stored(name: str) -> dict[str, Tensor]:
    """Return trained weights, in float32."""
    return small_models.stored(weights_of(name))


def trained_checkpoint() -> dict[str, Tensor]:
    unet, taesd = small_models.make_unet(), TAESD()
    unet.load_state_dict(stored("unet"))
    taesd.taesd_encoder.load_state_dict(make_encoder().state_dict())
    taesd.taesd_decoder.load_state_dict(stored("decoder"))
    return small_models.checkpoint(unet, small_models.damped_text_encoder(), taesd)


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
    path = weights_of(name)
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


def recipe_of(*names: str) -> str:
    """Changes with the trained weights a file is made of."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(weights_of(name).read_bytes())
    return f"{RECIPE}-{digest.hexdigest()[:16]}"


def write_assets() -> None:
    """The demo's files in the host's model folders, where they are not there already."""
    checkpoints, loras = (Path(folder_paths.get_folder_paths(folder)[0]) for folder in ("checkpoints", "loras"))
    title = {"modelspec.title": "LoRACLR demo checkpoint"}
    recipe = f"{FILE_RECIPE}-{recipe_of('unet', 'decoder')}"
    small_models.ensure(checkpoints / CHECKPOINT, recipe, lambda: (trained_checkpoint(), title))
    for name, trigger in triggers().items():
        make = functools.partial(trained_lora, name, trigger)
        small_models.ensure(loras / lora_file(name), f"{FILE_RECIPE}-{recipe_of(name)}", make)
    write_pictures()
    print("demo assets: all are there", file=sys.stderr, flush=True)


if __name__ == "__main__":
    write_assets()
