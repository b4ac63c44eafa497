"""Every tensor of a layer that matched is in its adapter, says nothing new, or is an error that names it."""

import architectures
import comfy.sd
import lora_files
import pytest
import torch
from architectures import Model
from lora_files import StateDict
from loraclr.loraclr_core.host.lora.match import AdapterError, MatchedLoRA, key_names, match_lora
from running import load, merge, weights, write_lora
from torch import Tensor

LINEAR = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
WITH_BIAS = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0"
CONVOLUTION = "diffusion_model.input_blocks.1.0.in_layers.2"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
FUSED = "diffusion_model.double_blocks.0.img_attn.qkv"
SPLIT = {f"transformer.transformer_blocks.0.attn.to_{part}": index for index, part in enumerate("qkv")}
QKV = [*SPLIT]


def match(model: Model, state: StateDict) -> MatchedLoRA:
    return match_lora("concept.safetensors", state, key_names(model.model, model.clip))


def merged_alone(model: Model, state: StateDict, **inputs) -> tuple[dict[str, Tensor], str]:
    """The weights of a merge of this one concept, and the report."""
    concepts, *_ = load(write_lora("alone.safetensors", state), "sks cat", **inputs)
    latent = {"samples": torch.zeros(1, *model.latent)} if isinstance(model, Model) else None
    result, _, _, _, report = merge(model, concepts, **({"latent": latent} if latent else {}))
    return weights(result), report


def renamed(state: StateDict, old: str, new: str) -> StateDict:
    return {key.replace(old, new): tensor.clone() for key, tensor in state.items()}


def peft_dora(weight: Tensor, state: StateDict, layer: str, magnitude: Tensor, strength: float) -> Tensor:
    """m · (W + BA) / ‖W + BA‖, the norm by row, as PEFT states it."""
    learnt = weight.flatten(1) + state[f"{layer}.lora_B.weight"].flatten(1) @ state[f"{layer}.lora_A.weight"].flatten(1)
    wanted = magnitude.flatten()[:, None] * learnt / learnt.norm(dim=1, keepdim=True)
    return weight + strength * (wanted.reshape(weight.shape) - weight)


# --- what PEFT writes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["", ".weight", ".default.weight"])
def test_a_dora_of_peft_acts_by_its_own_formula(demo, ending):
    """Alone and in a merge: its magnitudes left out, it would be a plain LoRA."""
    weight = demo.model.model_state_dict()[f"{LINEAR}.weight"].float()
    state = lora_files.peft(LINEAR, tuple(weight.shape))
    magnitude = weight.norm(dim=1) * (1 + 0.2 * torch.rand(weight.shape[0]))
    state[f"{LINEAR}.lora_magnitude_vector{ending}"] = magnitude
    expected = peft_dora(weight, state, LINEAR, magnitude, 0.7)
    concepts, model, _ = load(write_lora("d.safetensors", state), "sks cat", model=demo.model, strength_model=0.7)
    torch.testing.assert_close(weights(model)[f"{LINEAR}.weight"], expected, rtol=1e-4, atol=1e-5)
    merged = weights(merge(demo, concepts)[0])[f"{LINEAR}.weight"]
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


def test_a_dora_of_peft_on_a_convolution_acts_by_its_own_formula(demo):
    """PEFT keeps its magnitudes as (1, rows, 1, 1)."""
    weight = demo.model.model_state_dict()[f"{CONVOLUTION}.weight"].float()
    factors = lora_files.lora(CONVOLUTION, tuple(weight.shape), alpha=None)
    state = renamed(renamed(factors, ".lora_up", ".lora_B"), ".lora_down", ".lora_A")
    magnitude = weight.flatten(1).norm(dim=1).mul(1.1).reshape(1, -1, 1, 1)
    state[f"{CONVOLUTION}.lora_magnitude_vector"] = magnitude
    found, _ = merged_alone(demo, state)
    expected = peft_dora(weight, state, CONVOLUTION, magnitude, 1.0)
    torch.testing.assert_close(found[f"{CONVOLUTION}.weight"], expected, rtol=1e-4, atol=1e-5)


def test_a_dora_of_peft_on_a_part_of_a_fused_layer_acts_on_its_rows():
    """Flux's to_k is the middle third of the host's weight."""
    flux = architectures.build("Flux")
    weight = flux.weights()[f"{FUSED}.weight"]
    state = lora_files.peft(QKV[1], (64, 64))
    magnitude = torch.rand(64) + 0.5
    state[f"{QKV[1]}.lora_magnitude_vector"] = magnitude
    found, _ = merged_alone(flux, state)
    expected = weight.clone()
    expected[64:128] = peft_dora(weight[64:128], state, QKV[1], magnitude, 1.0)
    torch.testing.assert_close(found[f"{FUSED}.weight"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_bias_that_peft_trained_within_a_lora_is_added_at_its_scale(demo, alpha):
    """PEFT's layer gives s · (B A x + b)."""
    state = lora_files.peft(WITH_BIAS, (320, 320), rank=4) | {f"{WITH_BIAS}.lora_B.bias": torch.randn(320)}
    if alpha:
        state[f"{WITH_BIAS}.alpha"] = torch.tensor(alpha)
    found, _ = merged_alone(demo, state)
    before = demo.model.model_state_dict()[f"{WITH_BIAS}.bias"]
    added = state[f"{WITH_BIAS}.lora_B.bias"] * (alpha / 4 if alpha else 1.0)
    torch.testing.assert_close(found[f"{WITH_BIAS}.bias"], before + added)


# --- what nobody reads -----------------------------------------------------------------------------------------------

UNREAD = {
    "factors of AdaLoRA": ("PEFT", {"lora_E": torch.rand(4, 1)}),
    "scale of an fp8 factor": ("LoRA", {"lora_up.scale_weight": torch.tensor(0.5)}),
    "magnitude beside a LoHa": ("LoHa", {"lora_magnitude_vector": torch.rand(320)}),
    "magnitude beside the host's own scale": ("DoRA", {"lora_magnitude_vector": torch.rand(320)}),
    "DoRA of a full difference": ("full", {"dora_scale": torch.rand(320, 1)}),
    "middle factor of another naming": ("PEFT", {"lora_mid.weight": torch.rand(4, 4, 1, 1)}),
    "scalar of LyCORIS": ("LoKr", {"scalar": torch.tensor(0.5)}),
    "bias where the layer has none": ("PEFT", {"lora_B.bias": torch.rand(320)}),
    "full weight": ("LoRA", {"weight": torch.rand(320, 320)}),
    "another adapter": ("LoRA", lora_files.loha("", (320, 320))),
}


@pytest.mark.parametrize("case", UNREAD)
def test_a_tensor_without_which_it_is_another_adapter_is_an_error_that_names_it(demo, case):
    kind, beside = UNREAD[case]
    beside = {f"{LINEAR}.{key.removeprefix('.')}": tensor for key, tensor in beside.items()}
    state = lora_files.LINEAR[kind](LINEAR, (320, 320)) | beside
    with pytest.raises(AdapterError, match=r"concept\.safetensors: diffusion_model.*attn1\.to_q\.\w.* is another LoRA"):
        match(demo, state)


def test_rescaling_that_the_host_leaves_out_of_an_oft_is_an_error(demo):
    state = lora_files.oft(LINEAR, (320, 320)) | {f"{LINEAR}.rescale": 1 + torch.rand(320, 1)}
    concepts, *_ = load(write_lora("oft.safetensors", state), "sks cat")
    with pytest.raises(ValueError, match=r"oft\.safetensors: its OFT on .*attn1\.to_q\.weight has a rescale"):
        merge(demo, concepts)


@pytest.mark.parametrize(
    ("kind", "beside"),
    [
        ("LoKr", {"scalar": torch.tensor(1.0)}),
        ("OFT", {"rescale": torch.ones(320, 1)}),
        ("full", {"alpha": torch.ones(())}),
    ],
)
def test_a_tensor_that_changes_nothing_is_no_error(demo, kind, beside):
    state = lora_files.LINEAR[kind](LINEAR, (320, 320))
    expected, _ = merged_alone(demo, state)
    found, _ = merged_alone(demo, state | {f"{LINEAR}.{key}": tensor for key, tensor in beside.items()})
    assert torch.equal(found[f"{LINEAR}.weight"], expected[f"{LINEAR}.weight"])


def test_a_difference_of_a_bias_that_the_model_lacks_is_reported(demo):
    """The host reads it and has no weight to add it to."""
    state = lora_files.lora(LINEAR, (320, 320)) | lora_files.bias(LINEAR, (320, 320))
    assert f"match nothing in this model: `{LINEAR}.diff_b`" in merged_alone(demo, state)[1]


def test_a_difference_of_a_text_encoder_s_bias_is_merged(demo):
    layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    concepts, *_ = load(write_lora("b.safetensors", lora_files.bias(layer, (768, 768))), "sks cat")
    _, clip, *_ = merge(demo, concepts, merge_text_encoder=True)
    assert [*clip.patcher.patches] == ["clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.bias"]


# --- one weight under two names --------------------------------------------------------------------------------------

TWICE = {
    "kohya's name and the host's": lambda state: renamed(state, LINEAR, KOHYA),
    "two namings of factors": lambda state: renamed(
        renamed({key: t for key, t in state.items() if ".lora_" in key}, "lora_up", "lora_B"), "lora_down", "lora_A"
    ),
}


@pytest.mark.parametrize("naming", TWICE)
def test_a_layer_that_a_file_names_twice_counts_once(demo, naming):
    state = lora_files.lora(LINEAR, (320, 320))
    expected, _ = merged_alone(demo, state)
    found, report = merged_alone(demo, state | TWICE[naming](state))
    assert torch.equal(found[f"{LINEAR}.weight"], expected[f"{LINEAR}.weight"])
    assert "repeat others of the same weights and count once" in report
    assert "match nothing" not in report


@pytest.mark.parametrize("naming", TWICE)
def test_two_adapters_of_one_weight_are_an_error_that_names_both(demo, naming):
    """The host uses the one that it reads last and drops the other."""
    state = lora_files.lora(LINEAR, (320, 320))
    other = TWICE[naming](lora_files.lora(LINEAR, (320, 320)))
    keys = {key for key in state | other if ".alpha" not in key}
    with pytest.raises(AdapterError) as error:
        match(demo, state | other)
    assert len([key for key in keys if key in str(error.value)]) == 2


def test_the_same_factors_at_another_scale_are_another_adapter(demo):
    state = lora_files.lora(LINEAR, (320, 320), alpha=2.0)
    other = renamed(state, LINEAR, KOHYA) | {f"{KOHYA}.alpha": torch.tensor(8.0)}
    with pytest.raises(AdapterError, match="belong to one weight"):
        match(demo, state | other)


def split(state: StateDict) -> StateDict:
    """The same LoRA of Flux's fused layer as three, of its parts."""
    result: StateDict = {}
    for name, index in SPLIT.items():
        result |= {
            f"{name}.lora_up.weight": state[f"{FUSED}.lora_up.weight"][64 * index :][:64].clone(),
            f"{name}.lora_down.weight": state[f"{FUSED}.lora_down.weight"].clone(),
            f"{name}.alpha": state[f"{FUSED}.alpha"].clone(),
        }
    return result


def test_a_fused_layer_and_the_same_in_parts_count_once():
    """The host adds both, which is twice the LoRA."""
    flux = architectures.build("Flux")
    state = lora_files.lora(FUSED, (192, 64))
    expected, _ = merged_alone(flux, state)
    found, report = merged_alone(flux, state | split(state))
    torch.testing.assert_close(found[f"{FUSED}.weight"], expected[f"{FUSED}.weight"])
    assert "9 tensors repeat others" in report


def test_a_fused_layer_and_other_parts_add_up():
    """As under the stock loader, which loses nothing here."""
    flux = architectures.build("Flux")
    state = lora_files.lora(FUSED, (192, 64)) | lora_files.lora(QKV[0], (64, 64)) | lora_files.lora(QKV[2], (64, 64))
    found, report = merged_alone(flux, state)
    stock, _ = comfy.sd.load_lora_for_models(flux.model, None, state, 1.0, 0.0)
    torch.testing.assert_close(found[f"{FUSED}.weight"], weights(stock)[f"{FUSED}.weight"], rtol=1e-4, atol=1e-5)
    assert "repeat" not in report
