"""Preservation Scores, on each form of image encoder that ComfyUI loads, shrunken and of random weights."""

import functools
import json
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import pytest
import torch
from architectures import fill
from comfy.clip_vision import ClipVisionModel
from comfy.image_encoders import dino3
from comfy_execution.graph import ExecutionBlocker
from loraclr.loraclr_core.host.train import vision
from pack import run

# The host's own settings of each encoder, and the name that the report gives it at its full size.
ENCODERS = {
    "clip_vision_config_vitl.json": "CLIP ViT-L/14, 224 px",
    "clip_vision_config_vitl_336.json": "CLIP ViT-L/14, 336 px",
    "clip_vision_config_h.json": "CLIP ViT-H/14, 224 px",
    "clip_vision_config_g.json": "CLIP ViT-bigG/14, 224 px",
    "clip_vision_siglip_384.json": "SigLIP so400m/14, 384 px",
    "clip_vision_siglip_512.json": "SigLIP so400m/16, 512 px",
    "clip_vision_siglip2_base_naflex.json": "SigLIP 2 so400m/16, any shape",
    "image_encoders/dino2_large.json": "DINOv2 ViT-L/14, 518 px",
    "image_encoders/dino2_giant.json": "DINOv2 ViT-g/14, 518 px",
    "dinov3": "DINOv3 ViT-H/16, 1024 px",
}
CLIP = "clip_vision_config_vitl.json"
INPUTS = ["with_trigger", "without_trigger", "base", "references"]
SHOWN = ["KPS", "kept", "identity", "identity without the trigger", "diversity", "diversity of the base"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def settings(file: str) -> dict:
    if file == "dinov3":
        return dict(dino3.DINOV3_VITH_CONFIG)
    return json.loads((Path(comfy.clip_vision.__file__).parent / file).read_text())


@functools.cache
def encoder(file: str) -> ClipVisionModel:
    config = settings(file)
    size = 4 * config["patch_size"] if config["image_size"] > 0 else config["image_size"]
    made = ClipVisionModel(config | SMALL | {"image_size": size})
    fill(made.model, 0)
    for key, weight in made.model.named_parameters():
        if key.endswith("lambda1"):  # a DINO layer's gain, which `fill` takes for a bias
            weight.fill_(1.0)
    return made


def pictures(count: int, seed: int, height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def score(file: str = CLIP, **inputs):
    """Outputs of the node: kps, kept, identity, diversity, report."""
    lists = {name: batch if isinstance(batch, list) else [batch] for name, batch in inputs.items()}
    return run("LoRACLR_PreservationScores", clip_vision=[encoder(file)], **lists)


@pytest.mark.parametrize("file", ENCODERS)
class TestEncoder:
    def test_equal_pictures_are_kept_and_others_are_apart(self, file):
        same, other = pictures(3, 0), pictures(3, 1)
        kps, kept, identity, diversity, _ = score(
            file, with_trigger=same, without_trigger=same, base=same, references=same
        )
        assert kps == pytest.approx(0, abs=1e-9)
        assert kept == pytest.approx(1)
        assert 0 < diversity < 2
        assert identity == pytest.approx(1 - diversity * 2 / 3)  # of nine pairs, three are of a picture with itself
        kps, kept, *_ = score(file, with_trigger=other, without_trigger=same, base=other)
        assert kps > 1e-6
        assert 1 - 2 * kps <= kept + 1e-9  # the same pairs: a harmonic mean is at most the arithmetic one

    def test_vectors_are_the_hosts(self, file):
        image = pictures(1, 2)
        made = encoder(file)
        if file == "dinov3":
            pixels = comfy.clip_vision.clip_preprocess(image, made.image_size, made.image_mean, made.image_std)
            expected = made.model(pixel_values=pixels)[0][:, 0]
        else:
            expected = made.encode_image(image)["image_embeds"]
            expected = expected.mean(dim=1) if "siglip" in file else expected
        assert torch.equal(vision.encode(made, [image], lambda: None), expected)


def test_names_of_the_encoders():
    assert {file: vision.name(settings(file)) for file in ENCODERS} == ENCODERS


@pytest.mark.parametrize(("name", "count"), [("with_trigger", 2), ("base", 4)])
def test_pictures_without_a_partner_are_an_error_that_counts_them(name, count):
    inputs = {"with_trigger": pictures(3, 0), "without_trigger": pictures(3, 0), "base": pictures(3, 0)}
    with pytest.raises(ValueError, match=rf"{name} holds {count} pictures and without_trigger 3"):
        score(**inputs | {name: pictures(count, 0)})


def test_lists_of_pictures_of_any_size_are_one_row_of_pictures():
    """Folders come as lists, whose pictures have sizes of their own."""
    small, wide = pictures(2, 0), pictures(1, 1, width=90)
    same = [small, wide]
    kps, kept, *_ = score(with_trigger=same, without_trigger=[small[:1], small[1:], wide], base=same, references=same)
    assert kps == pytest.approx(0, abs=1e-9)
    assert kept == pytest.approx(1)


def test_outputs_that_lack_their_pictures_say_which():
    _, kept, identity, diversity, report = score(with_trigger=pictures(1, 0), without_trigger=pictures(1, 1))
    for blocked, word in [(kept, "base"), (identity, "references"), (diversity, "two pictures")]:
        assert isinstance(blocked, ExecutionBlocker)
        assert word in blocked.message
    assert report.count("is not measured") == 3


def test_the_report_says_every_score_in_words_and_as_a_bar():
    batches = {name: pictures(4, seed) for seed, name in enumerate(INPUTS)}
    kps, kept, identity, diversity, report = score(**batches)
    for name, value in {"KPS": kps, "Kept": kept, "Identity": identity, "Diversity": diversity}.items():
        assert f"- **{name} {value:.3f} ± " in report
    rows = [line.split("|")[1:-1] for line in report.splitlines() if line.startswith("|")][2:]
    assert [row[0].strip() for row in rows] == SHOWN
    for _, value, _, bar in rows:
        assert len(bar.strip(" `")) == 20
        assert bar.count("█") <= 20 * float(value) + 0.5 <= 20.5 - bar.count("░") + 0.5
    assert "Encoder: **CLIP width 32/14, 56 px**. 4 pictures" in report


def test_a_broken_picture_is_named():
    broken = pictures(3, 0)
    broken[1] = float("nan")
    with pytest.raises(ValueError, match="picture 2 of without_trigger"):
        score(with_trigger=pictures(3, 0), without_trigger=broken)


def test_llavas_encoder_has_no_vector_of_a_picture():
    with pytest.raises(ValueError, match="LLaVA"):
        score("clip_vision_config_vitl_336_llava.json", with_trigger=pictures(1, 0), without_trigger=pictures(1, 0))


def test_cancelling_stops_between_two_pictures():
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        score(with_trigger=pictures(3, 0), without_trigger=pictures(3, 0))
    assert not comfy.model_management.processing_interrupted()
