"""A control LoRA is part of the model: it is no concept, and concepts merge and sample on the model that has it."""

import architectures
import comfy.model_management
import comfy.sd
import lora_files
import node_helpers
import nodes
import pytest
import torch
from host_sampler.sampling import compose, encode, sample
from lora_files import StateDict
from running import load, merge, save, weights, write_lora

QKV, IMAGE_IN = "diffusion_model.double_blocks.0.img_attn.qkv", "diffusion_model.img_in"


@pytest.fixture(scope="module")
def flux():
    return architectures.build("Flux")


def control() -> StateDict:
    """A small Flux Canny or Depth LoRA, as their makers save it: the image's input takes a second latent beside the first."""
    torch.manual_seed(5)
    state: StateDict = {}
    for name, (out, width) in {"img_in": (64, 128), "double_blocks.0.img_attn.qkv": (192, 64)}.items():
        state |= lora_files.peft(name, (out, width)) | {f"{name}.lora_B.bias": torch.randn(out) / 10}
    for norm in ("double_blocks.0.img_attn.norm.key_norm", "single_blocks.0.norm.key_norm"):
        state[f"{norm}.scale"] = torch.rand(32) + 0.5
    return state


@pytest.fixture
def controlled(flux):
    """The model with a control LoRA by the stock loader."""
    name = write_lora("control.safetensors", control())
    yield flux._replace(model=nodes.LoraLoaderModelOnly().load_lora_model_only(flux.model, name, 1.0)[0])
    comfy.model_management.unload_all_models()  # other tests take shapes from the model's weights


def concepts(*states: StateDict) -> list:
    chain = None
    for number, state in enumerate(states):
        name = write_lora(f"of control {number}.safetensors", state)
        chain, *_ = load(name, f"sks thing{number}", chain, name=f"c{number}")
    return chain or []


def two_concepts() -> list:
    """One of them on the layer that the control LoRA widens, as it was trained: on the plain model."""
    first = lora_files.lora(QKV, (192, 64)) | lora_files.lora(IMAGE_IN, (64, 64))
    return concepts(first, lora_files.lora(QKV, (192, 64)))


def test_a_control_lora_as_a_concept_is_an_error_that_says_where_it_belongs(flux):
    chain = concepts(control())
    said = r"of control 0\.safetensors is no concept.*stock Load LoRA before this node"
    with pytest.raises(ValueError, match=said):
        merge(flux, chain)
    with pytest.raises(ValueError, match=said):
        load("of control 0.safetensors", "sks", model=flux.model)


def test_a_concept_on_a_widened_layer_acts_on_the_latent_s_own_channels(flux, controlled):
    """As where the stock loader loads the concept first and the control LoRA after it."""
    state = lora_files.lora(QKV, (192, 64)) | lora_files.lora(IMAGE_IN, (64, 64))
    chain = concepts(state)
    first, _ = comfy.sd.load_lora_for_models(flux.model, None, state, 1.0, 0.0)
    expected, _ = comfy.sd.load_lora_for_models(first, None, control(), 1.0, 0.0)
    _, alone, _ = load(chain[0].lora_name, "sks", model=controlled.model)
    for model in (merge(controlled, chain)[0], alone):
        found = weights(model)
        assert found[f"{IMAGE_IN}.weight"].shape == (64, 128)
        for key, weight in weights(expected).items():
            torch.testing.assert_close(found[key], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["exact", "sum (baseline)"])
def test_concepts_merge_on_a_controlled_model_and_the_file_gives_it_again(controlled, solver):
    latent = {"samples": torch.zeros(1, *controlled.latent)}
    model, _, lora, info, report = merge(controlled, two_concepts(), solver=solver, latent=latent)
    assert f"input widened by a control LoRA): `{IMAGE_IN}.weight`" in report
    name, _ = save(lora, f"controlled {solver}", merge_info=info)
    again = nodes.LoraLoaderModelOnly().load_lora_model_only(controlled.model, name, 1.0)[0]
    expected, found = weights(model), weights(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_the_merge_and_the_sampler_follow_the_control_picture(controlled):
    """Both sample, and another control picture gives another result."""
    chain = two_concepts()
    latent = {"samples": torch.zeros(1, *controlled.latent)}
    merged, *_ = merge(controlled, chain, latent=latent)
    prompt = encode(controlled.clip, "photo of a sks thing0")
    composed = compose(controlled, chain, prompt="photo of {c0} and {c1}", negative="")
    for model, positive, negative in ((merged, prompt, prompt), composed):
        results = []
        for brightness in (0.0, 1.0):
            # What InstructPixToPixConditioning adds to each entry.
            picture = {"concat_latent_image": torch.full((1, *controlled.latent), brightness)}
            conds = [node_helpers.conditioning_set_values(cond, picture) for cond in (positive, negative)]
            results.append(sample(model, *conds, latent, cfg=1.0)["samples"])
        assert all(torch.isfinite(result).all() for result in results)
        assert not torch.allclose(*results)
