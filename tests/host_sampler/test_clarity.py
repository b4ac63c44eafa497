"""What a run says of its plain picture before it draws the concepts in it, on the demo's trained models."""

import logging

import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from host_sampler.sampling import encode, maps, sample
from loraclr.loraclr_core.host.sampler import live
from loraclr.loraclr_core.host.sampler.compose import compose
from loraclr.loraclr_core.host.sampler.notes import Notes
from loraclr.loraclr_core.host.sampler.settings import Settings
from pack import run

STOP = "stop after the plain take"
RUN = {"sampler": "dpmpp_2m", "steps": 8, "cfg": 3.0, "seed": 0}
LATENT = {"samples": torch.zeros(1, 4, 16, 16)}
CLEAR = "a photo of a ball and a box on grass"


def chain(word: str) -> list:
    """A ball, and a box that is called by this class word."""
    concepts = None
    for name, trigger, class_word in (("ball", "sks ball", "ball"), ("box", "zwx box", word)):
        values = {"lora_name": f"loraclr_demo_{name}.safetensors", "trigger": trigger, "class_word": class_word}
        concepts = run("LoRACLR_LoadConceptLoRA", **values, name=name, concepts=concepts)[0]
    return concepts


def clora(trained, word: str, **inputs):
    model, clip, _ = trained
    prompt = CLEAR.replace("ball", "{ball}").replace("box", "{box}")
    return run("LoRACLR_CLoRASampler", model=model, clip=clip, concepts=chain(word), prompt=prompt, **inputs)


def test_the_areas_are_told_between_the_plain_picture_and_the_concepts(trained, monkeypatch, caplog):
    monkeypatch.setattr(live, "SECONDS", 0.0)
    events = []
    view = live.LiveView(["ball", "box"], lambda frame: events.append("masks" in frame), lambda: True)
    model, clip, _ = trained
    prompt = CLEAR.replace("ball", "{ball}").replace("box", "{box}")
    composed = compose(model, clip, chain("box"), prompt, "", Settings(), Notes(events.append), view)
    with caplog.at_level(logging.INFO, "loraclr"):
        sample(*composed, LATENT, **RUN)
    (text,) = [event for event in events if isinstance(event, str)]
    assert events == [False] * 8 + [text] + [True] * 8
    assert text in caplog.text
    for line, name in zip(text.splitlines(), ("ball", "box"), strict=True):
        assert line.startswith(f"“{name}”: ")
        assert line.endswith("% of the attention to its class word.")


def test_a_word_that_the_model_does_not_know_is_a_warning_that_says_what_to_do(trained, caplog):
    sample(*clora(trained, "banana"), LATENT, **RUN)
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert (
        "“box”: the model pays hardly any attention to its class word “banana”. Write a plainer word" in record.message
    )


def test_it_stops_with_the_plain_picture_at_its_price(trained, caplog):
    model, clip, _ = trained
    passes = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda module, args: passes.append(len(args[0])))
    try:
        composed = clora(trained, "banana", if_unclear=STOP)
        found = sample(*composed, LATENT, **RUN)
    finally:
        handle.remove()
    assert passes == [2] * 8
    expected = sample(model, encode(clip, CLEAR.replace("box", "banana")), encode(clip, ""), LATENT, **RUN)
    torch.testing.assert_close(found["samples"], expected["samples"], rtol=1e-4, atol=1e-4)
    assert "the run has stopped before the concepts" in caplog.text
    areas, _, loss = maps(composed[0], found)
    assert areas[0].max() == 1
    assert isinstance(loss, ExecutionBlocker)


def test_it_goes_on_where_all_is_clear(trained):
    expected = sample(*clora(trained, "box"), LATENT, **RUN)
    assert torch.equal(sample(*clora(trained, "box", if_unclear=STOP), LATENT, **RUN)["samples"], expected["samples"])


def test_areas_that_were_found_give_the_same_picture_again(trained):
    composed = clora(trained, "box")
    expected = sample(*composed, LATENT, **RUN)
    again = clora(trained, "box", areas=maps(composed[0], expected)[0])
    assert torch.equal(sample(*again, LATENT, **RUN)["samples"], expected["samples"])


@pytest.mark.parametrize("emptied", [0, 1])
def test_an_empty_mask_of_a_batch_leaves_the_place_to_the_sampler(trained, emptied):
    composed = clora(trained, "box")
    expected = sample(*composed, LATENT, **RUN)
    areas = maps(composed[0], expected)[0].clone()
    areas[emptied] = 0
    again = clora(trained, "box", areas=areas)
    found = maps(again[0], sample(*again, LATENT, **RUN))[0]
    assert found[emptied].max() == 1
    assert torch.equal(found[1 - emptied], areas[1 - emptied])
