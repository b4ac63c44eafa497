"""CLoRA runs that stop in the middle, and runs with little memory."""

import comfy.ldm.modules.attention
import comfy.model_management
import nodes
import pytest
import torch
from host_sampler.sampling import PLAIN, assert_same, clora, compose, concept, plain, sample
from loraclr.loraclr_core.host.sampler import evaluation


@pytest.mark.parametrize("where", ["gradient", "predict"])
@pytest.mark.parametrize("error", [comfy.model_management.InterruptProcessingException, RuntimeError])
def test_a_run_that_stops_in_the_middle_leaves_no_trace(demo, concepts, latent, where, error):
    expected = plain(demo, latent)
    model, positive, negative = clora(demo, concepts, gradient_memory="one branch at a time")
    calls = []

    def fail(q, k, v, options):
        calls.append(torch.is_grad_enabled())
        if (where == "gradient") == calls[-1] and len(calls) > 3:
            raise error
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])

    broken = model.clone()
    broken.set_model_attn2_replace(fail, "input", 1)
    with pytest.raises(error):
        sample(broken, positive, negative, latent, steps=3)
    assert len(calls) > 3
    assert torch.equal(plain(demo, latent)["samples"], expected["samples"])
    assert not any(module._forward_hooks for module in demo.model.model.modules())
    assert sample(model, positive, negative, latent)["samples"].isfinite().all()


def test_little_memory_splits_the_batch_and_changes_nothing(demo, concepts, latent, monkeypatch):
    expected = sample(*clora(demo, concepts), latent)
    model, positive, negative = clora(demo, concepts)
    monkeypatch.setattr(type(demo.model), "get_free_memory", lambda self, device: 0)
    assert_same(sample(model, positive, negative, latent), expected, 1e-4)


def test_gradients_go_branch_by_branch_where_memory_runs_out(demo, concepts, latent, monkeypatch, caplog):
    expected = sample(*clora(demo, concepts), latent)
    read = evaluation.Evaluation.read

    def little_room(self, z, recorder, branches):
        if torch.is_grad_enabled() and len(branches) > 1:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        read(self, z, recorder, branches)

    monkeypatch.setattr(evaluation.Evaluation, "read", little_room)
    assert_same(sample(*clora(demo, concepts), latent), expected, 1e-4)
    assert "one branch at a time" in caplog.text


def test_both_gradient_memories_are_the_same(demo, concepts, latent):
    one = sample(*clora(demo, concepts, gradient_memory="one branch at a time"), latent)
    assert_same(one, sample(*clora(demo, concepts, gradient_memory="all at once"), latent), 1e-4)


def test_the_negative_is_encoded_once_where_loras_leave_the_text_encoder_as_it_is(demo):
    """Seconds for a large text encoder."""
    encoded = []
    handle = demo.clip.cond_stage_model.clip_l.register_forward_pre_hook(lambda module, args: encoded.append(args))
    counts = []
    for strength in (0.0, 1.0):
        chain = concept("dog", concept("cat", strength_clip=strength), strength_clip=strength)
        encoded.clear()
        _, positive, negative = compose(demo, chain)
        counts.append(len(encoded))
        assert len(positive) == len(negative) == 3
    handle.remove()
    assert counts == [4, 6]


def test_offloaded_weights_change_nothing(demo, concepts, latent, request):
    """Nothing but rounding: LoRAs of the text encoder are then added to its weights in float32, not in half precision.

    Without masks, whose edges turn a rounding into another cell. So does a tie for the strongest place of a map, in one
    picture of 160; not in this one.
    """
    expected = sample(*clora(demo, concepts, first_masked_step=1000), latent)
    request.getfixturevalue("offloaded")
    found = sample(*compose(demo, concepts, first_masked_step=1000), latent)
    assert demo.model.model.model_lowvram
    assert_same(found, expected, 1e-3)


def test_a_style_acts_through_offloaded_weights(double, idle, concepts, latent, offloaded):
    """The host patches those weights as they are used, in gradient passes too."""
    model, clip = nodes.LoraLoader().load_lora(double.model, double.clip, "loraclr_random_bird.safetensors", 1.0, 1.0)
    styled = double._replace(model=model, clip=clip)
    expected = plain(styled, latent)
    assert double.model.model.lowvram_patch_counter > 0
    assert_same(sample(*compose(styled, idle, **PLAIN), latent), expected, 1e-5)
    assert sample(*compose(styled, concepts), latent)["samples"].isfinite().all()


def test_branches_spread_over_devices_give_the_same(demo, concepts, latent):
    """By the host's engine for several GPUs, here with the CPU under two names; gradients stay on the first."""
    expected = sample(*clora(demo, concepts), latent)
    model = demo.model.clone()
    copy = model.deepclone_multigpu(torch.device("cpu:0"))
    copy.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [copy])
    passes = {}
    handles = []
    for name, patcher in (("first", model), ("second", copy)):
        passes[name] = []

        def watch(module, args, kwargs, name=name):
            passes[name].append(torch.is_grad_enabled())

        unet = patcher.model.diffusion_model
        handles.append(unet.register_forward_pre_hook(watch, with_kwargs=True))
    try:
        found = sample(*compose(demo._replace(model=model), concepts), latent)
    finally:
        for handle in handles:
            handle.remove()
    assert passes["second"] == [False] * 4  # its share of two steps, of the plain picture and of the concepts
    assert passes["first"].count(True) > 0
    assert_same(found, expected, 1e-4)
    assert not any(module._forward_hooks for patcher in (model, copy) for module in patcher.model.modules())
