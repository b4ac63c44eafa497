"""A merged LoRA as a file: its rank, precision, metadata, and an unused file name."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ... import lowrank
from ...lowrank import LowRank
from ..lora import file, header
from ..lora.accounts import ALPHA, FACTORS, ROLES
from ..lora.keys import as_stored
from .merge import MergeResult

UP, DOWN, DIFFERENCE, BIAS = ".lora_up.weight", ".lora_down.weight", ".diff", ".diff_b"
LISTED = 3  # names in a line of the report


class Term(NamedTuple):
    """A plain LoRA or a full difference in a file."""

    layer: str
    # The keys of the up and down matrix, or of the difference.
    matrices: tuple[str, ...]
    # The key of alpha, if there is one.
    alpha: str | None

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.matrices, self.alpha) if self.alpha else self.matrices


class Prepared(NamedTuple):
    """The tensors to write, and the precision lost by writing them."""

    tensors: dict[str, Tensor]
    # The relative error of each layer's weight difference (Frobenius norm) by rank and rounding; exact ones are left
    # out.
    errors: dict[str, float]
    # Layers that max_rank does not apply to.
    whole: list[str]
    # Layers whose tensors are rounded, with unknown effect on the weight.
    unmeasured: list[str]
    # Scales that keep a value which `dtype` cannot represent.
    exact: list[str]


class MergeInfo(NamedTuple):
    """The description of a merge that is saved with it, in plain values."""

    # ComfyUI's name of the architecture.
    base_model: str
    concepts: list[dict]
    settings: dict


def info(result: MergeResult) -> MergeInfo:
    settings = result.settings
    concepts = [concept.concept._asdict() for concept in result.loaded]
    for concept in concepts:
        del concept["path"], concept["mask"]  # specific to this machine and this picture
    plain = vars(settings) | {
        "margin": settings.margin.value,
        "margin_mode": settings.margin.mode,
        "capture": settings.capture._asdict(),
        "together": [{"prompt": each.prompt, "pictures": len(each.latents)} for each in settings.together],
    }
    return MergeInfo(result.architecture, concepts, plain)


def metadata(tensors: dict[str, Tensor], merge_info: MergeInfo, title: str) -> dict[str, str]:
    """Return metadata for the file's header: all of `merge_info`, and fields for kohya's tools and model managers."""
    ranks = [tensor.shape[0] for key, tensor in tensors.items() if key.endswith(tuple(FACTORS.values()))]
    alphas = [float(tensor) for key, tensor in tensors.items() if key.endswith(ALPHA) and tensor.numel() == 1]
    triggers = ", ".join(concept["trigger"] for concept in merge_info.concepts)
    family = merge_info.base_model
    values = {
        "loraclr.concepts": json.dumps(merge_info.concepts),
        "loraclr.settings": json.dumps(merge_info.settings),
        "loraclr.base_model": family,
        "modelspec.trigger_phrase": triggers,
        "modelspec.description": f"{len(merge_info.concepts)} concepts merged with LoRACLR: {triggers}",
    }
    return values | header.common(title, family, max(ranks, default=0), max(alphas or ranks, default=0))


def prepare(lora: dict[str, Tensor], dtype: torch.dtype, max_rank: int) -> Prepared:
    """Return the tensors to write, in `dtype` and of at most `max_rank` (0: unchanged).

    Only plain LoRAs and full differences are truncated to a rank. Every other key is kept, whatever its adapter; scales
    keep their value in any precision. Raises ValueError where a value does not fit `dtype`.
    """
    terms = _terms(lora)
    term_keys = {key for term in terms for key in term.keys}
    others = {key: tensor for key, tensor in lora.items() if key not in term_keys}
    tensors = {key: _round(key, tensor, dtype) for key, tensor in others.items()}
    errors = {}
    for term in terms:
        stored = {key: _round(key, tensor, dtype) for key, tensor in _cut(lora, term, max_rank).items()}
        tensors |= stored
        if max_rank or dtype != torch.float32:
            errors[term.layer] = _error(_matrix(lora, term), stored, term)
    matrices = [key for key, tensor in others.items() if tensor.ndim > 1]
    changed = [key for key in matrices if not _is_same(lora[key], tensors[key])]
    return Prepared(
        tensors=tensors,
        errors={layer: error for layer, error in errors.items() if error > 0},
        whole=_layers(matrices) if max_rank else [],
        unmeasured=_layers(changed),
        exact=[
            key for key, tensor in lora.items() if _is_scale(key, tensor) and not _is_same(tensor, tensor.to(dtype))
        ],
    )


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], if_exists: str) -> Path:
    """Write the file and return its path. if_exists: number | overwrite | fail."""
    if not tensors:
        raise ValueError(
            "The merged LoRA is empty: every concept has strength 0 or changes nothing. Nothing was saved."
        )
    if if_exists == "overwrite":
        file.write(path, tensors, metadata, overwrite=True)
        return path
    number = 1
    while True:
        candidate = path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}")
        try:
            if candidate.exists():  # saves writing it all in vain; the write itself closes the race
                raise FileExistsError(candidate)
            file.write(candidate, tensors, metadata, overwrite=False)
            return candidate
        except FileExistsError:
            if if_exists == "fail":
                raise FileExistsError(
                    f"{path} is there already: choose another filename, or set if_exists to number or overwrite."
                ) from None
            number += 1


def describe(path: Path, prepared: Prepared) -> str:
    """Return a few lines on what was saved and what was lost."""
    lines = [f"Saved {path} ({path.stat().st_size / 2**20:.1f} MiB)."]
    if errors := prepared.errors:
        worst = max(errors, key=lambda name: errors[name])
        mean = sum(errors.values()) / len(errors)
        lines.append(
            f"Relative error of the weight differences: {mean:.2%} on average, {errors[worst]:.2%} at worst ({worst})."
        )
    if prepared.whole:
        lines.append(
            f"max_rank does not apply to {len(prepared.whole)} layers, whose adapters are no plain LoRAs; they are saved"
            f" whole: {_list(prepared.whole)}."
        )
    if prepared.unmeasured:
        lines.append(
            f"{len(prepared.unmeasured)} layers with adapters other than plain LoRAs are rounded, and what that changes is not measured:"
            f" {_list(prepared.unmeasured)}."
        )
    if prepared.exact:
        lines.append(f"{len(prepared.exact)} scales are not rounded: {_list(prepared.exact)}.")
    return "\n".join(lines)


def _list(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")


def _terms(lora: dict[str, Tensor]) -> list[Term]:
    """Return the terms that can be truncated: factors and full differences that share a layer with a bias at most."""
    within = _keys_within(lora)
    possible = [term for key in lora for term in _possible_terms(key, lora)]
    return [term for term in possible if within.get(term.layer, set()) <= {*term.keys, term.layer + BIAS}]


def _possible_terms(key: str, lora: dict[str, Tensor]) -> list[Term]:
    """Return the terms that have this as their first key."""
    matrices = [
        (key.removesuffix(up), (key, key.removesuffix(up) + down)) for up, down in FACTORS.items() if key.endswith(up)
    ]
    if key.endswith(DIFFERENCE):
        matrices = [(key.removesuffix(DIFFERENCE), (key,))]
    terms = [Term(layer, keys, layer + ALPHA if layer + ALPHA in lora else None) for layer, keys in matrices]
    return [term for term in terms if _is_sound(term, lora)]


def _is_sound(term: Term, lora: dict[str, Tensor]) -> bool:
    """Return whether all tensors are present, are matrices and fit each other."""
    if not all(key in lora and lora[key].ndim > 1 for key in term.matrices):
        return False
    first, last = lora[term.matrices[0]], lora[term.matrices[-1]]
    fits = len(term.matrices) == 1 or first.shape[1:].numel() == last.shape[0]
    return fits and (term.alpha is None or lora[term.alpha].numel() == 1)


def _keys_within(lora: dict[str, Tensor]) -> dict[str, set[str]]:
    """Return, for every dotted prefix of a key, the keys that have it."""
    result: dict[str, set[str]] = {}
    for key in lora:
        stem = key.rpartition(".")[0]
        while stem:
            result.setdefault(stem, set()).add(key)
            stem = stem.rpartition(".")[0]
    return result


def _matrix(tensors: dict[str, Tensor], term: Term) -> LowRank:
    """Return the weight difference of a term."""
    first, last = (tensors[term.matrices[index]].flatten(1).float() for index in (0, -1))
    if len(term.matrices) == 1:
        return lowrank.from_dense(first)
    scale = float(tensors[term.alpha]) / last.shape[0] if term.alpha else 1.0  # without alpha the scale is 1
    return LowRank(first * scale, last)


def _cut(lora: dict[str, Tensor], term: Term, max_rank: int) -> dict[str, Tensor]:
    """Return the tensors of a term, of at most `max_rank` (0: unchanged)."""
    unchanged = {key: lora[key] for key in term.keys}
    whole = _matrix(lora, term) if max_rank else None
    if whole is None or whole.rank <= max_rank:
        return unchanged
    product, _ = lowrank.truncate(whole, rank=max_rank)
    up, down = term.matrices if len(term.matrices) == 2 else (term.layer + UP, term.layer + DOWN)
    stored = dict(zip((up, down), as_stored(product, lora[term.matrices[-1]].shape[1:]), strict=True))
    scaled = term.alpha or up.endswith(UP)  # kohya's tools require an alpha
    return stored | {term.layer + ALPHA: torch.tensor(float(product.rank))} if scaled else stored


def _error(whole: LowRank, stored: dict[str, Tensor], term: Term) -> float:
    cut = term._replace(matrices=tuple(key for key in stored if key != term.layer + ALPHA))
    if term.layer + ALPHA in stored:
        cut = cut._replace(alpha=term.layer + ALPHA)
    size = whole.norm()
    return float(lowrank.add([whole, _matrix(stored, cut).scaled(-1.0)]).norm() / size) if size else 0.0


def _round(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = (tensor if _is_scale(key, tensor) else tensor.to(dtype)).contiguous().clone()
    if not torch.isfinite(rounded).all():
        raise ValueError(
            f"{key} does not fit {str(dtype).removeprefix('torch.')}; save with precision bfloat16 or float32."
        )
    return rounded


def _is_scale(key: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a single number that scales others, or holds integers such as a shape."""
    return key.endswith(ALPHA) or tensor.ndim == 0 or not tensor.is_floating_point()


def _is_same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.double(), other.double())


def _layers(keys: list[str]) -> list[str]:
    """Return the names of the layers of these keys, whatever their adapter."""
    return sorted({_layer(key) for key in keys})


def _layer(key: str) -> str:
    ending = next((ending for ending in ROLES if key.endswith(ending)), None)
    return key.removesuffix(ending) if ending else key.removesuffix(".weight").rpartition(".")[0]
