"""Captures on disk spare work after a restart, and are never trusted where anything they depend on has changed."""

import shutil

import nodes
import pytest
import torch
from loraclr.loraclr_core.host.merge import cache as captures
from loraclr.loraclr_core.host.merge import store as capture_store
from pack import run
from running import merge

NONE = "0 model evaluations in this run (captured before)"
ONE, TWO, THREE = (f"{2 * count} model evaluations in this run." for count in (1, 2, 3))  # of two steps each


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(capture_store, "folder", lambda: tmp_path)
    captures.forget()
    return tmp_path


@pytest.fixture(scope="module")
def captured(demo, concepts, tmp_path_factory):
    """A folder with the captures of the first two concepts, and the LoRA merged from them."""
    folder = tmp_path_factory.mktemp("captured")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(capture_store, "folder", lambda: folder)
        lora, _ = on_disk(demo, concepts[:2])
    return folder, lora


@pytest.fixture
def two(captured, folder):
    """The captures of two concepts are on disk; the LoRA merged from them."""
    captured_in, lora = captured
    shutil.copytree(captured_in, folder, dirs_exist_ok=True)
    return lora


def on_disk(demo, concepts, **inputs):
    """The merged LoRA and the report, after a restart."""
    captures.forget()
    _, _, lora, _, report = merge(demo, concepts, captures="on disk", **inputs)
    return lora, report


def test_after_a_restart_nothing_is_captured_again(demo, concepts):
    first, report = on_disk(demo, concepts[:2], anchor_weight=1.0)
    assert "8 model evaluations" in report  # two concepts and the plain model on two class words
    assert "Captures on disk: 0." in report
    again, report = on_disk(demo, concepts[:2], anchor_weight=1.0)
    assert NONE in report
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_concept_added_at_the_end_costs_one_capture(demo, concepts, two):
    grown, report = on_disk(demo, concepts)
    assert ONE in report
    capture_store.clear()
    whole, report = on_disk(demo, concepts)
    assert THREE in report
    for key in whole:
        torch.testing.assert_close(grown[key], whole[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [{"capture_prompts": "{trigger}"}, {"capture_seed": 5}, {"capture_steps": 1}, {"merge_text_encoder": True}],
)
def test_other_settings_are_captured_anew(demo, concepts, two, change):
    _, report = on_disk(demo, concepts[:2], **change)
    assert NONE not in report


def test_another_strength_or_trigger_is_captured_anew(demo, concepts, two):
    for change in ({"strength_model": 0.5}, {"trigger": "other cat"}, {"sha256": "0" * 64}):
        _, report = on_disk(demo, [concepts[0]._replace(**change), concepts[1]])
        assert TWO in report


def test_another_base_is_captured_anew(demo, concepts, two):
    """By an upstream patch, and by a weight that changed in place."""
    key = "diffusion_model.out.2.weight"
    patched = demo._replace(model=demo.model.clone())
    patched.model.add_patches({key: ("diff", (0.01 * torch.ones_like(demo.model.model_state_dict()[key]),))})
    _, report = on_disk(patched, concepts[:2])
    assert TWO in report
    weight = demo.model.model.diffusion_model.out[
        0
    ].weight  # another one: of the first the host keeps a copy to put back
    with torch.no_grad():
        weight[0] += 0.5
    try:
        _, report = on_disk(demo, concepts[:2])
        assert TWO in report
    finally:
        with torch.no_grad():
            weight[0] -= 0.5


@pytest.mark.parametrize("damage", ["a byte", "the end", "everything"])
def test_a_damaged_file_is_deleted_and_its_concepts_captured_anew(demo, concepts, two, folder, damage, caplog):
    (path,) = folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "a byte":
        content[-100] ^= 1
    path.write_bytes({"a byte": content, "the end": content[:-1000], "everything": b""}[damage])
    found, report = on_disk(demo, concepts[:2])
    assert TWO in report
    assert path.name in caplog.text
    assert all(torch.equal(two[key], found[key]) for key in two)
    _, report = on_disk(demo, concepts[:2])
    assert NONE in report


def test_what_was_not_used_for_longest_goes_first(demo, concepts, two, monkeypatch, folder):
    on_disk(demo, concepts[1:])
    on_disk(demo, concepts[:2])  # used again
    monkeypatch.setattr(capture_store, "LIMIT", int(2.5 * capture_store.size() / 2))
    on_disk(demo, concepts[:2], capture_seed=3)
    assert len(capture_store.files()) == 2
    assert NONE in on_disk(demo, concepts[:2])[1]
    assert TWO in on_disk(demo, concepts[1:])[1]


def test_the_node_clears_the_disk_and_says_what_it_freed(demo, concepts, two):
    (report,) = run("LoRACLR_ClearCaptures")
    assert report.startswith("Deleted 1 files of captures (")
    assert capture_store.files() == []
    assert TWO in on_disk(demo, concepts[:2])[1]


def test_a_workflow_that_still_asks_the_merge_to_clear_the_disk_runs_and_is_told_about_the_node(demo, concepts, two):
    """A setting of version 0.1."""
    captures.forget()
    assert nodes.NODE_CLASS_MAPPINGS["LoRACLR_Merge"].validate_inputs(captures="clear the disk") is True
    report = merge(demo, concepts[:2], captures="clear the disk")[4]
    assert "the node Clear Captures" in report
    assert len(capture_store.files()) == 1
    refused = nodes.NODE_CLASS_MAPPINGS["LoRACLR_Merge"].validate_inputs(captures="elsewhere")
    assert "choose in memory or on disk" in refused


def test_a_model_whose_content_cannot_be_known_is_not_kept_and_the_report_says_so(demo, concepts):
    patched = demo._replace(model=demo.model.clone())
    patched.model.set_model_attn1_output_patch(lambda n, extra: n)
    _, report = on_disk(patched, concepts[:2])
    assert "not kept on disk: another node has put a model option on it" in report
    assert capture_store.files() == []


def test_a_full_disk_does_not_cost_the_merge(demo, concepts, monkeypatch):
    def no_room(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(capture_store.content, "write", no_room)
    lora, report = on_disk(demo, concepts[:2])
    assert lora
    assert "could not be kept on disk: No space left on device" in report
