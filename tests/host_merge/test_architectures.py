"""The merge on every architecture: all that a LoRA can touch is captured, solved, patched, saved and loaded again."""

import dataclasses
import functools
from collections import defaultdict
from typing import NamedTuple

import architectures
import comfy.sample
import comfy.sd
import lora_files
import nodes
import pytest
import torch
from architectures import ARCHITECTURES, PICTURES, VIDEO, Model
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher
from host_sampler.sampling import assert_same, clora, maps, sample
from host_sampler.tiles import record, tiled
from lora_files import StateDict
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge.target import CaptureSettings
from loraclr.loraclr_core.host.sampler.attention import Recorder
from running import load, merge, save, weights, write_lora
from torch import Tensor, nn

CONCEPTS = {"cat": "sks cat", "dog": "zwx dog"}
PROMPT, STEPS, SEED, RIDGE = "photo of a {trigger}", 2, 0, 0.1
STRENGTH = 0.2
CPU = torch.device("cpu")
JOINT = ["Flux", "Z-Image"]

every = pytest.mark.parametrize("name", ARCHITECTURES)


def layers(model: Model) -> dict[str, tuple[int, ...]]:
    """Shape of every layer that is a product with a matrix, by the name the host gives it in LoRA files."""
    found = {}
    for prefix, root in (("", model.model.model), ("text_encoders.", model.clip.cond_stage_model)):
        for name, module in root.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                found[prefix + name] = tuple(module.weight.shape)
    return found


class Merged(NamedTuple):
    """states: each concept's file. result: of the same merge, from the captures that the node left."""

    model: Model
    states: dict[str, StateDict]
    chain: list
    patched: ModelPatcher
    clip: comfy.sd.CLIP
    lora: StateDict
    info: object
    report: str
    result: merging.MergeResult


@functools.cache
def merged(name: str) -> Merged:
    """Two concepts whose LoRAs touch every layer, by the node."""
    model, states, chain = architectures.build(name), {}, None
    for concept, trigger in CONCEPTS.items():
        states[concept] = {}
        for layer, shape in layers(model).items():
            states[concept] |= lora_files.lora(layer, shape, scale=STRENGTH)
        lora_name = write_lora(f"{name} {concept}.safetensors", states[concept])
        chain, _, _ = load(lora_name, trigger, chain, name=concept, class_word=concept)
    latent = {"samples": torch.zeros(1, *model.latent)}
    outputs = merge(model, chain, latent=latent, capture_steps=STEPS, ridge=RIDGE, merge_text_encoder=True)
    capture = CaptureSettings((PROMPT,), STEPS, SEED, model.latent)
    settings = merging.MergeSettings(ridge=RIDGE, capture=capture)
    result = merging.merge(model.model, model.clip, chain, settings, lambda phase, done: None)
    return Merged(model, states, chain, *outputs, result)


def picture(model: Model, patched: ModelPatcher, clip: comfy.sd.CLIP, prompt: str) -> Tensor:
    """What the stock sampler makes of the prompt: no part of the pack runs."""
    cond = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    latent = torch.zeros(1, *model.latent)
    noise = comfy.sample.prepare_noise(latent, SEED)
    return comfy.sample.sample(
        patched, noise, STEPS, 1.0, "euler", "normal", cond, [], latent, disable_pbar=True, seed=SEED
    )


@every
def test_every_layer_of_the_loras_is_changed(name):
    """Also the layers of the timestep and of the pooled text, which see one token per evaluation."""
    case = merged(name)
    before = case.model.weights()
    after = weights(case.patched) | weights(case.clip.patcher)
    assert after.keys() == {f"{layer.removeprefix('text_encoders.')}.weight" for layer in layers(case.model)}
    for key, weight in after.items():
        assert float((weight - before[key]).norm() / before[key].norm()) > 1e-3, key


@every
def test_what_does_not_run_on_text_alone_is_summed_and_named(name):
    """Wan's image-to-video model has layers for a picture's embedding, which a capture has none of."""
    case = merged(name)
    waiting = {key.rpartition(".")[0] for key in case.result.solution.unseen}
    if name != "Wan image-to-video":
        assert not waiting
        return
    assert waiting == {f"diffusion_model.img_emb.proj.{i}" for i in (1, 3)}
    assert f"did not run in the captures: `{case.result.solution.unseen[0]}`" in case.report
    before, after = case.model.weights(), weights(case.patched)
    for key in case.result.solution.unseen:
        stack = [each.model.merge[key].dense() for each in case.result.loaded]
        torch.testing.assert_close(after[key] - before[key], sum(stack), rtol=1e-3, atol=1e-5)


@every
def test_the_captures_of_the_node_serve_the_same_merge_again(name):
    result = merged(name).result
    assert result.evaluations == 0
    assert result.lora.keys() == merged(name).lora.keys()


@every
def test_merged_is_nearer_to_every_concept_than_stacking(name):
    """In most layers, and in what is sampled in the end."""
    case = merged(name)
    stacked = merging.merge(
        case.model.model,
        case.model.clip,
        case.chain,
        dataclasses.replace(case.result.settings, solver="sum (baseline)"),
        lambda phase, done: None,
    )
    for index, (concept, trigger) in enumerate(CONCEPTS.items()):
        nearer = [layer.merged[index] < layer.sum[index] for layer in case.result.solution.layers]
        assert sum(nearer) > 0.5 * len(nearer)
        alone = comfy.sd.load_lora_for_models(case.model.model, case.model.clip, case.states[concept], 1.0, 1.0)
        wanted, of_merge, of_stack = (
            picture(case.model, *models, PROMPT.replace("{trigger}", trigger))
            for models in (alone, (case.patched, case.clip), (stacked.model, stacked.clip))
        )
        assert (of_merge - wanted).norm() < (of_stack - wanted).norm()


@every
def test_the_saved_file_is_the_merge_for_the_stock_loader(name):
    case = merged(name)
    saved, _ = save(case.lora, name, merge_info=case.info)
    model, clip = nodes.LoraLoader().load_lora(case.model.model, case.model.clip, saved, 1.0, 1.0)
    for ours, stock in ((case.patched, model), (case.clip.patcher, clip.patcher)):
        expected, loaded = weights(ours), weights(stock)
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(expected[key], loaded[key]) for key in expected)


# --- CLoRA -------------------------------------------------------------------------------------------------------------


def test_the_small_models_are_what_they_stand_for():
    """Two text encoders and a pooled output for SDXL, v-prediction for SD2."""
    sdxl, sd2 = (architectures.build(name) for name in ("SDXL", "SD2 v-prediction"))
    assert sdxl.clip.tokenize("a cat").keys() == {"l", "g"}
    assert sdxl.clip.encode_from_tokens(sdxl.clip.tokenize("a cat"), return_pooled=True)[1].shape == (1, 32)
    assert sdxl.model.model.adm_channels > 0
    assert sd2.model.model.model_type is ModelType.V_PREDICTION


@pytest.mark.parametrize("name", PICTURES)
def test_clora_runs_and_its_updates_lower_the_loss(name):
    case = merged(name)
    latent = {"samples": torch.zeros(1, *case.model.latent)}
    losses = []
    for strength in (0.0, 0.05):
        model, positive, negative = clora(case.model, case.chain, update_strength=strength)
        found = sample(model, positive, negative, latent, steps=3)
        masks, _, loss = maps(model, found)
        assert found["samples"].isfinite().all()
        assert masks.shape == (2, *case.model.latent[-2:])
        losses.append(sum(loss["loss"]))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", JOINT)
def test_maps_of_joint_attention_are_the_texts_part_of_its_softmax(name, monkeypatch):
    """Against probabilities of every token to every token, which the pack never computes."""
    case, whole = merged(name), defaultdict(list)
    patched, positive, negative = clora(case.model, case.chain, update_strength=0.0)

    def watching(function, q, k, v, heads, *args, **kwargs):
        probabilities = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1).mean(dim=1)
        # The base alone in the plain picture, then the two concepts.
        for row, branch in zip(probabilities, {1: [0], 2: [1, 2]}[len(probabilities)], strict=True):
            whole[branch].append(row)
        return function(q, k, v, heads, *args, **kwargs)

    patched.model_options["transformer_options"]["optimized_attention_override"] = watching
    read = {}
    maps_of = Recorder.maps
    monkeypatch.setattr(Recorder, "maps", lambda recorder: read.update(maps_of(recorder)) or dict(read))
    sample(patched, positive, negative, {"samples": torch.zeros(1, *case.model.latent)}, steps=1, cfg=1.0)

    rows, columns = (side // 2 for side in case.model.latent[-2:])
    assert read.keys() == {0, 1, 2}
    for branch, found in read.items():
        longest = max(map(len, whole[branch]))  # Z-Image attends within text and within image first
        text = {"Flux": 256, "Z-Image": 32}[name]
        joint = torch.stack([row for row in whole[branch] if len(row) == longest]).mean(dim=0)
        expected = joint[text : text + rows * columns, : found.shape[-1]].unflatten(0, (rows, columns))
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", JOINT)
def test_joint_attention_is_read_of_tiles(name):
    """The whole picture twice as a batch of two tiles is the picture; and tiles may be smaller than it."""
    case = merged(name)
    latent = {"samples": torch.zeros(1, *case.model.latent)}
    model, positive, negative = clora(case.model, case.chain, update_strength=0.0)
    expected, width = sample(model, positive, negative, latent), latent["samples"].shape[-1]
    found = sample(tiled(model, 0, 0, width=width, at_once=2), positive, negative, latent)
    assert_same(found, expected, 1e-4)
    assert torch.equal(record(model, found).masks, record(model, expected).masks)
    halves = [0, width // 2]
    one, two = (sample(tiled(model, *halves, width=width // 2, at_once=n), positive, negative, latent) for n in (1, 2))
    assert_same(two, one, 1e-4)
    torch.testing.assert_close(record(model, two).heat, record(model, one).heat, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", VIDEO)
def test_clora_names_the_model_that_it_cannot_read(name):
    case = merged(name)
    kind = type(case.model.model.model.diffusion_model).__name__
    with pytest.raises(ValueError, match=f"{kind} is none of them. Use LoRACLR Merge"):
        clora(case.model, case.chain)
