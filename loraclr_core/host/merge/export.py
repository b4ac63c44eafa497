"""A merged LoRA as a file: rank, precision, metadata, and a name that is free."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ... import lowrank
from ...lowrank import LowRank
from ..lora import file as lora_file
from .merge import MergeResult

UP, DOWN, ALPHA, DIFFERENCE = ".lora_up.weight", ".lora_down.weight", ".alpha", ".diff"
# kohya's names for base models, by the host's configuration class
KOHYA_BASE = {"SD15": "sd_v1", "SD20": "sd_v2", "SDXL": "sdxl_base_v1-0"}
MODELSPEC_ARCHITECTURE = {"SD15": "stable-diffusion-v1/lora", "SD20": "stable-diffusion-v2-768-v/lora"}
MODELSPEC_ARCHITECTURE |= {"SDXL": "stable-diffusion-xl-v1-base/lora", "Flux": "flux-1-dev/lora"}


class MergeInfo(NamedTuple):
    """What a saved merge says of itself, in plain values. base_model: the host's name of the architecture."""

    base_model: str
    concepts: list[dict]
    settings: dict


def info(result: MergeResult) -> MergeInfo:
    settings = result.settings
    concepts = [each.concept._asdict() for each in result.loaded]
    for concept in concepts:
        del concept["path"], concept["mask"]  # of this machine, of this picture
    plain = vars(settings) | {
        "margin": settings.margin.value,
        "margin_mode": settings.margin.mode,
        "capture": settings.capture._asdict(),
    }
    return MergeInfo(result.architecture, concepts, plain)


def metadata(tensors: dict[str, Tensor], merge_info: MergeInfo, title: str) -> dict[str, str]:
    """Metadata for the file's header: all of `merge_info`, and what kohya's tools and model managers look for."""
    ranks = [tensor.shape[0] for key, tensor in tensors.items() if key.endswith(DOWN)]
    triggers = ", ".join(concept["trigger"] for concept in merge_info.concepts)
    family = merge_info.base_model
    values = {
        "loraclr.concepts": json.dumps(merge_info.concepts),
        "loraclr.settings": json.dumps(merge_info.settings),
        "loraclr.base_model": family,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": MODELSPEC_ARCHITECTURE.get(family, f"{family}/lora"),
        "modelspec.trigger_phrase": triggers,
        "modelspec.description": f"{len(merge_info.concepts)} concepts merged with LoRACLR: {triggers}",
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(max(ranks, default=0)),
        "ss_network_alpha": str(max(ranks, default=0)),
    }
    if family in KOHYA_BASE:
        values["ss_base_model_version"] = KOHYA_BASE[family]
    return values


def prepare(lora: dict[str, Tensor], dtype: torch.dtype, max_rank: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The tensors to write, in `dtype` and of at most `max_rank` (0: as they are), and each layer's relative error.

    The error is that of the weight difference, Frobenius norm, rank and rounding together; exact layers are left out.
    Raises ValueError where a value does not fit `dtype`.
    """
    tensors, errors = {}, {}
    for key, tensor in lora.items():
        if key.endswith((DOWN, ALPHA)):
            continue
        name = key.removesuffix(UP).removesuffix(DIFFERENCE)
        if key.endswith(UP):
            down = lora[name + DOWN]
            rank = down.shape[0]
            # Without alpha the scale is 1; with it, alpha / rank.
            scale = float(lora[name + ALPHA]) / rank if name + ALPHA in lora else 1.0
            whole = LowRank(tensor.flatten(1).float() * scale, down.flatten(1).float())
            kernel = down.shape[1:]
        elif key.endswith(DIFFERENCE) and tensor.ndim >= 2:
            whole = lowrank.from_dense(tensor.flatten(1).float())
            kernel = tensor.shape[1:]
        else:  # a bias or norm difference
            tensors[key] = _rounded(key, tensor, dtype)
            continue
        if max_rank == 0 or whole.rank <= max_rank:
            stored = {key: tensor} if key.endswith(DIFFERENCE) else _factors(name, whole, kernel)
        else:
            stored = _factors(name, lowrank.truncate(whole, rank=max_rank)[0], kernel)
        stored = {k: t if k.endswith(ALPHA) else _rounded(k, t, dtype) for k, t in stored.items()}
        tensors |= stored
        if max_rank or dtype != torch.float32:
            errors[name] = _error(whole, name, stored)
    return tensors, {name: error for name, error in errors.items() if error > 0}


def path_within(root: Path, filename: str) -> Path:
    """`filename` (.safetensors added) as a path within `root`; raises ValueError if it is empty or leads outside."""
    stem = filename.strip().removesuffix(".safetensors")
    named = stem and not stem.endswith(("/", "\\")) and "\0" not in stem
    real_root = Path(os.path.realpath(root))
    path = Path(os.path.realpath(real_root / f"{stem}.safetensors")) if named else real_root
    if not named or not path.is_relative_to(real_root):
        raise ValueError(
            f"filename “{filename}” does not name a file within {root}; use a plain name such as loraclr/merged."
        )
    return root / path.relative_to(real_root)


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, str], if_exists: str) -> Path:
    """Writes the file and returns its path. if_exists: number | overwrite | fail."""
    if not tensors:
        raise ValueError(
            "The merged LoRA is empty: every concept has strength 0 or changes nothing. Nothing was saved."
        )
    if if_exists == "overwrite":
        lora_file.write(path, tensors, header, overwrite=True)
        return path
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
        try:
            if candidate.exists():  # known before all is written; the write itself closes the race
                raise FileExistsError(candidate)
            lora_file.write(candidate, tensors, header, overwrite=False)
            return candidate
        except FileExistsError:
            if if_exists == "fail":
                raise FileExistsError(
                    f"{path} is there already: choose another filename, or set if_exists to number or overwrite."
                ) from None
            number += 1


def describe(path: Path, errors: dict[str, float]) -> str:
    """What was saved and what was lost, in a line or two."""
    text = f"Saved {path} ({path.stat().st_size / 2**20:.1f} MiB)."
    if errors:
        worst = max(errors, key=lambda name: errors[name])
        mean = sum(errors.values()) / len(errors)
        text += f"\nRelative error of the weight differences: {mean:.2%} on average, {errors[worst]:.2%} at worst ({worst})."
    return text


def _factors(name: str, term: LowRank, kernel: torch.Size) -> dict[str, Tensor]:
    return {
        name + UP: term.up.reshape(*term.up.shape, *(1 for _ in kernel[1:])).contiguous(),
        name + DOWN: term.down.reshape(term.rank, *kernel).contiguous(),
        name + ALPHA: torch.tensor(float(term.rank)),
    }


def _rounded(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = tensor.to(dtype).contiguous().clone()
    if not torch.isfinite(rounded).all():
        raise ValueError(
            f"{key} does not fit {str(dtype).removeprefix('torch.')}; save with precision bfloat16 or float32."
        )
    return rounded


def _error(whole: LowRank, name: str, stored: dict[str, Tensor]) -> float:
    if name + DIFFERENCE in stored:
        kept = lowrank.from_dense(stored[name + DIFFERENCE].flatten(1).float())
    else:
        kept = LowRank(*(stored[name + part].flatten(1).float() for part in (UP, DOWN)))
    size = whole.norm()
    return float(lowrank.add([whole, kept.scaled(-1.0)]).norm() / size) if size else 0.0
