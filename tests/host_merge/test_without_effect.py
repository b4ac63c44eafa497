"""A concept that changes nothing takes no part in a merge, as if it were not connected, and the node says so."""

import architectures
import lora_files
import pytest
import torch
from loraclr.loraclr_core.host.merge import cache as captures
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge import report
from running import load, merge, save, write_lora

BLOCK = "diffusion_model.middle_block.1.transformer_blocks.0"
LAYERS = {f"{BLOCK}.attn1.to_q": (128, 128), f"{BLOCK}.attn2.to_k": (128, 32)}
TEXT_LAYERS = {"text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj": (32, 32)}
OFF = {"strength_model": 0.0, "strength_clip": 0.0}
SOLVERS = {
    "exact": {},
    "margin": {"margin": 2.0, "margin_mode": "relative"},
    "anchor": {"anchor_weight": 1.0},
    "adamw": {"solver": "adamw (paper)"},
    "sum": {"solver": "sum (baseline)"},
    "distillation": {"distillation_steps": 1},
}


@pytest.fixture(scope="module")
def small():
    with torch.inference_mode():
        return architectures.build("SD1.5")


def tensors(layers: dict, scale: float = 1.0) -> dict:
    found = {}
    for layer, shape in layers.items():
        found |= lora_files.lora(layer, shape, scale=scale)
    return found


@pytest.fixture(scope="module")
def files():
    """LoRA files by what they change."""
    states = {name: tensors(LAYERS | TEXT_LAYERS) for name in ("cat", "dog", "bird")}
    states |= {"nothing": tensors(LAYERS, scale=0.0), "text": tensors(TEXT_LAYERS)}
    with torch.inference_mode():
        states |= {f"bias {n}": lora_files.bias(f"{BLOCK}.attn1.to_out.0", (128,)) for n in range(2)}
        return {name: write_lora(f"effect {name}.safetensors", state) for name, state in states.items()}


def chain(files, *concepts: str | tuple[str, dict]) -> list:
    """Concepts of these files, each alone or with inputs of its node."""
    found = None
    for each in concepts:
        name, inputs = each if isinstance(each, tuple) else (each, {})
        found, *_ = load(files[name], f"sks {name}", found, class_word=name, **inputs)
    assert found
    return found


def merged(small, concepts, **inputs):
    captures.forget()
    return merge(
        small, concepts, **({"latent": {"samples": torch.zeros(1, 4, 8, 8)}, "merge_text_encoder": True} | inputs)
    )


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_concept_that_is_off_is_as_if_not_connected(small, files, solver):
    found = merged(small, chain(files, "cat", ("dog", OFF), "bird"), **SOLVERS[solver])
    expected = merged(small, chain(files, "cat", "bird"), **SOLVERS[solver])
    assert_same(found[2], expected[2])
    assert found[3] == expected[3]
    assert "dog takes no part, as if it were not connected: both strengths are 0" in found[4]


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_concept_beside_one_that_is_off_is_exported_as_it_is(small, files, solver):
    found = merged(small, chain(files, ("dog", OFF), "cat"), **SOLVERS[solver])
    assert_same(found[2], merged(small, chain(files, "cat"))[2])
    assert "exported as it is" in found[4]


@pytest.mark.parametrize(
    ("concept", "inputs", "reason"),
    [
        ("nothing", {}, "its LoRA changes nothing"),
        (("text", {"strength_clip": 0.0}), {}, "its LoRA changes nothing"),
        ("text", {"merge_text_encoder": False}, "its LoRA changes nothing but the text encoder at most"),
        (("dog", {"strength_model": 0.0}), {"merge_text_encoder": False}, "its model strength is 0"),
    ],
)
def test_a_lora_that_changes_nothing_takes_no_part(small, files, concept, inputs, reason):
    found = merged(small, chain(files, "cat", concept, "bird"), **inputs)
    assert_same(found[2], merged(small, chain(files, "cat", "bird"), **inputs)[2])
    assert f"takes no part, as if it were not connected: {reason}\n" in found[4]


def test_a_concept_that_changes_only_the_text_takes_part_in_every_layer(small, files):
    """Its own model is the plain one after its text encoder: for its words, the others' differences are unwelcome."""
    found = merged(small, chain(files, "cat", ("dog", {"strength_model": 0.0})))
    alone = merged(small, chain(files, "cat"))[2]
    layer = next(key for key in alone if key.startswith("lora_unet") and key.endswith("lora_down.weight"))
    assert not torch.equal(found[2][layer], alone[layer])
    assert "takes no part" not in found[4]


def test_the_file_of_a_concept_that_is_off_may_be_any(small, files):
    """Also one for another model, which is an error otherwise."""
    other = {"elsewhere": write_lora("elsewhere.safetensors", {"nowhere.lora_up.weight": torch.ones(2, 2)})}
    off = chain(files | other, "cat", ("elsewhere", OFF))
    assert_same(merged(small, off)[2], merged(small, chain(files, "cat"))[2])


def test_the_node_shows_who_takes_no_part(small, files):
    settings = merging.MergeSettings(
        capture=merging.CaptureSettings(("{trigger}",), 1, 0, (4, 8, 8)),
    )
    concepts = chain(files, "cat", ("dog", OFF))
    result = merging.merge(small.model, small.clip, concepts, settings, lambda phase, done: None)
    panel = report.panel(result)
    assert [each["name"] for each in panel["concepts"]] == ["cat", "dog (takes no part)"]
    assert panel["verdicts"][1] == {"concept": "dog", "text": "takes no part: both strengths are 0"}


def test_all_off_is_said_and_not_saved(small, files):
    _, _, lora, info, text = merged(small, chain(files, ("cat", OFF), ("dog", OFF)))
    assert lora == {}
    assert "No concept changes anything" in text
    with pytest.raises(ValueError, match="every concept has strength 0 or changes nothing"):
        save(lora, "nothing", merge_info=info)


def test_concepts_with_nothing_to_solve_are_summed(small, files):
    """Biases cannot be solved: two LoRAs of them need no captures."""
    model, *_, text = merged(small, chain(files, "bias 0", "bias 1"))
    assert f"{BLOCK}.attn1.to_out.0.bias" in model.patches
    assert "Summed as stacking LoRAs does" in text


def test_distillation_of_text_encoders_alone_is_said_to_be_none(small, files):
    """Only layers of the diffusion model are trained."""
    concepts = chain(files, "text", ("text", {"name": "again"}))
    assert "No distillation" in merged(small, concepts, distillation_steps=1)[4]
