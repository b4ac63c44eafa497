"""Running the pack's nodes in process, as the executor does."""

from pathlib import Path

import comfy.lora
import folder_paths
import nodes
import safetensors.torch
import torch
from torch import Tensor

MERGE = {
    "solver": "exact",
    "margin": 0.5,
    "margin_mode": "absolute (paper)",
    "ridge": 0.01,
    "anchor_weight": 0.0,
    "capture_prompts": "photo of a {trigger}",
    "capture_steps": 2,
    "capture_seed": 0,
    "merge_text_encoder": False,  # twelve more wide layers; tests that are about it turn it on
}
SAVE = {"folder": "loras", "if_exists": "number", "precision": "float32", "max_rank": 0}


def run(node_id: str, **inputs):
    """Outputs of one of our nodes."""
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    node.VALIDATE_CLASS()
    return node.PREPARE_CLASS_CLONE(None).execute(**inputs).args


def load(lora_name: str, trigger: str = "", concepts=None, **inputs):
    """Outputs of Load Concept LoRA with its defaults."""
    values = {"class_word": "", "name": "", "strength_model": 1.0, "strength_clip": 1.0} | inputs
    return run("LoRACLR_LoadConceptLoRA", lora_name=lora_name, trigger=trigger, concepts=concepts, **values)


def merge(demo, concepts, **inputs):
    """Outputs of LoRACLR Merge with quick settings: MODEL, CLIP, lora, merge_info, report."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    values = {"model": demo.model, "clip": demo.clip, "concepts": concepts, "latent": latent} | MERGE | inputs
    return run("LoRACLR_Merge", **values)


def save(lora, filename: str, **inputs):
    """Outputs of Save Merged LoRA with its defaults: lora_name, report."""
    return run("LoRACLR_SaveMergedLoRA", lora=lora, filename=filename, **(SAVE | inputs))


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
