"""Captures see what the stock host would see, and leave nothing behind."""

import math

import comfy.sd
import lora_files
import pytest
import torch
import torch.nn.functional as F
from loraclr.loraclr_core.host.lora import adapters
from loraclr.loraclr_core.host.lora.adapters import Effect
from loraclr.loraclr_core.host.lora.match import key_names, match_lora
from loraclr.loraclr_core.host.merge import capture
from loraclr.loraclr_core.host.merge.target import CaptureSettings, Target
from symmetric import full

CPU = torch.device("cpu")
BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
LAYERS = [f"{BLOCK}.attn1.to_q.weight", f"{BLOCK}.attn2.to_k.weight", f"{BLOCK}.ff.net.2.weight"]
CONVOLUTION = "diffusion_model.input_blocks.1.0.in_layers.2.weight"
NARROWING = [*LAYERS[1:], CONVOLUTION]  # wider inputs than outputs: fewer of a picture's tokens count
BIAS = "diffusion_model.input_blocks.1.1.proj_in.bias"
TEXT_LAYER = "clip_l.transformer.text_model.encoder.layers.1.mlp.fc1.weight"
SETTINGS = CaptureSettings(("photo of a {trigger}",), steps=3, seed=1, latent_shape=(4, 6, 8))


def state(demo) -> dict:
    shapes = {key: tuple(weight.shape) for key, weight in demo.model.model_state_dict().items()}
    result = {}
    for key in [*LAYERS, CONVOLUTION]:
        result |= lora_files.lora(key.removesuffix(".weight"), shapes[key])
    result |= lora_files.bias(BIAS.removesuffix(".bias"), (320,))
    return result | lora_files.lora("text_encoders." + TEXT_LAYER.removesuffix(".weight"), (3072, 768))


def run(demo, model_effect: Effect, clip_effect: Effect, step_done=lambda: None):
    target = Target(
        demo.model,
        demo.clip,
        {key: adapters.layer(demo.model, key) for key in [*LAYERS, CONVOLUTION]},
        {TEXT_LAYER: adapters.layer(demo.clip.patcher, TEXT_LAYER)},
    )
    seen = capture.capture(target, model_effect, clip_effect, "sks cat", SETTINGS, {}, CPU, step_done)
    return {key: (full(seen.grams[key].lower()), found) for key, found in seen.statistics.items()}


def effects(demo, tensors: dict) -> tuple[Effect, Effect]:
    lora = match_lora("concept", tensors, key_names(demo.model, demo.clip))
    return adapters.effect(lora, demo.model, 0.8, CPU), adapters.effect(lora, demo.clip.patcher, 0.8, CPU)


def stock_features(demo, tensors: dict) -> dict[str, list[torch.Tensor]]:
    """Every input of the layers in the same run with the concept loaded by the stock loader."""
    model, clip = comfy.sd.load_lora_for_models(demo.model, demo.clip, tensors, 0.8, 0.8)
    features: dict[str, list[torch.Tensor]] = {key: [] for key in [*LAYERS, CONVOLUTION, TEXT_LAYER]}
    hooks = []
    for key, values in features.items():
        module = adapters.layer(clip.patcher if key == TEXT_LAYER else model, key)
        hooks.append(
            module.register_forward_pre_hook(lambda _, inputs, values=values: values.append(inputs[0].clone()))
        )
    try:
        cond = clip.encode_from_tokens_scheduled(clip.tokenize("photo of a sks cat"))
        clip.encode_from_tokens_scheduled(clip.tokenize("sks cat"))
        latent = torch.zeros(1, 4, 6, 8)
        noise = comfy.sample.prepare_noise(latent, 1)
        comfy.sample.sample(model, noise, 3, 1.0, "euler", "normal", cond, [], latent, disable_pbar=True, seed=1)
    finally:
        for hook in hooks:
            hook.remove()
    return features


def test_moments_are_those_of_the_stock_run_with_the_concept_alone(demo):
    """Hooks in place of patched weights, thinned and panelled products: the same second moments come out."""
    tensors = state(demo)
    captured = run(demo, *effects(demo, tensors))
    for key, inputs in stock_features(demo, tensors).items():
        if key == CONVOLUTION:
            rows = torch.cat([F.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1) for x in inputs])
        else:
            rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in inputs])
        gram, statistics = captured[key]
        assert statistics.seen == len(rows)
        if key in NARROWING:
            out_width, in_width = statistics.outputs.shape[1], statistics.inputs.shape[1]
            assert statistics.tokens == SETTINGS.steps * math.ceil(len(rows) / SETTINGS.steps * out_width / in_width)
            mean, expected = (float(g.trace()) / n for g, n in ((gram, statistics.tokens), (rows.T @ rows, len(rows))))
            assert mean == pytest.approx(expected, rel=0.25)
        else:
            held_out = statistics.held_out[:0] if key == TEXT_LAYER else statistics.held_out
            expected = rows.T @ rows - held_out.T @ held_out
            assert statistics.tokens == len(rows) - len(held_out)
            torch.testing.assert_close(gram, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_every_token_of_a_prompt_counts_and_another_prompt_is_the_judge(demo):
    """A trigger is a token or two: holding one out would lose it."""
    statistics = run(demo, *effects(demo, state(demo)))[TEXT_LAYER][1]
    assert (statistics.tokens, statistics.seen) == (2 * 77, 2 * 77)
    assert len(statistics.held_out) == capture.HELD_OUT_TEXT
    distances = torch.cdist(statistics.held_out[1:], statistics.inputs)
    assert distances.min() > 1e-3


def test_outputs_are_those_of_the_layer_with_the_concept(demo):
    tensors = state(demo)
    model_effect, clip_effect = effects(demo, tensors)
    captured = run(demo, model_effect, clip_effect)
    for key in [*LAYERS, CONVOLUTION]:
        layer = adapters.layer(demo.model, key)
        weight = layer.weight.float().flatten(1) + model_effect.merge[key].dense()
        statistics = captured[key][1]
        expected = statistics.inputs @ weight.T + (0 if layer.bias is None else layer.bias.float())
        torch.testing.assert_close(statistics.outputs, expected, rtol=1e-3, atol=1e-3)


def test_same_tokens_for_every_concept(demo):
    base = run(demo, Effect(), Effect())
    concept = run(demo, *effects(demo, state(demo)))
    first = LAYERS[0]
    assert base[first][1].inputs.shape == concept[first][1].inputs.shape
    # The first block'"'"'s inputs at the first step differ by the concept alone, not by noise or position.
    correlation = torch.corrcoef(torch.stack([base[first][1].inputs[0], concept[first][1].inputs[0]]))[0, 1]
    assert correlation > 0.9


class Stop(Exception):
    pass


def test_stopping_leaves_no_hook_and_no_changed_weight(demo):
    comfy.model_management.load_models_gpu([demo.model])
    before = {key: weight.clone() for key, weight in demo.model.model_state_dict().items()}
    count = 0

    def stop_at_second_step():
        nonlocal count
        count += 1
        if count == 2:
            raise Stop

    with pytest.raises(Stop):
        run(demo, *effects(demo, state(demo)), stop_at_second_step)
    modules = [*demo.model.model.modules(), *demo.clip.cond_stage_model.modules()]
    assert not any(module._forward_hooks for module in modules)
    comfy.model_management.load_models_gpu([demo.model])
    after = demo.model.model_state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_layer_that_never_runs_has_seen_nothing(demo):
    target = Target(demo.model, demo.clip, {LAYERS[0]: torch.nn.Linear(320, 320)}, {})
    found = capture.capture(target, Effect(), Effect(), "cat", SETTINGS, {}, CPU, lambda: None).statistics
    assert found[LAYERS[0]].seen == 0
