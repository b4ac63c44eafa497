"""What a concept LoRA does to each weight of the model, for every adapter type the host can load.

The host's own `calculate_weight` is the truth. A plain LoRA's two factors are taken as they are (their product is what
`calculate_weight` adds); any other adapter is asked for its weight difference: on the weight itself where the adapter
depends on it (DoRA, OFT, BOFT, GLoRA), on zeros where it only adds to it, so that no base weight is needed.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.weight_adapter as weight_adapter
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from .. import lowrank
from ..lowrank import LowRank
from . import weights

log = logging.getLogger("loraclr")

# A file with fewer than this share of its tensors matched is taken to be for another model.
LEAST_MATCHED_SHARE = 0.5
# Relative error below which a difference counts as of low rank: what float32 leaves of a zero.
RANK_TOLERANCE = 3e-6
# Position of the DoRA scale among an adapter's weights, for the adapters that only add to the weight without it.
ADDITIVE = {weight_adapter.LoRAAdapter: 4, weight_adapter.LoHaAdapter: 7, weight_adapter.LoKrAdapter: 8}


class AdapterError(ValueError):
    """A LoRA that the model cannot take; the message names the file, the key and what to do."""


@dataclass
class MatchedLoRA:
    """A LoRA file matched to a model: the host's patches by weight key, and what was left over."""

    name: str
    patches: dict[str, list[tuple[object, tuple | None, object]]] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)


@dataclass
class Effect:
    """One concept's effect on a model: differences to merge, and differences that can only be summed."""

    merge: dict[str, LowRank] = field(default_factory=dict)
    add: dict[str, LowRank | Tensor] = field(default_factory=dict)
    idle: list[str] = field(default_factory=list)


class _ReadKeys(dict):
    """A state dict that remembers which of its tensors the host's loader read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.read: set[str] = set()
        self.last = ""

    def __getitem__(self, key):
        self.read.add(key)
        self.last = key
        return super().__getitem__(key)

    def get(self, key, default=None):
        if key in self:
            return self[key]
        return default


def match(name: str, tensors: dict[str, Tensor], key_map: dict) -> MatchedLoRA:
    """The host's patches for a LoRA's tensors; `key_map` is `key_names(model, clip)`.

    Raises AdapterError if too few of the tensors find a place in the model, or if one of those that do is missing its
    other half or cannot be part of an adapter.
    """
    embeddings = sorted({key.split(".")[1] for key in tensors if key.startswith("bundle_emb.")})
    tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("bundle_emb.")}
    state = _ReadKeys(tensors)
    result = MatchedLoRA(name, embeddings=embeddings)
    try:
        state = _ReadKeys(comfy.lora_convert.convert_lora(tensors))
        patches: dict = comfy.lora.load_lora(state, key_map, log_missing=False)
    except Exception as error:
        raise AdapterError(_damaged(name, state, error)) from error
    for key in sorted(state.read):
        if state[key].numel() == 0 or state[key].is_complex():
            raise AdapterError(
                f"LoRA {name}: {key} is {state[key].dtype} of shape {tuple(state[key].shape)}, which is no weight of an"
                " adapter. The file is damaged: download it again, or choose another LoRA."
            )
    for target, patch in patches.items():
        # A target is a weight's key, or (key, slice of it[, function]) where a LoRA addresses part of a fused weight.
        key, offset, function, *_ = (*target, None) if isinstance(target, tuple) else (target, None, None)
        result.patches.setdefault(key, []).append((patch, offset, function))
    # A bias has no slices in the host, which reads such a difference and has no weight for it.
    without_place = {f"{layer}.diff_b" for layer, target in key_map.items() if isinstance(target, tuple)}
    result.matched = sorted(state.read - without_place)
    result.unmatched = sorted(set(state) - set(result.matched))
    if len(result.matched) < LEAST_MATCHED_SHARE * len(state) or not result.patches:
        raise AdapterError(
            f"LoRA {name} matches {len(result.matched)} of its {len(state)} tensors to this model"
            f" (unmatched: {', '.join(result.unmatched[:3])}, …). It was trained for another architecture, or its keys are"
            " in a layout that ComfyUI does not read: load the checkpoint family it belongs to, convert it to kohya's"
            " layout, or choose another LoRA."
        )
    if result.unmatched:
        log.warning(
            "LoRA %s: %d of %d tensors match nothing in this model and are left out: %s",
            *(name, len(result.unmatched), len(state), ", ".join(result.unmatched[:8])),
        )
    if embeddings:
        log.warning(
            "LoRA %s bundles embeddings (%s), which are not merged: save them to the embeddings folder to use them.",
            *(name, ", ".join(embeddings)),
        )
    return result


def load_alone(name: str, tensors: dict[str, Tensor], model, clip, strength_model: float, strength_clip: float):
    """(model, clip) with this LoRA alone, by the stock loader; either may be None.

    Raises AdapterError, naming file and key, where the stock loader cannot read the tensors.
    """
    state = _ReadKeys(tensors)
    try:
        return comfy.sd.load_lora_for_models(model, clip, state, strength_model, strength_clip)
    except Exception as error:
        raise AdapterError(_damaged(name, state, error)) from error


def _damaged(name: str, state: _ReadKeys, error: Exception) -> str:
    """What to say where the host's loader failed on the tensor that it read last."""
    fault = f"{error.args[0]} is missing" if isinstance(error, KeyError) else f"{state.last} cannot be used ({error})"
    return f"LoRA {name}: {fault}. The file is damaged: download it again, or choose another LoRA."


def key_names(model: ModelPatcher, clip) -> dict:
    """Every name under which a LoRA file may address a weight -> the weight's key, as the stock loader maps them.

    The host also has names for weights that a variant of an architecture lacks; here those match nothing.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    weights = model.model_state_dict().keys() | clip.patcher.model_state_dict().keys()
    return {name: target for name, target in names.items() if _key(target) in weights}


def _key(target: str | tuple) -> str:
    """The weight of a target: its key, or (key, slice of it[, function]) where it is part of a fused weight."""
    return target[0] if isinstance(target, tuple) else target


def effect(lora: MatchedLoRA, patcher: ModelPatcher, strength: float, device: torch.device) -> Effect:
    """The differences that `lora` at `strength` makes to the weights of `patcher`.

    Raises AdapterError, naming file and key, where shapes do not fit, where the host cannot apply an adapter, or where
    a base weight is needed and cannot be had.
    """
    result = Effect()
    known = shapes(patcher, lora.patches)
    for key, patches in lora.patches.items():
        if key not in known:
            continue
        width = _merge_width(patcher, key)
        difference = _difference(lora.name, key, known[key], patches, strength, patcher, device)
        size = difference.norm()
        if not torch.isfinite(size):
            raise AdapterError(
                f"LoRA {lora.name}: {key} becomes NaN or Inf at strength {strength}; lower the strength."
            )
        if isinstance(difference, Tensor) and width:
            difference = lowrank.compressed(difference.flatten(1), RANK_TOLERANCE).to("cpu")
        if size == 0:
            result.idle.append(key)
        elif isinstance(difference, LowRank) and width:
            result.merge[key] = difference
        else:
            result.add[key] = difference.to("cpu")
    return result


def shapes(patcher: ModelPatcher, keys: Iterable[str]) -> dict[str, torch.Size]:
    """The shapes of those of the weights that the model has; a quantised one may be stored packed."""
    state = patcher.model_state_dict()
    result = {}
    for key in keys:
        if key in state:
            own = weights.weight_shape(layer(patcher, key)) if key.endswith(".weight") else None
            result[key] = own or state[key].shape
    return result


def _base_weight(patcher: ModelPatcher, key: str, shape: torch.Size, device: torch.device) -> Tensor:
    """The weight as the model came in: upstream patches included."""
    weight = weights.dequantised(patcher, key, device)
    if not weight.is_floating_point() or weight.shape != shape:
        raise ValueError(f"it is stored as {weight.dtype} {tuple(weight.shape)}")
    return comfy.lora.calculate_weight(patcher.patches.get(key, []), weight.float(), key)


def _difference(name, key, shape, patches, strength, patcher: ModelPatcher, device) -> LowRank | Tensor:
    if all(_plain(patch, function) for patch, _, function in patches):
        factors = [_factors(name, key, shape, patch, offset, strength) for patch, offset, _ in patches]
        # A file may claim any rank; what is made of one needs memory of its square.
        return lowrank.squeeze(lowrank.add(factors))
    for patch, offset, _ in patches:
        _rehearse(name, key, shape, patch, offset)
    if all(_additive(patch) for patch, _, _ in patches):
        weight = torch.zeros(shape, device=device)
    else:
        try:
            weight = _base_weight(patcher, key, shape, device)
        except Exception as error:
            raise AdapterError(
                f"LoRA {name}: its adapter on {key} depends on the base weight, which cannot be had here ({error}). Load"
                " the model unquantised, or choose a plain LoRA."
            ) from error
    before = weight.clone()
    for patch, offset, function in patches:
        weight = _apply(name, key, weight, patch, offset, function, strength)
    return weight - before


def _plain(patch, function) -> bool:
    """A LoRA that is two factors and a scale; weights = (up, down, alpha, mid, dora_scale, reshape)."""
    return isinstance(patch, weight_adapter.LoRAAdapter) and function is None and patch.weights[3:6] == (None,) * 3


def _additive(patch) -> bool:
    if isinstance(patch, WeightAdapterBase):
        return type(patch) in ADDITIVE and patch.weights[ADDITIVE[type(patch)]] is None
    return patch[0] == "diff"


def _factors(name, key, shape, patch, offset, strength) -> LowRank:
    up, down, alpha = patch.weights[:3]
    if up.ndim < 2 or down.ndim < 2 or up.shape[1:].numel() != down.shape[0]:
        raise AdapterError(
            f"LoRA {name}: rank mismatch at {key}, up {tuple(up.shape)} and down {tuple(down.shape)}. The file is damaged:"
            " download it again, or choose another LoRA."
        )
    up, down = up.float().flatten(1), down.float().flatten(1)
    whole = (shape[0], torch.Size(shape[1:]).numel())
    dimension, start, length = (0, 0, shape[0]) if offset is None else offset
    target = (length, whole[1]) if dimension == 0 else (whole[0], length)
    if (up.shape[0], down.shape[1]) != target:
        raise AdapterError(
            f"LoRA {name}: shape mismatch at {key}, the LoRA makes {up.shape[0]}×{down.shape[1]} and the model has"
            f" {target[0]}×{target[1]}. It was trained for another model; load that one or choose another LoRA."
        )
    up = up * (strength * (1.0 if alpha is None else alpha / down.shape[0]))
    after = whole[dimension] - start - length
    if dimension == 0:
        return LowRank(F.pad(up, (0, 0, start, after)), down)
    return LowRank(up, F.pad(down, (start, after)))


def _apply(name, key, weight, patch, offset, function, strength) -> Tensor:
    """`calculate_weight` of one patch, in place of the host's log line an error where it fails."""
    if not isinstance(patch, WeightAdapterBase):
        if patch[0] not in ("diff", "set"):
            raise AdapterError(f"LoRA {name}: {key} has a patch of type {patch[0]!r}, which cannot be merged.")
        target = weight if offset is None else weight.narrow(*offset)
        if patch[1][0].shape != target.shape:
            raise AdapterError(
                f"LoRA {name}: shape mismatch at {key}, the LoRA has {tuple(patch[1][0].shape)} and the model"
                f" {tuple(target.shape)}."
            )
        return comfy.lora.calculate_weight([(strength, patch, 1.0, offset, function)], weight, key)

    applied = False

    def applying(difference: Tensor) -> Tensor:
        nonlocal applied
        applied = True
        return difference if function is None else function(difference)

    shape, failure = weight.shape, None
    try:
        weight = comfy.lora.calculate_weight([(strength, patch, 1.0, offset, applying)], weight, key)
    except Exception as error:
        failure = error
    if failure or not applied or weight.shape != shape:
        raise AdapterError(
            f"LoRA {name}: ComfyUI cannot apply its {type(patch).__name__} to {key} of shape {tuple(shape)}"
            f" ({failure or 'the log has its reason'}). The file is damaged or for another model."
        ) from failure
    return weight


def _rehearse(name, key, shape, patch, offset) -> None:
    """Applies a patch to a weight without data, so that factors that do not fit fail before they fill the memory.

    The product of two small factors can be of any size. Those of OFT and BOFT are of the weight's own.
    """
    if isinstance(patch, weight_adapter.OFTAdapter | weight_adapter.BOFTAdapter):
        return
    _apply(name, key, torch.empty(shape, device="meta"), patch, offset, None, 1.0)


# --- layers ----------------------------------------------------------------------------------------------------------

# A convolution whose unfolded input is wider than this is summed, not merged: its second moments would take
# 4 · width² bytes, 127 MiB at this width.
MAX_UNFOLDED_WIDTH = 5760


def layer(patcher: ModelPatcher, key: str) -> torch.nn.Module:
    """The module that owns the weight `key`."""
    return patcher.model.get_submodule(key.rpartition(".")[0])


def _merge_width(patcher: ModelPatcher, key: str) -> int | None:
    """Width of the layer's input as a matrix product sees it, or None if the weight can only be summed."""
    module = layer(patcher, key)
    if not key.endswith(".weight"):
        return None
    if weights.is_linear(module):
        return module.in_features
    if isinstance(module, torch.nn.Conv2d) and module.groups == 1 and isinstance(module.padding, tuple):
        width = weights.input_width(module)
        return width if width <= MAX_UNFOLDED_WIDTH else None
    return None
