"""Bad files are refused by name, and writing is all or nothing."""

import json
import pickle
import resource
import struct

import pytest
import safetensors.torch
import torch
from loraclr.loraclr_core.host.lora import file as lora_file
from loraclr.loraclr_core.host.lora.file import LoRAFileError

STATE = {"a.lora_up.weight": torch.ones(4, 2), "a.lora_down.weight": torch.ones(2, 4)}


class Code:
    def __reduce__(self):
        return (print, ("this must not run",))


def forged_header(length: int) -> bytes:
    return struct.pack("<Q", length) + b"{}"


def claimed_tensor(shape: list[int], end: int) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0" * 16


BAD = {
    "empty.safetensors": b"",
    "truncated.safetensors": safetensors.torch.save(STATE)[:-8],
    "huge_header.safetensors": forged_header(1 << 60),
    "huge_tensor.safetensors": claimed_tensor([1 << 40], 1 << 42),
    "wrong_length.safetensors": claimed_tensor([2, 2], 12),
    "no_tensors.safetensors": safetensors.torch.save({}),
    "nan.safetensors": safetensors.torch.save(STATE | {"b": torch.tensor([1.0, float("nan")])}),
    "inf.safetensors": safetensors.torch.save(STATE | {"b": torch.tensor([float("inf")]).half()}),
    "nan_fp8.safetensors": safetensors.torch.save(STATE | {"b": torch.tensor([float("nan")]).to(torch.float8_e4m3fn)}),
    "code.pt": pickle.dumps({"a": Code()}),
    "text.safetensors": b"<html>404 Not Found</html>",
}
# What only the tensors show.
SOUND_HEADER = {"no_tensors.safetensors", "nan.safetensors", "inf.safetensors", "nan_fp8.safetensors"}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(tmp_path, capsys, name):
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(LoRAFileError, match=name):
        lora_file.read(path)
    if name not in SOUND_HEADER:
        with pytest.raises(LoRAFileError, match=name):
            lora_file.read_metadata(path)
    assert "must not run" not in capsys.readouterr().out


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(LoRAFileError, match="does not exist"):
        lora_file.read(tmp_path / "gone.safetensors")
    with pytest.raises(LoRAFileError, match="does not exist"):
        lora_file.read_metadata(tmp_path / "gone.safetensors")


def test_a_pickle_of_weights_alone_is_read(tmp_path):
    torch.save(STATE, tmp_path / "weights.pt")
    tensors, metadata = lora_file.read(tmp_path / "weights.pt")
    assert torch.equal(tensors["a.lora_up.weight"], STATE["a.lora_up.weight"])
    assert metadata == lora_file.read_metadata(tmp_path / "weights.pt") == {}


def test_written_files_read_back(tmp_path):
    path = tmp_path / "new" / "a.safetensors"
    lora_file.write(path, STATE, {"k": "v"}, overwrite=False)
    tensors, metadata = lora_file.read(path)
    assert metadata == lora_file.read_metadata(path) == {"k": "v"}
    assert all(torch.equal(tensors[key], STATE[key]) for key in STATE)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        lora_file.write(path, STATE, {}, overwrite=False)
    assert path.read_bytes() == b"precious"
    lora_file.write(path, STATE, {}, overwrite=True)
    assert lora_file.read(path)[0].keys() == STATE.keys()
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """The kernel refuses to let any file grow beyond 64 kB, as a full disk would."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(OSError, match="could not be written"):
            lora_file.write(path, {"a": torch.ones(1 << 20)}, {}, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]
