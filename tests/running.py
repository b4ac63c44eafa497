"""Running the pack's nodes in process, as the executor does."""

import gc
from pathlib import Path

import comfy.lora
import comfy.model_management
import folder_paths
import safetensors.torch
import torch
from pack import run
from torch import Tensor

# merge_text_encoder adds twelve wide layers; tests that are about it turn it on.
MERGE = {"capture_steps": 2, "merge_text_encoder": False}


def load(lora_name: str, trigger: str = "", concepts=None, **inputs):
    """Outputs of Load Concept LoRA with its defaults."""
    return run("LoRACLR_LoadConceptLoRA", lora_name=lora_name, trigger=trigger, concepts=concepts, **inputs)


def merge(demo, concepts, **inputs):
    """Outputs of LoRACLR Merge with quick settings: MODEL, CLIP, lora, merge_info, report."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    values = {"model": demo.model, "clip": demo.clip, "concepts": concepts, "latent": latent} | MERGE | inputs
    return run("LoRACLR_Merge", **values)


def save(lora, filename: str, **inputs):
    """Outputs of Save Merged LoRA with its defaults: lora_name, report."""
    return run("LoRACLR_SaveMergedLoRA", lora=lora, filename=filename, **inputs)


def forget_dead_models() -> None:
    """Drop from the host's list the models whose patchers are gone, of which it can load nothing."""
    gc.collect()
    loaded = comfy.model_management.current_loaded_models
    loaded[:] = [each for each in loaded if not each.is_dead()]


def write_lora(name: str, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> str:
    """A file in the loras folder; returns its name there."""
    path = Path(folder_paths.get_folder_paths("loras")[0]) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, path, metadata=metadata)
    return name


def weights(patcher) -> dict[str, Tensor]:
    """Every patched weight, as the host computes it but in float32: it rounds half precision by chance."""
    result = {}
    for key in patcher.patches:
        (weight, _), *patches = patcher.get_key_patches(key)[key]
        result[key] = comfy.lora.calculate_weight(patches, weight.float().clone(), key)
    return result
