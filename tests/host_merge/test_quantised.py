"""A quantised model gives what the same model gives when it is dequantised first, whoever quantised it."""

import functools

import lora_files
import nodes
import pytest
import quantised
import torch
from host_merge import test_architectures
from host_merge.test_architectures import CONCEPTS, picture
from host_sampler.sampling import assert_same, compose, sample
from loraclr.loraclr_core.host import weights
from loraclr.loraclr_core.host.lora import adapters
from loraclr.loraclr_core.host.lora.match import AdapterError, key_names, match_lora
from loraclr.loraclr_core.host.merge import cache as captures
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge import store as capture_store
from loraclr.loraclr_core.host.sampler.evaluation import KEY
from running import load, merge, save, write_lora

# SDXL has convolutions, which only files of GGUF pack; Flux has blocks that add to their input in place.
PATCHABLE = [("packed", "SDXL"), ("packed", "Flux"), ("host_fp8", "Flux")]
every = pytest.mark.parametrize(("form", "name"), [*PATCHABLE, ("four_bit", "Flux")])
patchable = pytest.mark.parametrize(("form", "name"), PATCHABLE)  # by the host or the loader: four_bit has neither
on_flux = pytest.mark.parametrize(("form", "name"), PATCHABLE[1:])
CPU = torch.device("cpu")
LAYER = "diffusion_model.double_blocks.0.img_attn.proj"
NONE = "0 model evaluations in this run (captured before)"
STRENGTH = 0.2


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where captures are kept on disk."""
    monkeypatch.setattr(capture_store, "folder", lambda: tmp_path)
    return tmp_path


@pytest.fixture
def pair(form, name, tmp_path_factory):
    base = tmp_path_factory.getbasetemp() / form / name
    base.mkdir(parents=True, exist_ok=True)
    return quantised.pair(form, name, base)


@functools.cache
def chain_of(name: str) -> list:
    """Two concepts whose LoRAs touch every layer."""
    chain = None
    for concept, trigger in CONCEPTS.items():
        state = {}
        for layer, shape in test_architectures.layers(test_architectures.architectures.build(name)).items():
            state |= lora_files.lora(layer, shape, scale=STRENGTH)
        lora_name = write_lora(f"quantised {name} {concept}.safetensors", state)
        chain, _, _ = load(lora_name, trigger, chain, name=concept, class_word=concept)
    return chain


def empty(model) -> dict:
    return {"samples": torch.zeros(1, *model.latent)}


def merged(model, name, **inputs):
    return merge(model, chain_of(name), latent=empty(model), merge_text_encoder=True, **inputs)


def assert_alike(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-3 * float(tensor.abs().max()))


def assert_near(found: torch.Tensor, expected: torch.Tensor, form: str) -> None:
    """Pictures by patched models; the host rounds a patched weight of its own kind to fp8 again."""
    tolerance = 0.2 if form == "host_fp8" else 1e-3
    assert (found - expected).norm() < tolerance * expected.norm()


@every
def test_the_merge_is_that_of_the_dequantised_model(pair, form, name):
    assert_alike(merged(pair.quantised, name)[2], merged(pair.plain, name)[2])


@on_flux
def test_a_distilled_merge_is_that_of_the_dequantised_model(pair, form, name):
    """And leaves weights that the host can move and patch."""
    found, expected = (merged(model, name, capture_steps=1, distillation_steps=1) for model in pair)
    assert_alike(found[2], expected[2])
    assert "## Distillation, 1 steps" in found[4]
    painted = [picture(model, *of[:2], "a sks cat") for model, of in zip(pair, (found, expected), strict=True)]
    assert_near(*painted, form)


@every
@pytest.mark.parametrize("strength", [0.0, 0.05])
def test_composed_pictures_are_those_of_the_dequantised_model(pair, form, name, strength):
    found = []
    for model in pair:
        patched, positive, negative = compose(model, chain_of(name), update_strength=strength)
        found.append(sample(patched, positive, negative, empty(model)))
        assert bool(patched.get_attachment(KEY).records.of(found[-1]["samples"]).updated) == (strength > 0)
    assert_same(*found, tolerance=1e-3)


def test_updates_run_where_the_host_quantises_what_a_layer_sees(tmp_path):
    """As it does on graphics cards, by a function of its own whose result cannot be changed in place."""
    model = quantised.pair.__wrapped__("host_fp8", "Flux", tmp_path).quantised
    for module in model.model.model.modules():
        if hasattr(module, "_full_precision_mm"):
            module._full_precision_mm = False
    patched, positive, negative = compose(model, chain_of("Flux"))
    found = sample(patched, positive, negative, empty(model))["samples"]
    assert patched.get_attachment(KEY).records.of(found).updated
    assert found.isfinite().all()


@patchable
def test_the_saved_merge_loads_and_paints_what_the_dequantised_model_paints(pair, form, name):
    *_, lora, info, _ = merged(pair.quantised, name)
    saved, _ = save(lora, f"quantised {form} {name}", merge_info=info)
    pictures = [
        picture(model, *nodes.LoraLoader().load_lora(model.model, model.clip, saved, 1.0, 1.0), "photo of a sks cat")
        for model in pair
    ]
    assert_near(*pictures, form)


@pytest.mark.parametrize(("form", "name"), [*PATCHABLE[1:], ("four_bit", "Flux")])
def test_captures_on_disk_serve_until_a_weight_changes(pair, form, name, folder):
    """Also while another node's model, patched, has the weights."""
    model = pair.quantised
    first = merged(model, name, captures="on disk")
    assert "Captures on disk" in first[4]
    if form != "four_bit":
        picture(model, first[0], first[1], "a sks cat")
    captures.forget()
    again = merged(model, name, captures="on disk")
    assert NONE in again[4]
    assert_alike(again[2], first[2])

    weight = weights.stored(model.model, f"{LAYER}.weight")
    codes = getattr(weight, "_qdata", weight).view(torch.uint8).as_subclass(torch.Tensor)
    with torch.inference_mode():
        codes[0, 0] += 1
        captures.forget()
        _, _, _, _, report = merged(model, name, captures="on disk")
        codes[0, 0] -= 1
    captures.forget()
    assert NONE not in report


@on_flux
@pytest.mark.parametrize("kind", ["DoRA", "OFT"])
def test_an_adapter_that_turns_the_weight_turns_the_dequantised_one(pair, form, name, kind):
    """And leaves the stored one as it is, with patches that another model has on it."""
    key = f"{LAYER}.weight"
    state = lora_files.LINEAR[kind](LAYER, (64, 64))
    upstream = lora_files.full(LAYER, (64, 64))
    found = []
    for model in pair:
        patched, _ = nodes.LoraLoader().load_lora(
            model.model, model.clip, write_lora("upstream.safetensors", upstream), 1.0, 0.0
        )
        picture(model, patched, model.clip, "a cat")  # loads it
        for patcher in (model.model, patched):
            lora = match_lora("concept.safetensors", state, key_names(patcher, model.clip))
            found.append(adapters.effect(lora, patcher, 0.7, CPU).merge[key].dense())
    for of_quantised, of_plain in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(of_quantised, of_plain, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize(("form", "name"), [("four_bit", "Flux")])
def test_an_adapter_that_needs_a_weight_nobody_can_dequantise_is_refused_by_name(pair, form, name):
    state = lora_files.LINEAR["DoRA"](LAYER, (64, 64))
    lora = match_lora("turned.safetensors", state, key_names(pair.quantised.model, pair.quantised.clip))
    with pytest.raises(AdapterError, match=rf"turned.safetensors: its adapter on {LAYER}.*uint8.*unquantised"):
        adapters.effect(lora, pair.quantised.model, 0.7, CPU)


@every
def test_every_linear_layer_is_merged_and_none_only_summed(pair, form, name):
    settings = merging.MergeSettings(
        solver="sum (baseline)",
        capture=merging.CaptureSettings(("{trigger}",), 1, 0, pair.quantised.latent),
        merge_text_encoder=True,
    )
    models = (pair.quantised.model, pair.quantised.clip)
    result = merging.merge(*models, chain_of(name), settings, lambda phase, done: None)
    assert [each.summed() for each in result.loaded] == [[], []]
