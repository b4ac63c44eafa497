"""Rows of one batch, each with its own LoRA: every branch predicts what the stock loader's model predicts."""

from pathlib import Path

import comfy.model_management
import comfy.sd
import lora_files
import pytest
import torch
from host_sampler.sampling import encode
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.host.lora import adapters
from loraclr.loraclr_core.host.lora.load import Loaded
from loraclr.loraclr_core.host.lora.match import AdapterError, key_names, match_lora
from loraclr.loraclr_core.host.sampler.branches import BranchAdapters

CPU = torch.device("cpu")
TO_K = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
FEED_FORWARD = "diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.2.weight"
CONVOLUTION = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
WIDE_CONVOLUTION = "diffusion_model.output_blocks.0.0.in_layers.2.weight"
NORM = "diffusion_model.input_blocks.1.0.in_layers.0.weight"
LAYER_NORM = "diffusion_model.input_blocks.1.1.transformer_blocks.0.norm2.weight"
STRENGTHS = (0.7, -1.3)


def state_of(make, demo, *keys: str) -> dict:
    weights = demo.model.model_state_dict()
    state = {}
    for key in keys:
        state |= make(key.removesuffix(".weight"), tuple(weights[key].shape))
    return state


def loaded(patcher):
    comfy.model_management.load_models_gpu([patcher])
    return patcher.model


def branch_adapters(demo, *states: dict) -> BranchAdapters:
    concepts = []
    for state, strength in zip(states, STRENGTHS, strict=False):
        lora = match_lora("concept.safetensors", state, key_names(demo.model, demo.clip))
        own = Concept("cat", "sks cat", "cat", lora.name, Path(), "", strength, 0.0)
        concepts.append(Loaded(own, lora, adapters.effect(lora, demo.model, strength, CPU), adapters.Effect()))
    return BranchAdapters(demo.model, concepts)


def inputs(demo, rows: int):
    x = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    context = encode(demo.clip, "a photo of a cat")[0][0].expand(rows, -1, -1)
    return {"x": x, "t": torch.full((rows,), 5.0), "c_crossattn": context}


def check(demo, *states: dict, rows=(0, 1, 2, 2, 1)) -> None:
    """Each row as the stock loader's model gives it. Not batched there: the stock model has one LoRA at a time."""
    given = inputs(demo, len(rows))
    branches = branch_adapters(demo, *states)
    model = loaded(demo.model)
    with branches.attached([model]), branches.routed(rows):
        found = model.apply_model(**given)
        branches.check_all_ran()
    plain = model.apply_model(**given)
    expected = [plain]
    for state, strength in zip(states, STRENGTHS, strict=False):
        patched, _ = comfy.sd.load_lora_for_models(demo.model, None, state, strength, 0)
        expected.append(loaded(patched).apply_model(**given))
    for row, branch in enumerate(rows):
        size = float(expected[branch][row].abs().max())
        torch.testing.assert_close(found[row], expected[branch][row], rtol=0, atol=1e-4 * size)
        if branch:
            assert (expected[branch][row] - plain[row]).abs().max() > 1e-3 * size  # or the LoRA would not be seen


@pytest.mark.parametrize("kind", lora_files.LINEAR)
def test_every_adapter_type_of_linear_layers(demo, kind):
    states = [
        {k: 4 * v if "up" in k else v for k, v in state_of(lora_files.LINEAR[kind], demo, TO_K, FEED_FORWARD).items()}
        for _ in range(2)
    ]
    check(demo, *states)


@pytest.mark.parametrize("kind", lora_files.CONVOLUTION)
def test_every_adapter_type_of_convolutions(demo, kind):
    check(demo, *(state_of(lora_files.CONVOLUTION[kind], demo, CONVOLUTION) for _ in range(2)))


def test_convolutions_too_wide_to_merge(demo):
    check(demo, *(state_of(lora_files.lora, demo, WIDE_CONVOLUTION) for _ in range(2)))


def test_norms_and_biases(demo):
    weights = demo.model.model_state_dict()
    states = []
    for _ in range(2):
        state = {}
        for key in (NORM, LAYER_NORM, TO_K):
            state[key.replace(".weight", ".diff")] = 0.3 * torch.randn(weights[key].shape)
        for key in (NORM, CONVOLUTION, FEED_FORWARD):
            bias = weights[key.replace(".weight", ".bias")]
            state[key.replace(".weight", ".diff_b")] = 0.3 * torch.randn(bias.shape)
        states.append(state)
    check(demo, *states)


def test_ranks_and_layers_that_differ_between_concepts(demo):
    one = state_of(lambda *at: lora_files.lora(*at, rank=2), demo, TO_K, FEED_FORWARD)
    other = state_of(lambda *at: lora_files.lora(*at, rank=7), demo, TO_K, CONVOLUTION)
    check(demo, one, other)


@pytest.mark.parametrize("rows", [(2, 1, 0, 1, 2), (1,), (2, 2), (0, 1, 2)])
def test_any_order_of_rows(demo, rows):
    check(demo, *(state_of(lora_files.lora, demo, TO_K, FEED_FORWARD, CONVOLUTION) for _ in range(2)), rows=rows)


def test_nothing_stays_on_the_model(demo):
    given = inputs(demo, 2)
    model = loaded(demo.model)
    before = model.apply_model(**given)
    branches = branch_adapters(demo, state_of(lora_files.lora, demo, TO_K))
    with branches.attached([model]):
        assert torch.equal(model.apply_model(**given), before)  # attached but not routed
        with pytest.raises(KeyboardInterrupt), branches.routed((1, 1)):
            raise KeyboardInterrupt
        assert torch.equal(model.apply_model(**given), before)
    assert torch.equal(model.apply_model(**given), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_never_runs_is_an_error(demo):
    """A LoRA on a layer whose weight the model uses without calling it would be lost without a word."""
    branches = branch_adapters(demo, state_of(lora_files.lora, demo, TO_K))
    with branches.attached([loaded(demo.model)]), pytest.raises(AdapterError, match=r"attn2\.to_k"):
        branches.check_all_ran()
