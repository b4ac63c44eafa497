"""Digests of a model's and of tensors' content, and files that carry the digest of their own content."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from safetensors import safe_open
from torch import Tensor

from . import weights
from .lora import file

# Checkpoints of Stable Diffusion lack this weight of the text encoder, and ComfyUI leaves in it whatever the memory held:
# other numbers after each start. Models that do use it differ in other weights, too.
UNLOADED = "text_projection.weight"


class NotStorableError(ValueError):
    """The model has a part whose content cannot be determined; the message names it."""


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, str]) -> None:
    """Write a file whole or not at all, in place of one that is there. Raises OSError."""
    file.write(path, tensors, header | {"content": of_tensors(tensors)}, overwrite=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and header of a file. Raises ValueError, KeyError, OSError or SafetensorError if it is damaged."""
    with safe_open(path, framework="pt") as opened:
        header = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    if header["content"] != of_tensors(tensors):
        raise ValueError("its content is not what was written")
    return tensors, header


def files(folder: Path) -> list[Path]:
    """Return the files of a folder, least recently used first."""
    return sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)


def prune(folder: Path, limit: int, kept: Path) -> None:
    """Delete the least recently used files until those of the folder have at most `limit` bytes; never `kept`."""
    for old in files(folder):
        if sum(path.stat().st_size for path in files(folder)) <= limit or old == kept:
            break
        old.unlink()


def of_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the digest of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def add_model(digest, patcher: ModelPatcher) -> None:
    """Add weights, patches and configuration. Raises NotStorableError where anything else changes the model."""
    attached = {
        "a wrapper": [entries for by_key in patcher.wrappers.values() for entries in by_key.values()],
        "an injection": patcher.injections,
        "a hook": patcher.hook_patches,
        "a weight wrapper": patcher.weight_wrapper_patches,
        "a model option": {key: value for key, value in patcher.model_options.items() if value},
    }
    for what, entries in attached.items():
        if any(entries.values() if isinstance(entries, dict) else entries):
            raise NotStorableError(f"another node has put {what} on it")
    digest.update(f"{type(patcher.model).__name__} {_configuration(patcher.model)}".encode())
    for name, patch in sorted(patcher.object_patches.items()):
        _add_leaf(digest, name, patch)
    for key, placed in sorted(patcher.model_state_dict().items()):
        digest.update(key.encode())
        weight = None if key.endswith(UNLOADED) else weights.content(patcher, key, placed)
        for part in _leaves((weight, patcher.patches.get(key, []))):
            _add_leaf(digest, key, part)


def _configuration(model) -> str:
    """Return a model's configuration, including the kind of its prediction; nothing for a text encoder."""
    config = getattr(model, "model_config", None)
    return repr((config.unet_config, config.sampling_settings, model.model_type) if config else None)


def _leaves(value: object) -> Iterable[object]:
    """Yield the leaves of a nested structure; adapters are replaced by their weights."""
    if isinstance(value, list | tuple):
        for element in value:
            yield from _leaves(element)
    elif hasattr(value, "weights"):
        yield type(value).__name__
        yield from _leaves(value.weights)
    else:
        yield value


def _add_leaf(digest, key: str, part: object) -> None:
    if weights.is_wrapper(part):  # quantised by ComfyUI: codes, scales, and how to read them
        names, kind = part.__tensor_flatten__()
        digest.update(repr(kind).encode())
        for name in names:
            _add_leaf(digest, key, getattr(part, name))
    elif isinstance(part, Tensor):
        digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
        try:
            digest.update(_bytes(part))
        except (RuntimeError, TypeError) as error:
            raise NotStorableError(f"the content of {key}, stored as {type(part).__name__}, cannot be read") from error
    elif isinstance(part, str | float | int | torch.dtype | None):
        digest.update(repr(part).encode())
    else:
        raise NotStorableError(f"{key} has a patch with a {type(part).__name__}, whose content cannot be known")
