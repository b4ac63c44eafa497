"""What a concept does to a weight is what the stock loader makes of it, for every adapter type."""

import comfy.lora
import comfy.sd
import lora_files
import pytest
import torch
from loraclr.loraclr_core.host import weights
from loraclr.loraclr_core.host.lora import adapters
from loraclr.loraclr_core.host.lora.match import AdapterError, key_names, match_lora
from loraclr.loraclr_core.lowrank import LowRank

CPU = torch.device("cpu")
LINEAR_KEY = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CONVOLUTION_KEY = "diffusion_model.input_blocks.1.0.in_layers.2.weight"


def name_of(key: str) -> str:
    return key.removesuffix(".weight")


def shape_of(model, key: str) -> tuple[int, ...]:
    return tuple(model.model_state_dict()[key].shape)


def stock_difference(model, clip, state: dict, key: str, strength: float) -> torch.Tensor:
    """Weight after the stock loader less the weight before, in float32."""
    patched, _ = comfy.sd.load_lora_for_models(model, clip, state, strength, strength)
    weight = model.model_state_dict()[key].float()
    return comfy.lora.calculate_weight(patched.patches[key], weight.clone(), key) - weight


def effect_of(demo, state: dict, strength: float = 0.7) -> adapters.Effect:
    lora = match_lora("concept.safetensors", state, key_names(demo.model, demo.clip))
    return adapters.effect(lora, demo.model, strength, CPU)


@pytest.mark.parametrize("kind", lora_files.LINEAR)
def test_linear_layers(demo, kind):
    state = lora_files.LINEAR[kind](name_of(LINEAR_KEY), shape_of(demo.model, LINEAR_KEY))
    found = effect_of(demo, state).merge[LINEAR_KEY].dense()
    expected = stock_difference(demo.model, demo.clip, state, LINEAR_KEY, 0.7)
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", lora_files.CONVOLUTION)
def test_convolutions(demo, kind):
    state = lora_files.CONVOLUTION[kind](name_of(CONVOLUTION_KEY), shape_of(demo.model, CONVOLUTION_KEY))
    found = effect_of(demo, state).merge[CONVOLUTION_KEY].dense()
    expected = stock_difference(demo.model, demo.clip, state, CONVOLUTION_KEY, 0.7).flatten(1)
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))


def test_plain_loras_keep_their_rank_and_need_no_base_weight(demo, monkeypatch):
    """An fp8 or quantised base then serves as well as any."""
    monkeypatch.setattr(weights, "dequantised", lambda *_: pytest.fail("the base weight was asked for"))
    shape = shape_of(demo.model, LINEAR_KEY)
    for kind in ("LoRA", "LoHa", "LoKr", "full"):
        assert effect_of(demo, lora_files.LINEAR[kind](name_of(LINEAR_KEY), shape)).merge
    assert effect_of(demo, lora_files.lora(name_of(LINEAR_KEY), shape, rank=3)).merge[LINEAR_KEY].rank == 3


def test_dense_adapters_are_kept_at_their_true_rank(demo):
    """A LoHa of rank 2 spans at most rank 4, not the whole layer."""
    state = lora_files.loha(name_of(LINEAR_KEY), shape_of(demo.model, LINEAR_KEY), rank=2)
    assert effect_of(demo, state).merge[LINEAR_KEY].rank == 4


def test_upstream_patches_are_part_of_the_base(demo):
    """OFT turns the weight as it came in, not the checkpoint's."""
    shape = shape_of(demo.model, LINEAR_KEY)
    upstream = lora_files.full(name_of(LINEAR_KEY), shape)
    model, _ = comfy.sd.load_lora_for_models(demo.model, None, upstream, 1.0, 0.0)
    state = lora_files.oft(name_of(LINEAR_KEY), shape)
    lora = match_lora("oft", state, key_names(model, demo.clip))
    found = adapters.effect(lora, model, 1.0, CPU).merge[LINEAR_KEY].dense()

    weight = model.model_state_dict()[LINEAR_KEY].float() + upstream[f"{name_of(LINEAR_KEY)}.diff"]
    patch = [(1.0, lora.patches[LINEAR_KEY][0][0], 1.0, None, None)]
    expected = comfy.lora.calculate_weight(patch, weight.clone(), LINEAR_KEY) - weight
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dimension", [0, 1])
def test_a_lora_on_a_slice_of_a_fused_weight_lands_in_the_slice(demo, dimension):
    shape = shape_of(demo.model, LINEAR_KEY)
    offset = (dimension, 64, 128)
    part = list(shape)
    part[dimension] = 128
    state = lora_files.lora("slice", tuple(part))
    lora = match_lora("sliced", state, {"slice": (LINEAR_KEY, offset)})
    found = adapters.effect(lora, demo.model, 1.0, CPU).merge[LINEAR_KEY].dense()
    patch = [(1.0, lora.patches[LINEAR_KEY][0][0], 1.0, offset, None)]
    expected = comfy.lora.calculate_weight(patch, torch.zeros(shape), LINEAR_KEY)
    torch.testing.assert_close(found, expected)


def test_biases_norms_and_wide_convolutions_are_left_to_be_summed(demo, monkeypatch):
    monkeypatch.setattr(adapters, "MAX_UNFOLDED_WIDTH", 100)
    norm = "diffusion_model.input_blocks.1.1.transformer_blocks.0.norm1"
    state = lora_files.bias(name_of(CONVOLUTION_KEY), shape_of(demo.model, CONVOLUTION_KEY))
    state |= lora_files.lora(name_of(CONVOLUTION_KEY), shape_of(demo.model, CONVOLUTION_KEY))
    state |= {f"{norm}.w_norm": torch.randn(320), f"{norm}.b_norm": torch.randn(320)}
    effect = effect_of(demo, state)
    assert not effect.merge
    bias_key = CONVOLUTION_KEY.replace("weight", "bias")
    assert set(effect.add) == {CONVOLUTION_KEY, bias_key, f"{norm}.weight", f"{norm}.bias"}
    assert isinstance(effect.add[CONVOLUTION_KEY], LowRank)


def test_every_tensor_of_a_file_is_accounted_for(demo):
    state = lora_files.lora(name_of(LINEAR_KEY), shape_of(demo.model, LINEAR_KEY))
    state |= {
        "somewhere.else.lora_up.weight": torch.ones(2, 2),
        "bundle_emb.style.string_to_param.*": torch.ones(1, 768),
    }
    lora = match_lora("odd.safetensors", state, key_names(demo.model, demo.clip))
    assert (len(lora.matched), lora.unmatched, lora.embeddings) == (3, ["somewhere.else.lora_up.weight"], ["style"])


def test_a_lora_for_another_architecture_is_refused_by_name(demo):
    state = lora_files.lora("transformer.single_transformer_blocks.0.attn.to_q", (64, 64))
    with pytest.raises(AdapterError, match=r"flux\.safetensors matches 0 of its 3 tensors"):
        match_lora("flux.safetensors", state, key_names(demo.model, demo.clip))


def test_an_adapter_that_changes_nothing_is_told_apart(demo):
    state = lora_files.lora(name_of(LINEAR_KEY), shape_of(demo.model, LINEAR_KEY), scale=0.0)
    effect = effect_of(demo, state)
    assert (effect.idle, effect.merge) == ([LINEAR_KEY], {})


def test_strengths_scale_and_may_be_negative(demo):
    state = lora_files.lora(name_of(LINEAR_KEY), shape_of(demo.model, LINEAR_KEY))
    plus, minus = (effect_of(demo, state, strength).merge[LINEAR_KEY].dense() for strength in (1.0, -0.5))
    torch.testing.assert_close(minus, -0.5 * plus)


@pytest.mark.parametrize("kind", [*lora_files.LINEAR, "rank"])
def test_shapes_that_do_not_fit_are_errors_that_name_file_and_key(demo, kind):
    """The stock loader only logs them and leaves the weight as it was."""
    if kind == "rank":
        state = lora_files.lora(name_of(LINEAR_KEY), shape_of(demo.model, LINEAR_KEY))
        state[f"{name_of(LINEAR_KEY)}.lora_up.weight"] = torch.ones(320, 5)
    else:
        state = lora_files.LINEAR[kind](name_of(LINEAR_KEY), (312, 776))
    with pytest.raises(AdapterError, match=r"concept\.safetensors.*attn2\.to_k"):
        effect_of(demo, state)


def test_a_base_weight_that_cannot_be_had_is_an_error_that_names_the_layer(demo):
    model = demo.model.clone()
    packed = torch.zeros(shape_of(model, LINEAR_KEY), dtype=torch.int8)
    layer = adapters.layer(model, LINEAR_KEY)
    original = layer.weight
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)
    try:
        state = lora_files.oft(name_of(LINEAR_KEY), tuple(packed.shape))
        with pytest.raises(AdapterError, match=r"attn2\.to_k\.weight depends on the base weight.*int8"):
            effect_of(demo, state)
        plain = lora_files.lora(name_of(LINEAR_KEY), tuple(packed.shape))
        assert effect_of(demo, plain).merge
    finally:
        layer.weight = original
