"""The live view: what the page is sent while CLoRA samples."""

import base64
import inspect
import io
import json
import logging

import architectures
import comfy.latent_formats
import comfy.model_management
import comfy.supported_models
import latent_preview
import lora_files
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from host_sampler.sampling import CLORA, maps, sample
from loraclr.loraclr_core.host.sampler import live, overlay
from loraclr.loraclr_core.host.sampler.compose import compose
from loraclr.loraclr_core.host.sampler.notes import Notes
from loraclr.loraclr_core.host.sampler.settings import Settings, UpdateSettings
from loraclr.loraclr_core.sampler.areas import AreaSettings
from PIL import Image
from running import load, write_lora

FORMATS = {
    name: made
    for name, each in inspect.getmembers(comfy.latent_formats, inspect.isclass)
    if (made := each()).latent_rgb_factors is not None and not name.endswith("AV")  # video and sound in one
}


SILENT = Notes(lambda text: None)
SETTINGS = Settings(
    updates=UpdateSettings(strength=0.05, end=1.0, refine_steps=()), areas=AreaSettings(morphology="none")
)


def composed(demo, concepts, view, prompt=CLORA["prompt"], settings=SETTINGS):
    return compose(demo.model, demo.clip, concepts, prompt, "", settings, SILENT, view)


def unpacked(values: str, size: list[int]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(values), np.uint8).reshape(size) / 255


def shown(picture: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])))).astype(float)


@pytest.fixture
def frames():
    return []


def test_frames_hold_what_was_used(demo, concepts, latent, frames, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0.0)
    model, positive, negative = composed(demo, concepts, live.LiveView(["cat", "dog"], frames.append, lambda: True))
    sampled = sample(model, positive, negative, latent, steps=3)
    assert [(frame["step"], frame["steps"]) for frame in frames] == [(1, 3), (2, 3), (3, 3)] * 2
    plain, of_concepts = frames[:3], frames[3:]
    assert not any("masks" in frame or "heat" in frame or frame["losses"] for frame in plain)
    assert [len(frame["losses"]) for frame in of_concepts] == [1, 2, 3]
    last = frames[-1]
    assert last["names"] == ["cat", "dog"]
    masks, _, losses = maps(model, sampled)
    for concept in range(2):
        assert np.array_equal(unpacked(last["masks"][concept], last["mask_size"]) > 0.5, masks[concept].numpy() > 0.5)
        heat = unpacked(last["heat"][concept], last["heat_size"])
        assert heat.min() == 0
        assert heat.max() == 1
    torch.testing.assert_close(torch.tensor(last["losses"]), torch.tensor(losses["loss"]).float(), rtol=0, atol=1e-3)
    picture = Image.open(io.BytesIO(base64.b64decode(last["picture"].partition(",")[2])))
    assert picture.size == (96, 64)  # of a latent 8 × 12 cells, 8 pixels each
    assert np.asarray(picture).std() > 0


def test_frames_are_throttled_but_for_the_last_of_each_take(demo, concepts, latent, frames, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 3600.0)
    model, positive, negative = composed(demo, concepts, live.LiveView(["cat", "dog"], frames.append, lambda: True))
    sample(model, positive, negative, latent, steps=4)
    assert [(frame["step"], "masks" in frame) for frame in frames] == [(1, False), (4, False), (4, True)]


def test_nothing_is_made_for_nobody(demo, concepts, latent, frames):
    model, positive, negative = composed(demo, concepts, live.LiveView(["cat", "dog"], frames.append, lambda: False))
    sample(model, positive, negative, latent)
    assert not frames


def test_the_picture_is_the_same_with_and_without(demo, concepts, latent, frames):
    view = live.LiveView(["cat", "dog"], frames.append, lambda: True)
    shown, hidden = (sample(*composed(demo, concepts, each), latent)["samples"] for each in (view, None))
    assert frames
    assert torch.equal(shown, hidden)


def test_large_pictures_are_sent_small(frames, demo):
    latent_format = demo.model.get_model_object("latent_format")
    live.LiveView(["cat"], frames.append, lambda: True).show(
        0,
        1,
        latent_format,
        torch.randn(1, 4, 128, 96),
        torch.ones(1, 1, 128, 96),
        torch.zeros(1, 1, 32, 24),
        {0: torch.zeros(1)},
    )
    (frame,) = frames
    picture = Image.open(io.BytesIO(base64.b64decode(frame["picture"].partition(",")[2])))
    assert picture.size == (192, 256)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_drawn_in_the_colours_of_the_host_s_previews(name):
    """Whatever a format has rearranged, added or in frames; in half precision too, as a latent may come."""
    latent_format = FORMATS[name]
    frames = [2] if latent_format.latent_dimensions == 3 else []
    latent = torch.randn(1, latent_format.latent_channels, *frames, 4, 6)
    latent[..., 0, 0] = torch.nan
    previewer = latent_preview.Latent2RGBPreviewer(
        latent_format.latent_rgb_factors,
        latent_format.latent_rgb_factors_bias,
        latent_format.latent_rgb_factors_reshape,
    )
    expected = np.asarray(previewer.decode_latent_to_preview(latent)).astype(float)
    found = overlay.rough_picture(latent_format, latent)
    cells = latent_format.spacial_downscale_ratio
    assert found.shape == (1, 4 * cells, 6 * cells, 3)
    step = found.shape[1] // len(expected)
    assert np.abs(255 * found[0, ::step, ::step].numpy() - expected)[1:, 1:].max() <= 1.01  # the host cuts, not rounds
    assert overlay.rough_picture(latent_format, latent.half()).isfinite().all()


@pytest.fixture
def flux2(demo):
    """A small Flux.2 that reads the demo's text."""
    sizes = architectures.ARCHITECTURES["Flux"].sizes | {"image_model": "flux2", "in_channels": 128, "patch_size": 1}
    sizes |= {"out_channels": 128, "axes_dim": [8] * 4, "context_in_dim": 768, "vec_in_dim": None, "txt_ids_dims": [3]}
    config = comfy.supported_models.Flux2(sizes | {"qkv_bias": False, "global_modulation": True, "mlp_silu_act": True})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    architectures.fill(model, 0)
    return demo._replace(model=ModelPatcher(model, torch.device("cpu"), torch.device("cpu")))


def test_flux_2_is_sampled_and_shown(flux2, frames):
    """Its latents are drawn as pixels of a quarter of their cells."""
    layer = flux2.model.model.diffusion_model.double_blocks[0].img_attn.qkv
    lora = lora_files.lora("diffusion_model.double_blocks.0.img_attn.qkv", tuple(layer.weight.shape))
    chain = load(write_lora("flux2.safetensors", lora), "sks cat", None)[0]
    view = live.LiveView(["cat"], frames.append, lambda: True)
    settings = Settings(areas=AreaSettings(morphology="none"))
    model, positive, negative = composed(flux2, chain, view, "a photo of {cat}", settings)
    sampled = sample(model, positive, negative, {"samples": torch.zeros(1, 128, 4, 6)}, steps=1)
    assert shown(frames[-1]["picture"]).shape == (64, 96, 3)
    assert maps(model, sampled)[1].shape == (1, 64, 96, 3)


def test_the_last_frame_has_the_colours_of_the_latent_it_shows(demo, concepts, latent, frames):
    model, positive, negative = composed(demo, concepts, live.LiveView(["cat", "dog"], frames.append, lambda: True))
    sampled = sample(model, positive, negative, latent)["samples"]
    latent_format = demo.model.get_model_object("latent_format")
    previewer = latent_preview.Latent2RGBPreviewer(latent_format.latent_rgb_factors)
    expected = previewer.decode_latent_to_preview(latent_format.process_in(sampled)).resize((96, 64), Image.NEAREST)
    assert np.abs(shown(frames[-1]["picture"]) - np.asarray(expected)).mean() < 15  # of 255, by JPEG


def broken(*_):
    raise OSError("no socket")


@pytest.mark.parametrize("part", ["send", "watched"])
def test_a_run_goes_on_whatever_fails_in_its_view_and_says_so_once(demo, concepts, latent, part, caplog, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0.0)
    working = {"send": lambda frame: None, "watched": lambda: True}
    model, positive, negative = composed(demo, concepts, live.LiveView(["cat", "dog"], **working | {part: broken}))
    for runs in (1, 2):
        found = sample(model, positive, negative, latent)
        said = [record for record in caplog.records if "live view" in record.message]
        assert [record.levelno for record in said] == [logging.WARNING] * runs
        assert "no socket" in said[-1].message
    hidden = sample(*composed(demo, concepts, None), latent)
    assert torch.equal(found["samples"], hidden["samples"])


def test_what_cancels_a_run_passes_through_its_view(demo, concepts, latent):
    def cancel(frame):
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(*composed(demo, concepts, live.LiveView(["cat", "dog"], cancel, lambda: True)), latent)


class Undrawable(comfy.latent_formats.SD15):
    """A format that wants its latents in another shape, as Flux.2's does."""

    def latent_rgb_factors_reshape(self, latent):
        return latent.reshape(1, 32, 2, 2, 8, 12)


@pytest.mark.parametrize("latent_format", [Undrawable(), comfy.latent_formats.LatentFormat()])
def test_a_frame_without_a_picture_still_has_the_rest(demo, concepts, latent, frames, latent_format):
    model, positive, negative = composed(demo, concepts, live.LiveView(["cat", "dog"], frames.append, lambda: True))
    model.add_object_patch("latent_format", latent_format)
    assert sample(model, positive, negative, latent)["samples"].isfinite().all()
    assert {frame["picture"] for frame in frames} == {None}
    assert len(frames[-1]["masks"]) == 2
    assert len(frames[-1]["losses"]) == 2


def test_a_frame_of_a_run_gone_wrong_can_be_read_by_the_page(frames, demo):
    """JSON knows no NaN, and a page drops a message with one."""
    live.LiveView(["cat"], frames.append, lambda: True).show(
        0,
        1,
        demo.model.get_model_object("latent_format"),
        torch.full((1, 4, 8, 8), torch.nan),
        torch.full((1, 1, 8, 8), torch.nan),
        torch.full((1, 1, 8, 8), torch.nan),
        {0: torch.tensor([torch.nan]), 1: torch.tensor([0.5])},
    )
    (frame,) = json.loads(json.dumps(frames, allow_nan=False))
    assert frame["losses"] == [None, 0.5]
    assert shown(frame["picture"]).max() == 0
    assert unpacked(frame["masks"][0], frame["mask_size"]).max() == 0
