"""Trigger words that LoRA managers keep beside a file."""

import json

import pytest
import torch
from loraclr.loraclr_core.host.lora import file
from loraclr.loraclr_core.host.lora.file_words import read_words
from running import load, write_lora

STATE = {"lora_unet_a.lora_up.weight": torch.ones(4, 2), "lora_unet_a.lora_down.weight": torch.ones(2, 4)}
MANAGERS = {
    "A1111": (".json", {"activation text": "sks cat", "preferred weight": 0.8}),
    "Lora Manager": (".metadata.json", {"file_name": "a", "civitai": {"trainedWords": ["sks cat", "sks cat asleep"]}}),
    "Civitai Helper": (".civitai.info", {"id": 1, "trainedWords": ["sks cat"], "model": {"name": "Cat"}}),
}


@pytest.fixture
def lora(tmp_path):
    path = tmp_path / "a.safetensors"
    file.write(path, STATE, {}, overwrite=False)
    return path


@pytest.mark.parametrize("manager", MANAGERS)
def test_words_beside_a_file_are_its_trigger(lora, manager):
    ending, content = MANAGERS[manager]
    lora.with_name("a" + ending).write_text(json.dumps(content))
    found = read_words(lora)
    assert (found.trained.trigger, found.class_word) == ("sks cat", "cat")
    assert found.trained.source.endswith(f" of a{ending}")
    assert found.trained.others == (["sks cat asleep"] if manager == "Lora Manager" else [])


def test_what_the_user_typed_comes_before_what_a_site_says_and_all_of_it_is_offered(lora):
    for ending, content in MANAGERS.values():
        lora.with_name("a" + ending).write_text(json.dumps(content))
    lora.with_name("a.json").write_text(json.dumps({"activation text": "my cat (red)"}))
    found = read_words(lora).trained
    assert found.trigger == "my cat \\(red\\)"
    assert found.others == ["sks cat", "sks cat asleep"]


def test_words_in_the_file_come_first(tmp_path):
    path = tmp_path / "b.safetensors"
    file.write(path, STATE, {"modelspec.trigger_phrase": "zwx dog"}, overwrite=False)
    (tmp_path / "b.json").write_text('{"activation text": "sks cat"}')
    assert read_words(path).trained.trigger == "zwx dog"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[1]", b'{"activation text": 3}', b'{"activation text": null}', b"[" * 99999]
)
def test_a_file_of_another_kind_is_left_out(lora, content):
    lora.with_name("a.json").write_bytes(content)
    assert read_words(lora).trained.trigger == ""


def test_a_damaged_file_is_named_in_the_log(lora, caplog):
    lora.with_name("a.json").write_text("{")
    read_words(lora)
    assert "a.json cannot be read" in caplog.text


def test_the_node_takes_them_and_runs_again_when_they_change(loras_folder):
    from pack import node

    name = write_lora("words_beside.safetensors", STATE, {})
    beside = loras_folder / "words_beside.civitai.info"
    before = node("LoRACLR_LoadConceptLoRA").fingerprint_inputs(name)
    beside.write_text('{"trainedWords": ["sks cat"]}')
    assert node("LoRACLR_LoadConceptLoRA").fingerprint_inputs(name) != before
    chain, *_ = load(name)
    assert (chain[0].trigger, chain[0].class_word) == ("sks cat", "cat")
    beside.unlink()
