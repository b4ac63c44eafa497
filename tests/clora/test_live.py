"""The live view: what the page is sent while CLoRA samples."""

import base64
import io

import numpy as np
import pytest
import torch
from clora.sampling import CLORA, maps, sample
from loraclr.loraclr_core.host.sampler import clora, live
from loraclr.loraclr_core.host.sampler import compose as prompts
from PIL import Image


def composed(demo, concepts, view):
    settings = clora.Settings(
        0.05, "relative", 0.0, 1.0, (), 0, 0.5, 0.3, "none", 0, "all at once", "strongest", "plain"
    )
    return prompts.compose(demo.model, demo.clip, concepts, CLORA["prompt"], "", settings, view)


def unpacked(values: str, size: list[int]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(values), np.uint8).reshape(size) / 255


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
    latent_format = demo.model.model.latent_format
    live.LiveView(["cat"], frames.append, lambda: True).show(
        *(0, 1, latent_format, torch.randn(1, 4, 128, 96)),
        *(torch.ones(1, 1, 128, 96), torch.zeros(1, 1, 32, 24), {0: torch.zeros(1)}),
    )
    (frame,) = frames
    picture = Image.open(io.BytesIO(base64.b64decode(frame["picture"].partition(",")[2])))
    assert picture.size == (192, 256)
