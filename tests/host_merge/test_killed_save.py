"""Killed in the middle of a save: no half file under the final name, nothing that a loader would list."""

import multiprocessing
import time
from pathlib import Path

import folder_paths
import pytest
import torch
from loraclr.loraclr_core.host.lora import file as lora_file
from running import save

TENSORS = {"a.lora_up.weight": torch.ones(1 << 25), "a.lora_down.weight": torch.ones(2, 4)}
SIZE = sum(tensor.nbytes for tensor in TENSORS.values())
SMALL = {"b.lora_up.weight": torch.ones(4, 2), "b.lora_down.weight": torch.ones(2, 4)}


def kill_while_saving(path: Path, share: float, overwrite: bool) -> None:
    """SIGKILL as soon as `share` of the file is on its way."""
    # Forked, so that the child is writing at once instead of starting a ComfyUI of its own.
    child = multiprocessing.get_context("fork").Process(target=lora_file.write, args=(path, TENSORS, {}, overwrite))
    child.start()
    while child.is_alive() and on_the_way(path.parent) < share * SIZE:
        time.sleep(0.0005)
    child.kill()
    child.join()
    assert child.exitcode == -9, "the save ended before it could be killed"


def on_the_way(folder: Path) -> int:
    """Bytes in scratch folders; -1 before there is any."""
    files = [file for scratch in folder.glob(f"{lora_file.SCRATCH}*") for file in (scratch, *scratch.glob("*"))]
    return sum((file.stat().st_size for file in files if file.is_file()), start=0 if files else -1)


@pytest.fixture
def folder(loras_folder) -> Path:
    return loras_folder / "killed"


def listed() -> list[str]:
    """What the host offers of the folder."""
    return sorted(name for name in folder_paths.get_filename_list("loras") if name.startswith("killed/"))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_a_new_file_is_not_there_at_all(folder, share):
    path = folder / "new.safetensors"
    folder.mkdir()
    kill_while_saving(path, share, overwrite=False)
    assert not path.exists()
    assert list(folder.iterdir()), "nothing was being written"
    assert listed() == []

    assert save(SMALL, "killed/new")[0] == "killed/new.safetensors"
    assert list(folder.iterdir()) == [path], "the leftovers are still there"
    assert lora_file.read(path)[0].keys() >= SMALL.keys()
    path.unlink()
    folder.rmdir()


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_a_file_to_be_overwritten_stays_whole(folder, share):
    path = folder / "old.safetensors"
    lora_file.write(path, SMALL, {"k": "v"}, overwrite=False)
    before = path.read_bytes()
    kill_while_saving(path, share, overwrite=True)
    assert path.read_bytes() == before
    assert listed() == ["killed/old.safetensors"]

    save(SMALL, "killed/other")
    assert sorted(file.name for file in folder.iterdir()) == ["old.safetensors", "other.safetensors"]
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_a_save_that_is_still_running_is_left_alone(tmp_path):
    """Another process's, and this one's own."""
    path = tmp_path / "a.safetensors"
    child = multiprocessing.get_context("fork").Process(target=lora_file.write, args=(path, TENSORS, {}, False))
    child.start()
    while child.is_alive() and on_the_way(tmp_path) < 0:
        time.sleep(0.0005)
    with lora_file._scratch_folder(tmp_path) as own:
        lora_file.write(tmp_path / "b.safetensors", SMALL, {}, overwrite=False)
        assert own.is_dir()
    child.join()
    assert child.exitcode == 0
    assert lora_file.read(path)[0].keys() == TENSORS.keys()


def test_leftovers_of_a_process_of_the_same_number_are_removed(tmp_path):
    """In a container every ComfyUI has the same number."""
    with lora_file._scratch_folder(tmp_path) as own:
        left = own.with_name(f"{own.name}-before")
        left.mkdir()
        (left / "whole.tmp").write_bytes(b"half")
        lora_file.write(tmp_path / "a.safetensors", SMALL, {}, overwrite=False)
        assert own.is_dir()
        assert not left.exists()
