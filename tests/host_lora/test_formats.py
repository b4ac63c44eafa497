"""Files of every trainer's key layout: each key finds its weight or is named, and acts as under the stock loader."""

from pathlib import Path

import architectures
import comfy.lora
import comfy.sd
import host
import lora_files
import lora_formats
import nodes
import pytest
import torch
from architectures import Model
from comfyui_version import __version__ as host_version
from lora_files import StateDict
from lora_formats import CORPUS, Format
from loraclr.loraclr_core.host.lora import adapters
from loraclr.loraclr_core.host.lora import file as lora_file
from loraclr.loraclr_core.host.lora.adapters import Effect
from loraclr.loraclr_core.host.lora.layers import dense
from loraclr.loraclr_core.host.lora.match import AdapterError, MatchedLoRA, key_names, match_lora
from running import load, merge, save, weights, write_lora
from torch import Tensor

CPU = torch.device("cpu")
READ = [entry for entry, found in CORPUS.items() if not found.refused]
REFUSED = [entry for entry, found in CORPUS.items() if found.refused]
DTYPES = (torch.float16, torch.bfloat16, torch.float8_e4m3fn)
OF_EACH_DTYPE = [("kohya", "SD1.5"), ("diffusers, PEFT", "Flux"), ("LyCORIS LoKr", "SDXL")]


def named(entries: list[tuple[str, str]]):
    return pytest.mark.parametrize("entry", entries, ids=[" on ".join(entry) for entry in entries])


def found(entry: tuple[str, str]) -> tuple[Format, Model]:
    return CORPUS[entry], architectures.build(entry[1])


def match(model: Model, state: StateDict) -> MatchedLoRA:
    return match_lora("concept.safetensors", state, key_names(model.model, model.clip))


def differences(model: Model, lora: MatchedLoRA, strength: float) -> dict[str, Tensor]:
    """What the merge takes a concept to change, by weight."""
    result = {}
    for patcher in (model.model, model.clip.patcher):
        effect: Effect = adapters.effect(lora, patcher, strength, CPU)
        shapes = adapters.shapes(patcher, effect.merge | effect.add)
        result |= {key: dense(change, shapes[key]) for key, change in (effect.merge | effect.add).items()}
    return result


def stock_differences(model: Model, state: StateDict, strength: float) -> dict[str, Tensor]:
    """What the stock loader makes of the file, by weight."""
    patched, clip = comfy.sd.load_lora_for_models(model.model, model.clip, state, strength, strength)
    before = model.weights()
    after = weights(patched) | weights(clip.patcher)
    return {key: weight - before[key] for key, weight in after.items()}


def assert_acts_as_stock(model: Model, state: StateDict, strength: float = 0.7) -> None:
    expected = stock_differences(model, state, strength)
    given = differences(model, match(model, state), strength)
    assert given.keys() == expected.keys()
    for key, change in expected.items():
        assert change.norm() > 0
        torch.testing.assert_close(given[key], change, rtol=1e-4, atol=2e-5 * float(change.abs().max()), msg=key)


@named(READ)
def test_every_key_finds_the_weight_the_trainer_meant(entry):
    written, model = found(entry)
    lora = match(model, written.state(model))
    assert lora.unmatched == []
    assert lora.patches.keys() == written.keys()


@named(READ)
def test_a_file_acts_as_under_the_stock_loader(entry):
    written, model = found(entry)
    assert_acts_as_stock(model, written.state(model))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named(OF_EACH_DTYPE)
def test_a_file_acts_as_under_the_stock_loader_in_any_precision(entry, dtype):
    """The file's own rounding is part of the concept: both read the same numbers."""
    written, model = found(entry)
    name = write_lora(f"{entry[0]} {dtype}.safetensors", {k: t.to(dtype) for k, t in written.state(model).items()})
    path = load(name, "sks cat")[0][0].path
    state = lora_file.read(path)[0]
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    assert_acts_as_stock(model, state)


@named(READ)
def test_two_files_merge_and_the_merge_loads_again(entry):
    """Two concepts of a format into one file, which the stock loader turns into the merged model again."""
    written, model = found(entry)
    chain = None
    for trigger in ("sks cat", "zwx dog"):
        name = write_lora(f"{entry[0]} {trigger}.safetensors", written.state(model))
        chain, _, _ = load(name, trigger, chain)
    latent = {"samples": torch.zeros(1, *model.latent)}
    merged, clip, lora, info, _ = merge(model, chain, latent=latent, merge_text_encoder=True)
    assert merged.patches.keys() | clip.patcher.patches.keys() == written.keys()

    name, _ = save(lora, f"{entry[0]} on {entry[1]}", merge_info=info)
    again, again_clip = nodes.LoraLoader().load_lora(model.model, model.clip, name, 1.0, 1.0)
    for ours, stock in ((merged, again), (clip.patcher, again_clip.patcher)):
        expected, loaded = weights(ours), weights(stock)
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(expected[key], loaded[key]) for key in expected)


@named(REFUSED)
def test_names_that_the_host_does_not_know_are_refused_with_an_example(entry):
    written, model = found(entry)
    state = written.state(model)
    with pytest.raises(AdapterError, match=r"concept\.safetensors matches") as error:
        match(model, state)
    assert any(key in str(error.value) for key in state)


@named([("kohya", "SD1.5"), ("kohya", "SDXL"), ("diffusers, PEFT", "Flux"), ("diffusers, PEFT", "Qwen-Image")])
def test_a_file_for_another_architecture_is_refused_by_name(entry):
    written, model = found(entry)
    with pytest.raises(AdapterError, match="trained for another architecture"):
        match(architectures.build("Wan"), written.state(model))


@pytest.mark.parametrize(
    ("entry", "stray"),
    [
        # The last block of SD3 has no way out of its text stream; the host has names for one all the same.
        (("diffusers, PEFT", "SD3"), lora_files.peft("transformer.transformer_blocks.1.attn.to_add_out", (128, 128))),
        # A bias of one part of a fused layer.
        (("diffusers, PEFT", "Flux"), lora_files.bias("transformer.transformer_blocks.0.attn.to_q", (64,))),
        (("kohya", "SDXL"), lora_files.lora("lora_unet_input_blocks_3_1_transformer_blocks_9_attn2_to_k", (64, 64))),
    ],
    ids=["absent", "bias of a slice", "deeper"],
)
def test_what_this_model_has_no_place_for_is_reported(entry, stray):
    written, model = found(entry)
    lora = match(model, written.state(model) | stray)
    assert lora.unmatched == sorted(stray)
    assert lora.patches.keys() & model.weights().keys() == written.keys()


def test_names_alike_and_other_sizes_are_an_error_that_names_file_and_weight():
    """diffusers calls the layers of Flux and SD3 the same."""
    written, flux = found(("diffusers, PEFT", "Flux"))
    sd3 = architectures.build("SD3")
    with pytest.raises(AdapterError, match=r"concept\.safetensors.*mismatch at diffusion_model\.joint_blocks"):
        differences(sd3, match(sd3, written.state(flux)), 1.0)


def test_the_table_says_what_these_tests_do():
    lines = lora_formats.table().splitlines()
    columns = [cell.strip() for cell in lines[0].split("|")[2:-1]]
    cells = {
        (line.split("|")[1].strip(), column): cell.strip()
        for line in lines[2:]
        for column, cell in zip(columns, line.split("|")[2:-1], strict=True)
    }
    assert {entry for entry, cell in cells.items() if cell == "✓"} == set(READ)
    assert {entry for entry, cell in cells.items() if cell == "refused"} == set(REFUSED)


@pytest.mark.skipif(host_version != host.DEFAULT_VERSION, reason="older versions of ComfyUI lack some models")
def test_the_page_has_the_table():
    """After a change of the corpus: put `lora_formats.table()` between the marks of docs/formats.md."""
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text("utf-8")
    assert (
        text.partition("<!-- formats: begin -->")[2].partition("<!-- formats: end -->")[0].strip()
        == lora_formats.table()
    )
