"""The effect of a concept LoRA on each weight of the model, for every adapter type that ComfyUI can load.

ComfyUI's own `calculate_weight` is the reference. A plain LoRA's two factors are taken as they are: their product is
the difference that `calculate_weight` adds. Any other adapter's difference is found by applying it: to the weight
itself where the adapter depends on it (DoRA, OFT, BOFT, GLoRA), to zeros where it only adds to it, which needs no base
weight.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import comfy.lora
import comfy.weight_adapter as weight_adapter
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.base import WeightAdapterBase
from torch import Tensor

from ... import lowrank
from ...lowrank import LowRank
from .. import weights
from .match import AdapterError, MatchedLoRA, key_names, match_lora

# Relative error below which a difference counts as low-rank: the rounding error of float32.
RANK_TOLERANCE = 3e-6
# Position of the DoRA scale among an adapter's weights, for the adapters that only add to the weight without it.
ADDITIVE = {weight_adapter.LoRAAdapter: 4, weight_adapter.LoHaAdapter: 7, weight_adapter.LoKrAdapter: 8}


@dataclass
class Effect:
    """One concept's effect on a model, by weight key."""

    # Differences that can be merged.
    merge: dict[str, LowRank] = field(default_factory=dict)
    # Differences that can only be summed.
    add: dict[str, LowRank | Tensor] = field(default_factory=dict)
    # Weights whose difference is zero.
    idle: list[str] = field(default_factory=list)


def load_alone(name: str, tensors: dict[str, Tensor], model, clip, strength_model: float, strength_clip: float):
    """Return (model, clip) with this LoRA alone. Either may be None; its part of the file is then ignored.

    Raises AdapterError, naming file and key, where the LoRA is for another model.
    """
    tensors = {
        key: tensor for key, tensor in tensors.items() if (clip if _is_text_encoder_key(key) else model) is not None
    }
    lora = match_lora(name, tensors, key_names(model, clip)) if tensors else MatchedLoRA(name)
    strengths = [(model, strength_model), (clip, strength_clip)]
    for target, _ in strengths:
        if target is not None:
            check(lora, getattr(target, "patcher", target))
    return tuple(None if target is None else patched(target, lora, strength) for target, strength in strengths)


def _is_text_encoder_key(key: str) -> bool:
    """Return whether a file's key names a layer of a text encoder, in any naming scheme that ComfyUI reads."""
    return key.startswith(("lora_te", "lora_prior_te", "text_encoder"))


def patched(target, lora: MatchedLoRA, strength: float):
    """Return the model or text encoder patched with its part of the LoRA, as by the stock loader."""
    patches = {
        (key, offset, function): patch
        for key, entries in _patches_of(lora, getattr(target, "patcher", target)).items()
        for patch, offset, function in entries
    }
    if not patches or strength == 0:
        return target
    result = target.clone()
    result.add_patches(patches, strength)
    return result


def effect(lora: MatchedLoRA, patcher: ModelPatcher, strength: float, device: torch.device) -> Effect:
    """Return the differences that `lora` at `strength` makes to the weights of `patcher`.

    Raises AdapterError, naming file and key, where shapes do not fit, where ComfyUI cannot apply an adapter, or where a
    base weight is needed but unavailable.
    """
    result = Effect()
    base_shapes, patched_shapes = _base_shapes(patcher, lora.patches), shapes(patcher, lora.patches)
    for key, patches in _patches_of(lora, patcher).items():
        # The input of a widened layer is not of the width that its module states.
        width = _merge_width(patcher, key) if patched_shapes[key] == base_shapes[key] else None
        difference = _difference(lora.name, key, patched_shapes[key], patches, strength, patcher, device)
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


def _patches_of(lora: MatchedLoRA, patcher: ModelPatcher) -> dict[str, list]:
    """Return the LoRA's patches of the patcher's weights, widened where upstream patches have widened the weight."""
    base_shapes, patched_shapes = _base_shapes(patcher, lora.patches), shapes(patcher, lora.patches)
    return {
        key: [(_fill(patch, base_shapes[key], patched_shapes[key]), *where) for patch, *where in patches]
        for key, patches in lora.patches.items()
        if key in base_shapes
    }


def _fill(patch, base_shape: torch.Size, shape: torch.Size):
    """Return a plain LoRA for a weight of shape `base_shape` with zeros for the columns that upstream patches added to it."""
    if base_shape == shape or len(base_shape) != 2 or not _is_plain(patch, None):
        return patch
    up, down, *others = patch.weights
    if down.shape[1:] != base_shape[1:]:
        return patch
    return weight_adapter.LoRAAdapter(patch.loaded_keys, (up, F.pad(down, (0, shape[1] - base_shape[1])), *others))


def check(lora: MatchedLoRA, patcher: ModelPatcher) -> None:
    """Raise AdapterError, naming file and key, where the shapes of a patch do not fit or ComfyUI cannot apply it.

    Computes nothing of the size of a weight.
    """
    patched_shapes = shapes(patcher, lora.patches)
    for key, patches in _patches_of(lora, patcher).items():
        for patch, offset, function in patches:
            if _is_plain(patch, function):
                _factors(lora.name, key, patched_shapes[key], patch, offset, 1.0)
            else:
                _rehearse(lora.name, key, patched_shapes[key], patch, offset)


def shapes(patcher: ModelPatcher, keys: Iterable[str]) -> dict[str, torch.Size]:
    """Return the shapes of those weights that the model has, with upstream patches: a control LoRA may widen one."""
    result = _base_shapes(patcher, keys)
    for key in result.keys() & patcher.patches.keys():
        before = torch.empty(result[key], device="meta")
        result[key] = torch.Size(comfy.lora.calculate_shape(patcher.patches[key], before, key))
    return result


def _base_shapes(patcher: ModelPatcher, keys: Iterable[str]) -> dict[str, torch.Size]:
    """Return the same without patches. A quantised weight may be stored packed; its layer knows the true shape."""
    state = patcher.model_state_dict()
    result = {}
    for key in keys:
        if key in state:
            size = weights.weight_shape(layer(patcher, key)) if key.endswith(".weight") else None
            result[key] = size or state[key].shape
    return result


def _base_weight(patcher: ModelPatcher, key: str, shape: torch.Size, device: torch.device) -> Tensor:
    """Return the weight as it reaches this node, upstream patches included."""
    weight = weights.dequantised(patcher, key, device)
    if not weight.is_floating_point() or weight.shape != shape:
        raise ValueError(f"it is stored as {weight.dtype} {tuple(weight.shape)}")
    return comfy.lora.calculate_weight(patcher.patches.get(key, []), weight.float(), key)


def _difference(name, key, shape, patches, strength, patcher: ModelPatcher, device) -> LowRank | Tensor:
    if all(_is_plain(patch, function) for patch, _, function in patches):
        factors = [_factors(name, key, shape, patch, offset, strength) for patch, offset, _ in patches]
        # A file may claim any rank, and later steps need memory proportional to the rank squared.
        return lowrank.squeeze(lowrank.add(factors))
    for patch, offset, _ in patches:
        _rehearse(name, key, shape, patch, offset)
    if all(_is_additive(patch) for patch, _, _ in patches):
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


def _is_plain(patch, function) -> bool:
    """Return whether a patch is two factors and a scale; weights = (up, down, alpha, mid, dora_scale, reshape)."""
    return isinstance(patch, weight_adapter.LoRAAdapter) and function is None and patch.weights[3:6] == (None,) * 3


def _is_additive(patch) -> bool:
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
    """Apply one patch with `calculate_weight`, raising AdapterError where ComfyUI would only log."""
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
    """Apply a patch to a weight without data: factors that do not fit fail here, before they fill the memory.

    The product of two small factors can be of any size. The factors of OFT and BOFT are as large as the weight and act
    on its rows, so one column suffices.
    """
    _refuse_other_models(name, key, shape, patch)
    if isinstance(patch, weight_adapter.OFTAdapter | weight_adapter.BOFTAdapter):
        _refuse_ignored_rescale(name, key, patch)
        one_column = patch.weights[3] is None and offset is None
        weight = torch.zeros(shape[0], *(1 for _ in shape[1:])) if one_column else torch.zeros(shape)
    else:
        weight = torch.empty(shape, device="meta")
    _apply(name, key, weight, patch, offset, None, 1.0)


def _refuse_other_models(name, key, shape, patch) -> None:
    """Raise AdapterError where the patch gives the weight another shape."""
    reshape = patch.weights[5] if isinstance(patch, weight_adapter.LoRAAdapter) else None
    if reshape is None or tuple(reshape) == tuple(shape):
        return
    raise AdapterError(
        f"LoRA {name} is no concept: it changes the shape of {key} from {tuple(shape)} to {tuple(reshape)}, as control LoRAs"
        " such as Flux Canny and Depth do, to read a second picture beside the latent. Load it with the stock Load LoRA"
        " before this node, as part of the model; InstructPixToPixConditioning gives the model its picture."
    )


def _refuse_ignored_rescale(name, key, patch) -> None:
    """Raise AdapterError where an OFT rescales its rows, which ComfyUI reads but ignores."""
    rescale = patch.weights[1]
    if isinstance(patch, weight_adapter.OFTAdapter) and rescale is not None and not bool((rescale == 1).all()):
        raise AdapterError(
            f"LoRA {name}: its OFT on {key} has a rescale, which ComfyUI leaves out; without it the LoRA is another. Train it"
            " without rescaling, or choose another LoRA."
        )


# --- layers ----------------------------------------------------------------------------------------------------------

# A convolution whose unfolded input is wider than this is summed rather than merged: its second moments would take
# 4 · width² bytes, 127 MiB at this width.
MAX_UNFOLDED_WIDTH = 5760


def layer(patcher: ModelPatcher, key: str) -> torch.nn.Module:
    """Return the module that owns the weight `key`."""
    return patcher.model.get_submodule(key.rpartition(".")[0])


def _merge_width(patcher: ModelPatcher, key: str) -> int | None:
    """Return the width of the layer's input in a matrix product, or None if the weight can only be summed."""
    module = layer(patcher, key)
    if not key.endswith(".weight"):
        return None
    if weights.is_linear(module):
        return module.in_features
    if isinstance(module, torch.nn.Conv2d) and module.groups == 1 and isinstance(module.padding, tuple):
        width = weights.input_width(module)
        return width if width <= MAX_UNFOLDED_WIDTH else None
    return None
