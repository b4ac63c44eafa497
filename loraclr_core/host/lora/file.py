"""LoRA files: reading, with every fault named, and writing, whole or not at all."""

import hashlib
import os
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import comfy.utils
import psutil
import safetensors
import safetensors.torch
import torch
from torch import Tensor

SAFETENSORS = (".safetensors", ".sft")
# The names in a pickle of weights. torch would also call others, through which a few bytes can allocate gigabytes.
WEIGHT_GLOBALS = {
    "collections OrderedDict",
    "torch Size",
    "torch.nn.parameter Parameter",
    "torch.storage UntypedStorage",
}
WEIGHT_GLOBALS |= {f"torch._utils _rebuild_{what}" for what in ("tensor_v2", "tensor_v3", "parameter")}
PACKED = {getattr(torch, "float4_e2m1fn_x2", None)}  # two numbers to a byte; not every torch has it
# A file is first written to a folder beside its destination, whose name begins with this and the number of the writing
# process.
SCRATCH = ".loraclr-saving-"


class LoRAFileError(ValueError):
    """A LoRA file that cannot be used; the message names the file and what to do."""


def read(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a LoRA file.

    Raises LoRAFileError if it is missing, truncated, forged, a pickle with code in it, claims more than it holds, holds
    no tensors, or holds NaN or Inf.
    """
    path = Path(path)
    with _name_errors(path):
        if path.suffix.lower() not in SAFETENSORS:
            _check_pickle(path)
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    if not isinstance(tensors, dict) or not tensors or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise LoRAFileError(f"LoRA file {path.name} is not a dictionary of tensors; choose a LoRA file. ({path})")
    size = path.stat().st_size
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not _is_plain(tensor) or tensor.nbytes > size:
            raise LoRAFileError(
                f"LoRA file {path.name} holds {key!r} as {tensor.dtype} {tuple(tensor.shape)}, which is no plain tensor of"
                f" the file; convert it to .safetensors or download it again. ({path})"
            )
        if not _is_finite(tensor):
            raise LoRAFileError(
                f"LoRA file {path.name} holds NaN or Inf in {key}; train or download it again. ({path})"
            )
    return tensors, metadata or {}


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Return the metadata of a LoRA file, reading the header alone where there is one.

    Raises LoRAFileError for the same faults as `read`, except for bad numbers in a safetensors file.
    """
    path = Path(path)
    if path.suffix.lower() not in SAFETENSORS:
        return read(path)[1]
    with _name_errors(path), safetensors.safe_open(path, framework="pt") as file:
        return file.metadata() or {}


@contextmanager
def _name_errors(path: Path) -> Iterator[None]:
    """Raise LoRAFileError, naming the file, where it is missing or the block fails."""
    if not path.is_file():
        raise LoRAFileError(f"LoRA file {path} does not exist; choose another file or put it back.")
    try:
        yield
    except Exception as error:
        raise LoRAFileError(
            f"LoRA file {path.name} cannot be read ({type(error).__name__}: {_first_line(error)}). It may be truncated, "
            f"not a LoRA, or a pickle with code in it: download it again, as .safetensors if you can. ({path})"
        ) from error


def sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_within(root: Path, filename: str) -> Path:
    """Return `filename` (.safetensors added) as a path within `root`. Raises ValueError if it is empty or outside."""
    stem = filename.strip().removesuffix(".safetensors")
    named = stem and not stem.endswith(("/", "\\")) and "\0" not in stem
    real_root = Path(os.path.realpath(root))
    path = Path(os.path.realpath(real_root / f"{stem}.safetensors")) if named else real_root
    if not named or not path.is_relative_to(real_root):
        raise ValueError(
            f"filename “{filename}” does not name a file within {root}; use a plain name such as loraclr/merged."
        )
    return root / path.relative_to(real_root)


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], overwrite: bool) -> None:
    """Write a safetensors file to a scratch folder beside `path`, then move it: it is written whole or not at all.

    Scratch folders of earlier saves that were killed are removed. Raises FileExistsError if `path` exists and
    `overwrite` is false; OSError if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent)
    try:
        with _scratch_folder(path.parent) as folder:
            # Not .safetensors, which ComfyUI would list. The library's own temporary file lands in the folder too.
            scratch = folder / "whole.tmp"
            safetensors.torch.save_file(tensors, scratch, metadata=metadata)
            # The library makes files that only their owner can read; a model should be an ordinary file.
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


@contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{SCRATCH}{os.getpid()}-"))
    _in_use.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _in_use.discard(folder)


_in_use: set[Path] = set()


def _remove_leftovers(parent: Path) -> None:
    """Remove scratch folders whose process is gone, or shares only its number with this one, as after a restart."""
    for folder in parent.glob(f"{SCRATCH}*"):
        pid = folder.name.removeprefix(SCRATCH).partition("-")[0]
        alive = pid.isdigit() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))
        if folder not in _in_use and not alive:
            shutil.rmtree(folder, ignore_errors=True)


def _check_pickle(path: Path) -> None:
    """Raise ValueError if reading the pickle could take far more memory than the file has bytes, or run code."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            for _ in range(4):  # an old file holds a magic number, a version and system information before the weights
                _check_globals(file)
        return
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("it unpacks to more than its own size")
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as file:
                    _check_globals(file)


def _check_globals(file: IO[bytes]) -> None:
    """Raise ValueError if the next pickle of `file` names anything but weights."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name != "GLOBAL" or argument in WEIGHT_GLOBALS:
            continue
        module, _, name = str(argument).partition(" ")
        if module != "torch" or not (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)):
            raise ValueError(f"it names {argument}")


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor holds its numbers in memory one by one: not sparse, quantised, packed or without data."""
    dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and not tensor.is_quantized and tensor.dtype not in PACKED


def _is_finite(tensor: Tensor) -> bool:
    # fp8 has no isfinite of its own; complex and integer tensors are no LoRA weights, but a file may hold them too.
    return bool(torch.isfinite(tensor.float() if tensor.itemsize == 1 else tensor).all())


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no details").splitlines()[0]
