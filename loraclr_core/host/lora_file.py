"""LoRA files: read with every fault named, and written whole or not at all."""

import hashlib
import json
import os
import tempfile
from pathlib import Path

import comfy.utils
import safetensors.torch
import torch
from torch import Tensor


class LoRAFileError(ValueError):
    """A LoRA file that cannot be used; the message names the file and what to do."""


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a LoRA file.

    Raises LoRAFileError if it is missing, truncated, forged, a pickle with code in it, holds no tensors, or holds NaN
    or Inf.
    """
    path = Path(path)
    if not path.is_file():
        raise LoRAFileError(f"LoRA file {path} does not exist; choose another file or put it back.")
    try:
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except Exception as error:
        raise LoRAFileError(
            f"LoRA file {path.name} cannot be read ({type(error).__name__}: {_first_line(error)}). It may be truncated, "
            f"not a LoRA, or a pickle with code in it: download it again, as .safetensors if you can. ({path})"
        ) from error
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise LoRAFileError(f"LoRA file {path.name} is not a dictionary of tensors; choose a LoRA file. ({path})")
    for key, tensor in tensors.items():
        # fp8 has no isfinite of its own; complex and integer tensors are not LoRA weights but may stand beside them.
        if tensor.is_floating_point() and not torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all():
            raise LoRAFileError(
                f"LoRA file {path.name} holds NaN or Inf in {key}; train or download it again. ({path})"
            )
    return tensors, metadata or {}


def sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def trigger_from_metadata(metadata: dict[str, str]) -> str | None:
    """The phrase a LoRA was trained on, where its file says so.

    Looks at modelspec.trigger_phrase, then at kohya's ss_tag_frequency (the tag that most captions have) and
    ss_dataset_dirs ("10_sks cat": ten repeats of "sks cat").
    """
    if phrase := metadata.get("modelspec.trigger_phrase", "").strip():
        return phrase
    counts: dict[str, int] = {}
    for tags in _json_object(metadata.get("ss_tag_frequency")).values():
        for tag, count in tags.items():
            counts[tag.strip()] = counts.get(tag.strip(), 0) + int(count)
    if counts.pop("", None) is not None or counts:
        return max(counts, key=lambda tag: counts[tag], default=None)
    for folder in _json_object(metadata.get("ss_dataset_dirs")):
        repeats, _, phrase = folder.partition("_")
        if repeats.isdigit() and phrase.strip():
            return phrase.strip()
    return None


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], overwrite: bool) -> None:
    """Writes a safetensors file under a temporary name beside `path` and renames it: whole or not at all.

    Raises FileExistsError if `path` is there and `overwrite` is false; OSError if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    os.close(handle)
    scratch = Path(name)
    try:
        safetensors.torch.save_file(tensors, scratch, metadata=metadata)
        # mkstemp makes files only their owner can read; a model is an ordinary file.
        umask = os.umask(0)
        os.umask(umask)
        scratch.chmod(0o666 & ~umask)
        if overwrite:
            scratch.replace(path)
        else:
            os.link(scratch, path)  # unlike a rename, fails where the name is taken
    except Exception as error:
        if isinstance(error, FileExistsError):
            raise
        raise OSError(
            f"{path} could not be written ({_first_line(error)}); free some space or choose another folder. "
            "Nothing was left behind."
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def _json_object(text: str | None) -> dict:
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no details").splitlines()[0]
