"""Nothing is lost: cancelled, killed and further trainings; changed and damaged states; a full disk."""

import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import folder_paths
import pytest
import safetensors
import torch
from host_train.training import TRIGGER, errors, latent_of, picture, small_models, train, with_lora
from loraclr.loraclr_core.host.lora import file as lora_file
from loraclr.loraclr_core.host.train import saves, state
from loraclr.loraclr_core.host.train.rows import Rows
from loraclr.nodes import page

IMAGES = [picture(1), picture(2, 96, 64), picture(3)]
# Everything that a step draws at random: the order of pictures, empty prompts, captions left out, pictures beside a dog.
SETTINGS = {"batch": 2, "caption_dropout": 0.3, "flip": True, "beside": "dog", "captions": [f"a {TRIGGER} on a table"]}


@pytest.fixture
def models():
    return small_models("SD1.5")


def loras(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def cancel_at(step: int, monkeypatch) -> None:
    """The user cancels: ComfyUI's own flag, raised where the node asks for it before a step."""
    shown = page.show_text

    def show(text: str, node_id: str) -> None:
        shown(text, node_id)
        if text.startswith(f"training, step {step} "):
            comfy.model_management.interrupt_current_processing()

    monkeypatch.setattr(page, "show_text", show)


class Cancelled(NamedTuple):
    folder: Path
    header: dict


@pytest.fixture
def cancelled(models, loras_folder, monkeypatch) -> Cancelled:
    """Cancelled while step 5 of 8 is taken."""
    with monkeypatch.context() as patch:
        cancel_at(5, patch)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(models, IMAGES, steps=8, name="cancelled/cat", **SETTINGS)
    folder = loras_folder / "cancelled"
    yield Cancelled(folder, lora_file.read_metadata(folder / "cat.safetensors"))
    shutil.rmtree(folder)


class TestGoingOn:
    def test_three_steps_and_three_more_are_six_bit_for_bit(self, models):
        first = train(models, IMAGES, steps=3, **SETTINGS)
        assert "Went on" not in first.report
        parts = train(models, IMAGES, steps=6, **SETTINGS)
        assert "Went on from step 3." in parts.report
        whole = train(models, IMAGES, steps=6, if_there="anew", **SETTINGS)
        assert parts.loss_map == whole.loss_map
        assert len(whole.loss_map["loss"]) == 6
        assert same(parts.lora, whole.lora)
        assert not same(first.lora, whole.lora)

    def test_fewer_steps_serve_what_is_there(self, models):
        more = train(models, IMAGES, steps=3)
        fewer = train(models, IMAGES, steps=2)
        assert same(more.lora, fewer.lora)
        assert "3 steps" in fewer.report

    def test_what_was_trained_already_is_not_written_again(self, models, loras_folder):
        name = train(models, IMAGES, steps=2, name="again/cat").lora_name
        before = (loras_folder / name).stat().st_mtime_ns
        assert train(models, IMAGES, steps=2, name="again/cat").lora_name == name
        assert (loras_folder / name).stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"preservation": 3.0}, "preservation was 1.0 and is 3.0"),
            ({"captions": [f"a {TRIGGER}"]}, "the captions changed"),
            ({"masks": [torch.ones(3, 64, 64)]}, "the masks changed"),
        ],
    )
    def test_a_change_starts_anew_and_says_why(self, models, change, why):
        train(models, IMAGES, steps=1)
        changed = train(models, IMAGES, steps=1, **change)
        assert f"Started anew, not from step 1 of the last training of {TRIGGER}: {why}." in changed.report

    def test_another_picture_or_base_starts_anew(self, models):
        train(models, IMAGES, steps=1)
        other = train(models, [*IMAGES[:2], picture(4)], steps=1)
        assert "the pictures changed" in other.report
        patched = models._replace(model=with_lora(models.model, other.lora))
        assert "the model changed" in train(patched, [*IMAGES[:2], picture(4)], steps=1).report

    def test_it_goes_on_after_a_restart_that_left_other_numbers_in_a_weight_that_no_checkpoint_has(self, models):
        train(models, IMAGES, steps=1)
        models.clip.cond_stage_model.clip_l.transformer.text_projection.weight.data.normal_()
        assert "Went on from step 1." in train(models, IMAGES, steps=2).report

    @pytest.mark.parametrize("damage", ["a byte", "the end", "everything"])
    def test_a_damaged_state_is_named_and_not_used(self, models, user_folder, damage):
        train(models, IMAGES, steps=1)
        (path,) = (user_folder / "loraclr_training").glob("*.safetensors")
        content = bytearray(path.read_bytes())
        content[-9] ^= 1
        path.write_bytes({"a byte": content, "the end": content[:-1000], "everything": b""}[damage])
        anew = train(models, IMAGES, steps=2)
        assert f"the state {path} is damaged" in anew.report
        assert same(anew.lora, train(models, IMAGES, steps=2, if_there="anew").lora)
        assert "Went on from step 2." in train(models, IMAGES, steps=3).report

    def test_the_oldest_states_make_room(self, models, user_folder, monkeypatch):
        train(models, IMAGES, steps=1)
        (old,) = (user_folder / "loraclr_training").glob("*.safetensors")
        monkeypatch.setattr(state, "LIMIT", old.stat().st_size)
        train(models, IMAGES, steps=1, rank=5)
        assert not old.exists()


class TestOverflows:
    """Gradients that are no numbers, as half precision gives them for a single noise level."""

    @staticmethod
    def overflow(monkeypatch, *steps: int) -> None:
        add = Rows.add_gradients

        def add_too_much(self, deltas, step):
            losses = add(self, deltas, step)
            if step in steps:
                next(iter(deltas.values())).up.grad.mul_(torch.inf)
            return losses

        monkeypatch.setattr(Rows, "add_gradients", add_too_much)

    def test_such_a_step_moves_nothing_and_is_told(self, models, monkeypatch):
        first = train(models, IMAGES, steps=2, name="overflow/cat", **SETTINGS)
        self.overflow(monkeypatch, 2)
        second = train(models, IMAGES, steps=3, name="overflow/cat", **SETTINGS)
        assert same(first.lora, second.lora)
        assert len(second.loss_map["loss"]) == 3
        assert "1 of 3 steps taught nothing" in second.report
        assert not same(second.lora, train(models, IMAGES, steps=4, name="overflow/cat", **SETTINGS).lora)

    def test_five_in_a_row_end_the_training_wherever_it_went_on(self, models, monkeypatch):
        self.overflow(monkeypatch, 0, 1, 3, 4, 5, 6, 7)
        train(models, IMAGES, steps=5, **SETTINGS)
        with pytest.raises(ValueError, match=r"gradients became NaN or Inf in step 8\. Lower learning_rate"):
            train(models, IMAGES, steps=9, **SETTINGS)


class TestCancelling:
    def test_the_lora_so_far_is_there_and_loads(self, models, cancelled):
        assert loras(cancelled.folder) == ["cat.safetensors"]
        # The host itself also asks for its flag within an evaluation of the model; that step is then not taken.
        assert cancelled.header["ss_steps"] in ("4", "5")
        tensors, _ = lora_file.read(cancelled.folder / "cat.safetensors")
        prompt, latent = SETTINGS["captions"][0], latent_of(models, IMAGES[0])
        plain = errors(models.model, models.clip, prompt, latent)
        assert errors(with_lora(models.model, tensors), models.clip, prompt, latent) != plain

    def test_going_on_gives_what_an_unbroken_training_gives(self, models, cancelled):
        went_on = train(models, IMAGES, steps=8, name="cancelled/cat", **SETTINGS)
        assert f"Went on from step {cancelled.header['ss_steps']}." in went_on.report
        assert went_on.lora_name == "cancelled/cat.safetensors"
        assert same(went_on.lora, train(models, IMAGES, steps=8, if_there="anew", name="x", **SETTINGS).lora)

    def test_the_model_is_as_it_was(self, models, cancelled):
        assert models.model.patches == {}
        assert not any(module._forward_hooks or "forward" in vars(module) for module in models.model.model.modules())
        assert comfy.model_management.in_training is False

    def test_before_the_first_step_there_is_nothing_to_save(self, models, loras_folder, monkeypatch):
        cancel_at(0, monkeypatch)
        comfy.model_management.interrupt_current_processing()
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            train(models, IMAGES, steps=8, name="at once/cat")
        assert not (loras_folder / "at once").exists()


class TestSavingOnTheWay:
    def test_the_latest_are_kept(self, models, loras_folder):
        train(models, IMAGES, steps=7, name="kept/cat", save_every=2, keep=2)
        folder = loras_folder / "kept"
        assert loras(folder) == ["cat.safetensors", "cat_step000004.safetensors", "cat_step000006.safetensors"]
        assert lora_file.read_metadata(folder / "cat_step000004.safetensors")["ss_steps"] == "4"

    def test_a_file_that_is_not_of_this_training_is_left_alone(self, models, loras_folder):
        folder = loras_folder / "taken"
        lora_file.write(folder / "cat.safetensors", {"a.lora_up.weight": torch.ones(2, 2)}, {}, overwrite=False)
        before = (folder / "cat.safetensors").read_bytes()
        assert train(models, IMAGES, steps=1, name="taken/cat").lora_name == "taken/cat_2.safetensors"
        assert train(models, IMAGES, steps=2, name="taken/cat").lora_name == "taken/cat_2.safetensors"
        assert train(models, IMAGES, steps=1, rank=5, name="taken/cat").lora_name == "taken/cat_3.safetensors"
        assert (folder / "cat.safetensors").read_bytes() == before

    def test_a_disk_that_fills_up_on_the_way_does_not_end_the_training(self, models, monkeypatch, caplog):
        real = lora_file.write

        def full(path, *args, **kwargs):
            if "_step" in path.name:
                raise OSError(f"{path} could not be written (no space left)")
            real(path, *args, **kwargs)

        monkeypatch.setattr(lora_file, "write", full)
        trained = train(models, IMAGES, steps=3, name="filled/cat", save_every=2)
        assert len(trained.loss_map["loss"]) == 3
        assert "step 2 could not be saved" in caplog.text

    def test_a_full_disk_is_refused_before_anything_is_done(self, models, monkeypatch):
        usage = shutil.disk_usage("/")._replace(free=1000)
        monkeypatch.setattr(saves.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(OSError, match=r"has 0 MiB free, and this training needs \d+ MiB there.*free some space"):
            train(models, IMAGES, steps=1, name="full/cat")


def test_killed_while_training_it_goes_on_from_the_last_save(models, loras_folder, user_folder):
    """SIGKILL after the save of step 4: no half file anywhere, and what is there is whole."""
    folder = loras_folder / "killed_training"

    def work() -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            train(models, IMAGES, steps=1000, name="killed_training/cat", save_every=4, **SETTINGS)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while child.is_alive() and not (folder / "cat_step000004.safetensors").exists():
        time.sleep(0.01)
    while child.is_alive() and not list((user_folder / "loraclr_training").glob("*.safetensors")):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -9
    for path in [*folder.glob("*.safetensors"), *user_folder.rglob("*.safetensors")]:
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.metadata()
    went_on = train(models, IMAGES, steps=9, name="killed_training/cat", **SETTINGS)
    assert "Went on from step" in went_on.report
    assert same(
        went_on.lora, train(models, IMAGES, steps=9, name="killed_training/dog", if_there="anew", **SETTINGS).lora
    )
    assert [name for name in folder_paths.get_filename_list("loras") if name.startswith("killed_training/.")] == []
