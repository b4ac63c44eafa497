"""CLoRA's conditioning on a model that is not CLoRA's: whatever samples it says which wire to change."""

import copy

import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_hooks as nodes_hooks
import comfy_extras.nodes_perpneg as perpneg
import nodes
import pytest
import torch
from host_sampler.sampling import clora, encode, sample, sample_guided
from loraclr.loraclr_core.host.sampler.evaluation import KEY

WIRE = "conditioning is from CLoRA Attention Contrast Sampler, but the model is not. Connect that node's MODEL output"


@pytest.fixture(scope="module")
def small():
    return {"samples": torch.zeros(1, 4, 4, 6)}


def _ksampler(model, positive, negative, latent):
    return sample(model, positive, negative, latent)


def _ksampler_advanced(model, positive, negative, latent):
    return nodes.KSamplerAdvanced().sample(
        model, "enable", 3, 2, 5.0, "dpmpp_2m", "karras", positive, negative, latent, 0, 2, "disable"
    )[0]


def _second_pass(model, positive, negative, latent):
    upscaled = nodes.LatentUpscaleBy().upscale({"samples": torch.ones_like(latent["samples"])}, "bilinear", 2.0)[0]
    return sample(model, positive, negative, upscaled, steps=4, denoise=0.5)


def _cfg_guider(model, positive, negative, latent):
    return sample_guided(custom_sampler.CFGGuider.execute(model, positive, negative, 5.0).args[0], latent)[0]


def _basic_guider(model, positive, negative, latent):
    return sample_guided(custom_sampler.BasicGuider.execute(model, positive).args[0], latent)[0]


def _dual_cfg(model, positive, negative, latent):
    guider = custom_sampler.DualCFGGuider.execute(model, positive, negative, negative, 5.0, 3.0, "regular").args[0]
    return sample_guided(guider, latent)[0]


def _perp_neg(model, positive, negative, latent):
    guider = perpneg.PerpNegGuider.execute(model, positive, negative, negative, 5.0, 1.0).args[0]
    return sample_guided(guider, latent)[0]


SAMPLERS = [_ksampler, _ksampler_advanced, _second_pass, _cfg_guider, _basic_guider, _dual_cfg, _perp_neg]


@pytest.mark.parametrize("run", SAMPLERS)
def test_the_checkpoint_s_model_with_clora_s_conditioning_is_an_error(demo, patched, small, run):
    """It would average the branches' prompts, without their LoRAs: a picture, and nothing said."""
    _, positive, negative = patched
    with pytest.raises(ValueError, match=WIRE) as error:
        run(demo.model, positive, negative, small)
    assert type(error.value) is ValueError


def test_a_model_with_loras_or_from_a_merge_is_an_error_too(demo, patched, small):
    _, positive, negative = patched
    model, _ = nodes.LoraLoader().load_lora(demo.model, demo.clip, "loraclr_random_bird.safetensors", 1.0, 1.0)
    with pytest.raises(ValueError, match=WIRE):
        sample(model, positive, negative, small)


def test_one_side_from_clora_is_enough(demo, patched, small):
    _, positive, negative = patched
    text = encode(demo.clip, "a dog")
    with pytest.raises(ValueError, match=f"The positive {WIRE}"):
        sample(demo.model, positive, text, small)
    with pytest.raises(ValueError, match=f"The negative {WIRE}"):
        sample(demo.model, text, negative, small)


def _masked(positive, *_):
    return nodes.ConditioningSetMask().append(positive, torch.ones(1, 32, 48), "default", 1.0)[0]


def _area(positive, *_):
    return nodes.ConditioningSetArea().append(positive, 16, 16, 0, 0, 1.0)[0]


def _combined(positive, text):
    return nodes.ConditioningCombine().combine(text, positive)[0]


def _averaged(positive, text):
    return nodes.ConditioningAverage().addWeighted(positive, text, 0.5)[0]


def _concatenated(positive, text):
    return nodes.ConditioningConcat().concat(positive, text)[0]


def _ranged(positive, *_):
    return nodes.ConditioningSetTimestepRange().set_range(positive, 0.0, 0.9)[0]


def _zeroed(positive, *_):
    return nodes.ConditioningZeroOut().zero_out(positive)[0]


def _hooked(positive, *_):
    hooks = nodes_hooks.CreateHookLora().create_hook("loraclr_random_bird.safetensors", 1.0, 0.0)[0]
    return nodes_hooks.ConditioningSetProperties().set_properties(positive, 1.0, "default", hooks=hooks)[0]


def _defaults(positive, text):
    return nodes_hooks.ConditioningSetDefaultAndCombine().set_default_and_combine(text, positive)[0]


def _copied(positive, *_):
    return copy.deepcopy(positive)


WAYS = [_masked, _area, _combined, _averaged, _concatenated, _ranged, _zeroed, _hooked, _defaults, _copied]


@pytest.mark.parametrize("way", WAYS)
def test_the_conditioning_is_known_behind_other_nodes(demo, patched, small, way):
    _, positive, negative = patched
    with pytest.raises(ValueError, match=WIRE):
        sample(demo.model, way(positive, encode(demo.clip, "a dog")), negative, small)


def test_the_conditioning_is_known_behind_a_controlnet(demo, patched, small, control):
    _, positive, negative = patched
    hint = torch.rand(1, 32, 48, 3)
    positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        positive, negative, control, hint, 1.0, 0.0, 1.0
    )
    with pytest.raises(ValueError, match=WIRE):
        sample(demo.model, positive, negative, small)


def _unguarded(conditioning):
    """The conditioning without what stops other models."""
    guarded = [extra["model_conds"].keys() for _, extra in conditioning]
    assert guarded == [{KEY}] * len(conditioning)
    return [[text, {**extra, "model_conds": {}}] for text, extra in conditioning]


@pytest.mark.parametrize("run", SAMPLERS)
def test_on_its_own_model_nothing_else_changes(demo, concepts, small, run):
    model, positive, negative = clora(demo, concepts)
    expected = run(model, _unguarded(positive), _unguarded(negative), small)
    assert torch.equal(run(model, positive, negative, small)["samples"], expected["samples"])


def test_a_run_on_the_wrong_model_leaves_no_trace(demo, patched, small):
    model, positive, negative = patched
    expected = sample(model, positive, negative, small)
    with pytest.raises(ValueError, match=WIRE):
        sample(demo.model, positive, negative, small)
    assert torch.equal(sample(model, positive, negative, small)["samples"], expected["samples"])
