"""Captures on disk spare work after a restart, and are never trusted where anything they depend on has changed."""

import shutil

import lora_files
import nodes
import pytest
import torch
from loraclr.loraclr_core.host.merge import cache as captures
from loraclr.loraclr_core.host.merge import store as capture_store
from pack import run
from running import MERGE, load, merge, write_lora

BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
LAYERS = [f"{BLOCK}.attn1.{name}" for name in ("to_q", "to_k", "to_v")]
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


def test_a_concept_added_costs_one_capture_wherever_it_stands(demo, concepts, two):
    grown, report = on_disk(demo, [concepts[2], *concepts[:2]])
    assert ONE in report
    capture_store.clear()
    whole, report = on_disk(demo, [concepts[2], *concepts[:2]])
    assert THREE in report
    assert all(torch.equal(grown[key], whole[key]) for key in whole)


def test_any_subset_in_any_order_merges_from_the_files(demo, concepts):
    on_disk(demo, concepts)
    for subset in ([2, 0], [1, 2], [2, 1, 0]):
        lora, report = on_disk(demo, [concepts[i] for i in subset])
        assert NONE in report
        capture_store.clear()
        fresh, _ = on_disk(demo, [concepts[i] for i in subset])
        assert all(torch.equal(lora[key], fresh[key]) for key in fresh)
        on_disk(demo, concepts)


def test_a_file_grows_with_the_layers_that_a_chain_needs(demo, concepts, folder):
    """A concept whose LoRA changes other layers makes the earlier file wider, once; both chains merge from it then."""
    names = [write_lora(f"store {i}.safetensors", lora_files.lora(layer, (320, 320))) for i, layer in enumerate(LAYERS)]
    chain = [load(name, f"trigger {i}")[0][0]._replace(name=f"c{i}") for i, name in enumerate(names)]
    assert TWO in on_disk(demo, [chain[0], chain[1]])[1]
    assert TWO in on_disk(demo, [chain[0], chain[2]])[1]
    assert NONE in on_disk(demo, [chain[0], chain[1]])[1]
    on_disk(demo, chain)
    assert NONE in on_disk(demo, [chain[2], chain[1]])[1]


def test_a_margin_does_not_depend_on_the_solver_that_ran_before(demo, concepts):
    """adamw (paper) keeps more samples, which must not serve a later exact with a margin."""
    margin = {"margin": 0.5, "margin_mode": "relative"}
    captures.forget()
    first = merge(demo, concepts[:2], **margin)[2]
    captures.forget()
    merge(demo, concepts[:2], solver="adamw (paper)")
    later = merge(demo, concepts[:2], **margin)[2]
    assert all(torch.equal(first[key], later[key]) for key in first)


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
        assert ONE in report


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
    path = min(folder.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    if damage == "a byte":
        content[-100] ^= 1
    path.write_bytes({"a byte": content, "the end": content[:-1000], "everything": b""}[damage])
    found, report = on_disk(demo, concepts[:2])
    assert ONE in report
    assert path.name in caplog.text
    assert all(torch.equal(two[key], found[key]) for key in two)
    _, report = on_disk(demo, concepts[:2])
    assert NONE in report


def test_what_was_not_used_for_longest_goes_first(demo, concepts, two, monkeypatch):
    on_disk(demo, concepts)
    on_disk(demo, concepts[:2])  # used again
    monkeypatch.setattr(capture_store, "LIMIT", int(4.5 * capture_store.size() / 3))
    on_disk(demo, concepts[:2], capture_seed=3)
    assert len(capture_store.files()) == 4
    assert NONE in on_disk(demo, concepts[:2])[1]
    assert ONE in on_disk(demo, concepts)[1]


def test_the_node_clears_the_disk_and_says_what_it_freed(demo, concepts, two):
    (report,) = run("LoRACLR_ClearCaptures")
    assert report.startswith("Deleted 2 files of captures (")
    assert capture_store.files() == []
    assert TWO in on_disk(demo, concepts[:2])[1]


def test_a_workflow_that_still_asks_the_merge_to_clear_the_disk_runs_and_is_told_about_the_node(demo, concepts, two):
    """A setting of version 0.1."""
    captures.forget()
    assert nodes.NODE_CLASS_MAPPINGS["LoRACLR_Merge"].validate_inputs(captures="clear the disk") is True
    report = merge(demo, concepts[:2], captures="clear the disk")[4]
    assert "the node Clear Captures" in report
    assert len(capture_store.files()) == 2
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


def test_the_prompt_selects_the_concepts_to_merge(demo, concepts):
    """In the order of the chain, as if the rest were not connected."""
    marks = [f"{{{concept.name}}}" for concept in concepts]
    on_disk(demo, concepts)
    named, report = on_disk(demo, concepts, prompt=f"{marks[2]} beside {marks[0]}")
    assert NONE in report
    alone, _ = on_disk(demo, [concepts[0], concepts[2]])
    assert named.keys() == alone.keys()
    assert all(torch.equal(named[key], alone[key]) for key in alone)
    with pytest.raises(ValueError, match=r"\{horse\}, and no concept is called that"):
        on_disk(demo, concepts, prompt="a {horse}")
    with pytest.raises(ValueError, match=r"names no concept: write those to merge as \{cat\}"):
        on_disk(demo, concepts, prompt="a horse")


def test_capture_concept_makes_the_files_of_the_merge(demo, concepts, two, folder):
    """Whoever made them: the same names and the same content; what is there is not made again."""
    made = {path.name: capture_store.content.read(path)[1] for path in folder.glob("*.safetensors")}
    capture_store.clear()
    values = {"model": demo.model, "clip": demo.clip, "latent": {"samples": torch.zeros(1, 4, 8, 8)}, **MERGE}
    chain, report = run("LoRACLR_CaptureConcept", concepts=concepts[:2], **values)
    assert chain == concepts[:2]
    assert "2 of 2 concepts captured" in report
    # The header has a digest of the tensors.
    assert {path.name: capture_store.content.read(path)[1] for path in folder.glob("*.safetensors")} == made
    assert "0 of 2 concepts captured" in run("LoRACLR_CaptureConcept", concepts=concepts[:2], **values)[1]
    assert NONE in on_disk(demo, concepts[:2])[1]
