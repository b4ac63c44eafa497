"""LoRA files matched to the weights of a model, with every tensor accounted for."""

import logging
from dataclasses import dataclass, field

import comfy.lora
import comfy.lora_convert
import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from . import accounts

log = logging.getLogger("loraclr")

# A file of which less than this share of tensors matches is taken to be for another model.
LEAST_MATCHED_SHARE = 0.5


class AdapterError(ValueError):
    """A LoRA that the model cannot take; the message names the file, the key and what to do."""


# (ComfyUI's patch, the slice of the weight that it is for, a function applied to its result)
Patch = tuple[object, tuple | None, object]


@dataclass(frozen=True)
class MatchedLoRA:
    """A LoRA file matched to a model: ComfyUI's patches by weight key, and the use of the file's keys."""

    name: str
    patches: dict[str, list[Patch]] = field(default_factory=dict)
    matched: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    # Names of bundled embeddings, which are not weights.
    embeddings: list[str] = field(default_factory=list)
    # Those of `matched` that repeat others of the same weight and count once.
    repeated: list[str] = field(default_factory=list)


class _ReadKeys(dict):
    """A state dict that remembers which of its tensors ComfyUI's loader has read."""

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


def match_lora(name: str, tensors: dict[str, Tensor], names: dict) -> MatchedLoRA:
    """Return ComfyUI's patches for a LoRA's tensors. names: `key_names(model, clip)`.

    Raises AdapterError if too few of the tensors match the model, or if one that does lacks its other half or cannot be
    part of an adapter.
    """
    embeddings = sorted({key.split(".")[1] for key in tensors if key.startswith("bundle_emb.")})
    state, patches = _read(name, {k: tensor for k, tensor in tensors.items() if not k.startswith("bundle_emb.")}, names)
    try:
        account = accounts.account(state, names, patches)
    except accounts.UnreadError as error:
        raise AdapterError(f"LoRA {name}: {error}") from error
    matched = sorted(account.used | account.repeated)
    unmatched = sorted(set(state) - set(matched))
    if len(matched) < LEAST_MATCHED_SHARE * len(state) or not patches:
        raise AdapterError(
            f"LoRA {name} matches {len(matched)} of its {len(state)} tensors to this model (unmatched:"
            f" {', '.join(unmatched[:3])}, …). It was trained for another architecture, or its keys are in a layout that ComfyUI"
            " does not read: load the checkpoint family it belongs to, convert it to kohya's layout, or choose another LoRA."
        )
    _warn(name, len(state), unmatched, embeddings)
    return MatchedLoRA(name, _group_by_weight(patches), matched, unmatched, embeddings, sorted(account.repeated))


def _read(name: str, tensors: dict[str, Tensor], names: dict) -> tuple[_ReadKeys, dict]:
    """Return the tensors by ComfyUI's names, and its patches by target. Raises AdapterError for anything else."""
    state = _ReadKeys(tensors)
    try:
        state = _ReadKeys(comfy.lora_convert.convert_lora(tensors))
        patches: dict = comfy.lora.load_lora(state, names, log_missing=False)
    except Exception as error:
        raise AdapterError(_describe_damage(name, state, error)) from error
    for key in sorted(state.read):
        if state[key].numel() == 0 or state[key].is_complex():
            raise AdapterError(
                f"LoRA {name}: {key} is {state[key].dtype} of shape {tuple(state[key].shape)}, which is no weight of an"
                " adapter. The file is damaged: download it again, or choose another LoRA."
            )
    return state, patches


def _group_by_weight(patches: dict) -> dict[str, list[Patch]]:
    result: dict[str, list[Patch]] = {}
    for target, patch in patches.items():
        # A target is a weight's key, or (key, slice of it[, function]) where a LoRA addresses part of a fused weight.
        key, offset, function, *_ = (*target, None) if isinstance(target, tuple) else (target, None, None)
        result.setdefault(key, []).append((patch, offset, function))
    return result


def _warn(name: str, tensors: int, unmatched: list[str], embeddings: list[str]) -> None:
    if unmatched:
        log.warning(
            "LoRA %s: %d of %d tensors match nothing in this model and are left out: %s",
            name,
            len(unmatched),
            tensors,
            ", ".join(unmatched[:8]),
        )
    if embeddings:
        log.warning(
            "LoRA %s bundles embeddings (%s), which are not merged: save them to the embeddings folder to use them.",
            name,
            ", ".join(embeddings),
        )


def _describe_damage(name: str, state: _ReadKeys, error: Exception) -> str:
    """Return the error text for a failure of ComfyUI's loader, which was due to the tensor that it read last."""
    fault = f"{error.args[0]} is missing" if isinstance(error, KeyError) else f"{state.last} cannot be used ({error})"
    return f"LoRA {name}: {fault}. The file is damaged: download it again, or choose another LoRA."


def key_names(model: ModelPatcher | None, clip) -> dict:
    """Return every name by which a LoRA file may address a weight -> the weight's key, as the stock loader maps them.

    ComfyUI also has names for weights that a variant of an architecture lacks; they are left out. Each bias has its own
    key as a name, which shows that the model has it.
    """
    names: dict = {}
    weights: set[str] = set()
    if model is not None:
        names = comfy.lora.model_lora_keys_unet(model.model, names)
        weights |= model.model_state_dict().keys()
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
        weights |= clip.patcher.model_state_dict().keys()
    names = {name: target for name, target in names.items() if accounts.weight_of(target) in weights}
    return {key: key for key in weights if key.endswith(".bias")} | names
