"""What the page is told while a LoRA is trained."""

import base64
import dataclasses
import io
import json

import pytest
from host_train.training import CLASS, TRIGGER, picture, small_models, train
from loraclr.loraclr_core.host.train import view
from loraclr.loraclr_core.host.train.learner import Losses
from loraclr.loraclr_core.host.train.view import POINTS, Frame, curve
from loraclr.nodes import page
from PIL import Image


@pytest.fixture
def frames(monkeypatch) -> list[dict]:
    """Frames as an open page gets them."""
    sent: list[dict] = []
    monkeypatch.setattr(page, "is_open", lambda: True)
    monkeypatch.setattr(page, "send", lambda event, data: sent.append({"event": event} | json.loads(json.dumps(data))))
    return sent


@pytest.mark.parametrize("name", ["SD1.5", "Flux"])
def test_curves_and_previews_reach_the_page(frames, monkeypatch, name):
    monkeypatch.setattr(view, "SECONDS", 0.0)
    train(small_models(name), [picture(1)], steps=4, preview_every=2)
    assert {frame["event"] for frame in frames} == {"loraclr.train"}
    assert all(
        frame.keys() == {"event", "node", "workflow", "made_of", *(field.name for field in dataclasses.fields(Frame))}
        for frame in frames
    )
    assert [frame["step"] for frame in frames] == [0, 1, 2, 3, 4]
    last = frames[-1]
    assert (last["steps"], last["seconds_left"]) == (4, 0.0)
    assert len(last["losses"]) == len(last["preservation"]) == 4
    assert last["outside"] == []
    assert [len(frame["previews"]) for frame in frames] == [0, 0, 2, 2, 2]
    assert [shown["prompt"] for shown in last["previews"]] == [f"photo of a {TRIGGER}", f"photo of a {CLASS}"]
    assert [shown["with_trigger"] for shown in last["previews"]] == [True, False]
    assert {shown["step"] for shown in last["previews"]} == {4}
    for shown in last["previews"]:
        data = base64.b64decode(shown["picture"].removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).size == (96, 64)


def test_frames_are_about_a_second_apart_and_the_last_one_always_comes(frames):
    train(small_models("SD1.5"), [picture(1)], steps=4)
    assert [frame["step"] for frame in frames][:: len(frames) - 1] == [0, 4]
    assert len(frames) <= 3


def test_previews_change_nothing_that_is_learned(frames):
    models = small_models("SD1.5")
    watched = train(models, [picture(1)], steps=3, preview_every=1).loss_map
    assert train(models, [picture(1)], steps=3, if_there="anew").loss_map == watched


def test_without_a_page_nothing_is_drawn_or_sent(monkeypatch):
    sent = []
    monkeypatch.setattr(page, "send", lambda *given: sent.append(given))
    monkeypatch.setattr(view.TrainView, "_frame", lambda *_: pytest.fail("a frame was made"))
    train(small_models("SD1.5"), [picture(1)], steps=2, preview_every=1)
    assert sent == []


def test_a_page_that_fails_does_not_end_the_training(frames, monkeypatch, caplog):
    def fail(event, data):
        raise OSError("gone")

    monkeypatch.setattr(page, "send", fail)
    assert len(train(small_models("SD1.5"), [picture(1)], steps=2).loss_map["loss"]) == 2
    assert "The live view of the training lacks a frame: gone" in caplog.text


def test_curves_have_few_points_and_gaps_where_a_term_is_left_out():
    losses = [Losses(float(step), preservation=None if step % 2 else 1.0) for step in range(1001)]
    points = curve(losses, "concept")
    assert len(points) <= POINTS
    assert points[0] == sum(range(6)) / 6
    assert curve(losses[:3], "preservation") == [1.0, None, 1.0]
    assert curve(losses, "outside") == []
