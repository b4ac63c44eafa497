"""Save Merged LoRA takes any LORA_MODEL of the host's: what it does not rewrite it keeps, and it says what it kept."""

from pathlib import Path

import comfy.sd
import comfy.weight_adapter
import folder_paths
import lora_files
import nodes
import pytest
import safetensors.torch
import torch
from lora_files import StateDict
from running import save, weights

LINEAR = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
PROCESSOR = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
CONVOLUTION = "diffusion_model.input_blocks.1.0.in_layers.2"
SQUARE, KERNEL = (320, 320), (320, 320, 3, 3)
NAMINGS = {
    (".lora_up.weight", ".lora_down.weight"): LINEAR,
    ("_lora.up.weight", "_lora.down.weight"): PROCESSOR,
    (".lora_B.weight", ".lora_A.weight"): LINEAR,
    (".lora.up.weight", ".lora.down.weight"): LINEAR,
    (".lora_B", ".lora_A"): LINEAR,
    (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"): TEXT,
    (".lora_B.default.weight", ".lora_A.default.weight"): LINEAR,
}


def saved(state: StateDict, name: str, **inputs) -> tuple[str, StateDict, str]:
    """The file's name in its folder, its tensors, and the report."""
    name, report = save(state, name, **inputs)
    return name, safetensors.torch.load_file(Path(folder_paths.get_full_path_or_raise("loras", name))), report


def patched(demo, lora: StateDict) -> dict[str, torch.Tensor]:
    model, clip = comfy.sd.load_lora_for_models(demo.model, demo.clip, lora, 1.0, 1.0)
    return weights(model) | weights(clip.patcher)


def reloaded(demo, name: str) -> dict[str, torch.Tensor]:
    model, clip = nodes.LoraLoader().load_lora(demo.model, demo.clip, name, 1.0, 1.0)
    return weights(model) | weights(clip.patcher)


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys() != set()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def every_adapter() -> dict[str, StateDict]:
    torch.manual_seed(0)
    states = {kind: make(LINEAR, SQUARE) for kind, make in lora_files.LINEAR.items()}
    states |= {f"{kind}, convolution": make(CONVOLUTION, KERNEL) for kind, make in lora_files.CONVOLUTION.items()}
    norm = LINEAR.replace("attn1.to_q", "norm1")
    states["norm"] = {f"{norm}.w_norm": torch.randn(320), f"{norm}.b_norm": torch.randn(320)}
    states["set"] = {f"{norm}.set_weight": torch.randn(320)}
    states["OFT with rescale"] = lora_files.oft(LINEAR, SQUARE) | {f"{LINEAR}.rescale": torch.rand(320, 1)}
    states["reshape"] = lora_files.lora(LINEAR, SQUARE) | {f"{LINEAR}.reshape_weight": torch.tensor(SQUARE)}
    return states


@pytest.mark.parametrize("kind", every_adapter())
def test_any_adapter_comes_back_as_it_was(demo, kind):
    """Without its alpha a LoHa of rank 16 that the host has trained would be 16 times as strong."""
    state = every_adapter()[kind]
    name, tensors, _ = saved(state, f"as it was {kind}")
    assert tensors.keys() == state.keys()
    assert_equal(reloaded(demo, name), patched(demo, state))


@pytest.mark.parametrize("algorithm", comfy.weight_adapter.adapter_maps)
def test_what_the_host_trains_comes_back_as_it_was(demo, algorithm):
    """With the keys and the alpha of the stock Train LoRA node."""
    weight = demo.model.model_state_dict()[f"{LINEAR}.weight"]
    adapter = comfy.weight_adapter.adapter_maps[algorithm].create_train(weight, rank=16, alpha=1.0)
    state = {f"{LINEAR}.{key}": parameter.detach().clone() for key, parameter in adapter.named_parameters()}
    state = {key: t if key.endswith("alpha") else 0.1 * torch.randn_like(t) for key, t in state.items()}
    assert f"{LINEAR}.alpha" in state
    name, _, _ = saved(state, f"trained {algorithm}")
    assert_equal(reloaded(demo, name), patched(demo, state))


@pytest.mark.parametrize("endings", NAMINGS, ids="".join)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_plain_lora_of_any_naming_is_cut_to_the_nearest_of_the_rank(demo, endings, alpha):
    layer, (up, down) = NAMINGS[endings], endings
    shape = (768, 768) if layer == TEXT else SQUARE
    factors = lora_files.lora(layer, shape, rank=8, alpha=alpha)
    state = {f"{layer}{up}": factors[f"{layer}.lora_up.weight"], f"{layer}{down}": factors[f"{layer}.lora_down.weight"]}
    state |= {key: tensor for key, tensor in factors.items() if key.endswith(".alpha")}
    name, tensors, report = saved(state, "cut", max_rank=3)
    assert (tensors[f"{layer}{up}"].shape[1], tensors[f"{layer}{down}"].shape[0]) == (3, 3)
    assert {f"{layer}{up}", f"{layer}{down}"} <= tensors.keys()
    ((key, expected),) = patched(demo, state).items()
    before = (demo.model.model_state_dict() | demo.clip.patcher.model_state_dict())[key].float()
    values = torch.linalg.svdvals(expected - before)
    lost = (reloaded(demo, name)[key] - expected).norm()
    torch.testing.assert_close(lost, values[3:].norm(), rtol=1e-2, atol=1e-4)
    assert f"{float(lost / values.norm()):.2%} on average" in report


BESIDE = {"lora_mid.weight": torch.ones(4, 4, 3, 3), "dora_scale": torch.ones(320, 1), "lora_E": torch.ones(4, 1)}
BESIDE |= {"reshape_weight": torch.tensor(SQUARE), "lora_magnitude_vector": torch.ones(320)}


@pytest.mark.parametrize("part", BESIDE)
def test_a_lora_that_is_not_plain_is_not_cut_and_the_report_says_so(part):
    """Its factors alone are not its difference."""
    state = lora_files.lora(LINEAR, SQUARE) | {f"{LINEAR}.{part}": BESIDE[part]}
    plain = lora_files.lora(LINEAR.replace("to_q", "to_k"), SQUARE)
    _, tensors, report = saved(state | plain, "not cut", max_rank=1)
    assert all(torch.equal(tensors[key], state[key]) for key in state)
    assert tensors[f"{LINEAR.replace('to_q', 'to_k')}.lora_up.weight"].shape == (320, 1)
    assert (
        f"max_rank does not apply to 1 layers, whose adapters are no plain LoRAs; they are saved whole: {LINEAR}."
        in report
    )


def test_scales_and_whole_numbers_keep_their_value_in_any_precision():
    state = lora_files.loha(LINEAR, SQUARE) | lora_files.lora(CONVOLUTION, KERNEL)
    state |= {f"{LINEAR}.alpha": torch.tensor(0.3), f"{CONVOLUTION}.reshape_weight": torch.tensor([320, 4097])}
    state[f"{CONVOLUTION}.alpha"] = torch.tensor([1.7])
    _, tensors, report = saved(state, "scales", precision="bfloat16")
    kept = [f"{LINEAR}.alpha", f"{CONVOLUTION}.alpha", f"{CONVOLUTION}.reshape_weight"]
    assert all(torch.equal(tensors[key], state[key]) for key in kept)
    assert {tensors[key].dtype for key in state if key not in kept} == {torch.bfloat16}
    assert "3 scales are not rounded" in report
    assert "2 layers with adapters other than plain LoRAs are rounded, and what that changes is not measured" in report


def test_a_merge_s_report_says_nothing_of_other_adapters(merged):
    _, _, report = saved(merged[2], "plain report", precision="float16", max_rank=4)
    assert len(report.splitlines()) == 2
