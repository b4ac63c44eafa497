"""The layer of each tensor of a LoRA file, and the use of the tensors that ComfyUI's patches leave out.

ComfyUI reads one adapter per weight and skips whatever else a file holds for it. Here each skipped tensor is made use
of, recognised as a repetition, or named in an error.
"""

from typing import NamedTuple

import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor

from ...lowrank import LowRank, add
from . import peft

# Endings of a LoRA's factors, up and down, in each naming scheme that ComfyUI reads.
FACTORS = {
    ".lora_up.weight": ".lora_down.weight",
    "_lora.up.weight": "_lora.down.weight",
    ".lora_B.weight": ".lora_A.weight",
    ".lora.up.weight": ".lora.down.weight",
    ".lora_B": ".lora_A",
    ".lora_linear_layer.up.weight": ".lora_linear_layer.down.weight",
    ".lora_B.default.weight": ".lora_A.default.weight",
}
ALPHA, RESHAPE, SCALAR = SCALES = (".alpha", ".reshape_weight", ".scalar")
ROLES = dict.fromkeys(FACTORS, "up") | dict.fromkeys(FACTORS.values(), "down")
ROLES |= dict.fromkeys(peft.MAGNITUDES, "magnitude") | dict.fromkeys(peft.BIASES, "bias")
# Relative difference below which two products of factors count as the same: the precision of their norms in float32.
SAME = 1e-3

Patch = WeightAdapterBase | tuple
Patches = dict[str | tuple, Patch]


class UnreadError(ValueError):
    """A tensor that would be lost, though the weight's adapter is a different one without it."""


class Part(NamedTuple):
    """A tensor of a file."""

    # The name of its layer.
    layer: str
    # Its role there, such as "up" or ".alpha".
    role: str
    # The weight, or a slice of it.
    target: str | tuple


class Accounts(NamedTuple):
    """How a file's keys are used."""

    # Those that change the model.
    used: set[str]
    # Those that repeat others and count once.
    repeated: set[str]


def weight_of(target: str | tuple) -> str:
    """Return the key of a target's weight: the target itself, or the first of (key, slice of it[, function])."""
    return target[0] if isinstance(target, tuple) else target


def part_of(key: str, key_map: dict) -> Part | None:
    """Return the part that a file's key stands for. Its layer is the longest name of `key_map` that begins the key."""
    stem = key.rpartition(".")[0]
    while stem:
        for name in (stem, stem.removesuffix("_lora")):
            if name in key_map:
                ending = key[len(name) :]
                return Part(name, ROLES.get(ending, ending), key_map[name])
        stem = stem.rpartition(".")[0]
    return None


def account(state: dict[str, Tensor], key_map: dict, patches: Patches) -> Accounts:
    """Complete `patches`, as ComfyUI has read them from `state`, and return how every key is used.

    Patches of biases that the model does not have, or of slices of them, are removed. Raises UnreadError, naming the
    keys, where a layer that matched has a tensor that is not in its adapter.
    """
    parts = {key: part for key in state if (part := part_of(key, key_map))}
    weights = {weight_of(target) for target in key_map.values()}
    read = _find_keys([tensor for patch in patches.values() for tensor in _tensors(patch)], state, parts)
    placeless = _find_keys(_remove_placeless(patches, weights), state, parts)
    used = read - placeless
    used |= _add_magnitudes(state, parts, patches, used)
    used |= _add_biases(state, parts, patches, used, weights)
    used |= _find_scales(state, parts, used)
    repeated = _find_repeated(state, parts, used, read)
    repeated |= _find_keys(_remove_repeated_slices(patches), state, parts)
    in_use = {parts[key].layer for key in used - repeated if parts[key].role not in SCALES}
    idle_layers = {parts[key].layer for key in repeated} - in_use
    repeated |= {key for key, part in parts.items() if part.role == ALPHA and part.layer in idle_layers}
    return Accounts(used - repeated, repeated)


def _find_keys(tensors: list[Tensor], state: dict[str, Tensor], parts: dict[str, Part]) -> set[str]:
    ids = {id(tensor) for tensor in tensors}
    return {key for key in parts if id(state[key]) in ids}


def _find_scales(state, parts: dict[str, Part], used: set[str]) -> set[str]:
    """Return the keys of scales that belong to layers in use; no patch holds them as tensors."""
    layers = {parts[key].layer for key in used}
    # LyCORIS's own factor, which its trainers leave at 1.
    neutral = {key for key, part in parts.items() if part.role == SCALAR and bool((state[key] == 1).all())}
    scales = neutral | {key for key, part in parts.items() if part.role in (ALPHA, RESHAPE)}
    return {key for key in scales if parts[key].layer in layers}


def _find_repeated(state, parts: dict[str, Part], used: set[str], read: set[str]) -> set[str]:
    """Return the keys that repeat others of the same weight. Raises UnreadError where one differs from them."""
    targets = {parts[key].target for key in used}
    rest = {key for key in parts.keys() - used - read if parts[key].target in targets}
    rest -= {key for key in rest if parts[key].role in (ALPHA, RESHAPE)}
    for key in sorted(rest):
        _check_repeats(key, parts[key], state, parts, used)
    return rest


def _tensors(patch: Patch) -> list[Tensor]:
    parts = patch.weights if isinstance(patch, WeightAdapterBase) else patch[1]
    return [part for part in parts if isinstance(part, Tensor)]


def _remove_placeless(patches: Patches, weights: set[str]) -> list[Tensor]:
    """Remove patches whose target is not a weight of the model; return their tensors."""
    placeless = [target for target in patches if weight_of(target) not in weights]
    return [tensor for target in placeless for tensor in _tensors(patches.pop(target))]


def _add_magnitudes(state, parts: dict[str, Part], patches: Patches, used: set[str]) -> set[str]:
    """Turn LoRAs into PEFT's DoRAs where the file has their magnitudes; return the keys of the magnitudes."""
    magnitudes = set()
    for key, part in parts.items():
        lora = patches.get(part.target)
        if part.role == "magnitude" and isinstance(lora, LoRAAdapter) and _is_of(lora, part, state, parts, used):
            dora = peft.with_magnitude(lora, state[key])
            if dora:
                patches[part.target] = dora
                magnitudes.add(key)
    return magnitudes


def _add_biases(state, parts: dict[str, Part], patches: Patches, used: set[str], weights: set[str]) -> set[str]:
    """Add the differences of biases that PEFT trained within a LoRA, where the layer has a bias; return their keys."""
    biases = set()
    for key, part in parts.items():
        lora = patches.get(part.target)
        if part.role != "bias" or not isinstance(part.target, str) or not isinstance(lora, LoRAAdapter | peft.DoRA):
            continue
        bias = f"{part.target.removesuffix('.weight')}.bias"
        if bias in weights and bias not in patches and _is_of(lora, part, state, parts, used):
            patches[bias] = peft.bias_difference(lora, state[key])
            biases.add(key)
    return biases


def _is_of(patch: Patch, part: Part, state, parts: dict[str, Part], used: set[str]) -> bool:
    """Return whether the patch was read from the same layer name as `part`."""
    up = _tensors(patch)[0]
    return any(state[key] is up for key in used if parts[key].layer == part.layer)


def _check_repeats(key: str, part: Part, state, parts: dict[str, Part], used: set[str]) -> None:
    """Raise UnreadError unless a used tensor of the same weight equals this one, at the same scale."""
    others = [other for other in sorted(used) if parts[other].target == part.target and parts[other].role not in SCALES]
    for other in others:
        same = parts[other].role == part.role and _is_same(state[key], state[other])
        if same and _alpha(state, part) == _alpha(state, parts[other]):
            return
    other = next((other for other in others if parts[other].role == part.role), others[0])
    raise UnreadError(
        f"{key} and {other} belong to one weight ({weight_of(part.target)}), and ComfyUI reads only the latter. Without the"
        " former it is another LoRA: save it anew with its trainer, in one naming, or choose another LoRA."
    )


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _alpha(state: dict[str, Tensor], part: Part) -> float | None:
    alpha = state.get(part.layer + ALPHA)
    return None if alpha is None else alpha.item()


def _remove_repeated_slices(patches: Patches) -> list[Tensor]:
    """Remove LoRAs on a slice of a weight that repeat rows of a LoRA on a larger part of it; return their tensors.

    A file may name both a fused layer and its parts; ComfyUI would add all of them up.
    """
    by_weight: dict[str, list[str | tuple]] = {}
    for target, patch in patches.items():
        if _is_plain(patch):
            by_weight.setdefault(weight_of(target), []).append(target)
    repeated = {
        part
        for targets in by_weight.values()
        for part in targets
        for whole in targets
        if part != whole and _holds(patches[whole], whole, patches[part], part)
    }
    return [tensor for target in repeated for tensor in _tensors(patches.pop(target))]


def _is_plain(patch: Patch) -> bool:
    """Return whether a patch is two factors and a scale; weights = (up, down, alpha, mid, dora_scale, reshape)."""
    return isinstance(patch, LoRAAdapter) and patch.weights[3:6] == (None,) * 3


def _holds(whole: Patch, target: str | tuple, part: Patch, part_target: str | tuple) -> bool:
    """Return whether `whole` contains the rows of `part`, with the same values."""
    rows, product = _rows(target), _product(whole)
    part_rows, part_product = _rows(part_target), _product(part)
    if rows is None or part_rows is None or product is None or part_product is None:
        return False
    start, count = part_rows - rows, part_product.up.shape[0]
    inside = product.up[start : start + count] if start >= 0 else product.up[:0]
    if count == product.up.shape[0] or inside.shape[0] != count or product.down.shape[1] != part_product.down.shape[1]:
        return False
    difference = add([LowRank(inside, product.down), part_product.scaled(-1.0)])
    return bool(difference.norm() <= SAME * part_product.norm())


def _rows(target: str | tuple) -> int | None:
    """Return the first row of the weight that a target addresses, or None for a slice along its columns."""
    if isinstance(target, str):
        return 0
    dimension, start, _ = target[1]
    return start if dimension == 0 and len(target) == 2 else None


def _product(lora: Patch) -> LowRank | None:
    up, down, alpha = lora.weights[:3]
    if up.ndim < 2 or down.ndim < 2 or up.shape[1:].numel() != down.shape[0]:
        return None
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    return LowRank(up.flatten(1).float() * scale, down.flatten(1).float())
