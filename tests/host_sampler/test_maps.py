"""What Attention Maps of CLoRA gives: heat maps with names, whatever the names, the model and the picture."""

import logging

import comfy.latent_formats
import pytest
import torch
from host_sampler.sampling import maps, sample
from loraclr.loraclr_core.host.sampler import labels
from loraclr.loraclr_core.host.sampler.evaluation import KEY


@pytest.fixture(scope="module")
def sampled(patched):
    with torch.inference_mode():
        return sample(*patched, {"samples": torch.zeros(1, 4, 8, 12)})


@pytest.fixture
def heat_maps(patched, sampled):
    """The heat maps over black of a run like that of two concepts, with these names and no heat: their labels alone."""

    def drawn(names: list[str], height: int = 256, width: int = 256) -> torch.Tensor:
        records = patched[0].get_attachment(KEY).records
        record = records.of(sampled["samples"])
        records.keep(sampled["samples"], record._replace(concepts=names, heat=torch.zeros_like(record.heat)))
        try:
            return maps(patched[0], sampled, image=torch.zeros(1, height, width, 3))[1]
        finally:
            records.keep(sampled["samples"], record)

    return drawn


@pytest.mark.parametrize(
    "names",
    [
        *(["猫", "犬"], ["ね", "い"], ["к", "д"], ["ก", "ข"], ["ق", "ك"], ["म", "प"], ["고", "양"], ["🐱", "🐶"]),
        *(["é", "è"], ["ß", "ł"], ["cat 猫", "cat 犬"]),
    ],
)
def test_two_names_never_look_alike(heat_maps, names):
    """As boxes do; with numbers where no font here has the letters."""
    one, other = heat_maps(names)
    assert one.max() > 0.5
    assert other.max() > 0.5
    assert not torch.equal(one, other)


def page_font():
    """A font that comes with every ComfyUI, and has letters that PIL's own lacks."""
    return next(file for file in labels.font_files() if file.name.startswith("inter-latin"))


def test_a_name_is_drawn_by_a_font_that_has_it_and_else_numbered():
    names = ["cat", "Zoé"]
    with_font, without = (labels.fit(names, 512, 512, files) for files in ((page_font(),), ()))
    assert [label.text for label in with_font] == names
    assert [label.text for label in without] == ["cat", "2"]
    assert with_font[1].font.getname()[0].startswith("Inter")
    assert labels.legend(names, with_font) == "1 cat, 2 Zoé"
    assert labels.legend(names, without).startswith("1 cat, 2 Zoé. The heat maps have numbers")


def test_every_letter_that_is_drawn_has_a_glyph():
    """None of a code point that is in no font, nor any beside one that is."""
    for name in ("\U0010ffff", "cat \U0010ffff", "\ue000猫", "\u0378"):
        (label,) = labels.fit([name], 512, 512, labels.font_files())
        assert label.text == "1"


@pytest.mark.parametrize("size", [(256, 256), (64, 96), (1024, 512)])
def test_labels_stay_within_the_picture(heat_maps, size):
    for name in ("a rather long name of a concept", "W" * 60, "W" * 600):
        image = heat_maps([name, "dog"], *size)[0]
        assert image.max() > 0.5
        assert image[:, -1].max() == 0
        assert image[size[0] // 2 :].max() == 0


def test_a_line_break_in_a_name_is_a_space(heat_maps):
    broken, plain = (heat_maps([name, "dog"])[0] for name in ("sks\n\tcat", "sks  cat"))
    assert torch.equal(broken, plain)


def test_names_are_told_in_words_too(heat_maps, caplog):
    with caplog.at_level(logging.INFO, "loraclr"):
        heat_maps(["猫", "犬"])
    assert "1 猫, 2 犬" in caplog.text


@pytest.mark.parametrize("latent_format", [comfy.latent_formats.Flux2(), comfy.latent_formats.LatentFormat()])
def test_a_latent_that_cannot_be_drawn_is_grey_and_said(patched, sampled, latent_format, caplog):
    model = patched[0].clone()
    expected = maps(model, sampled)
    model.add_object_patch("latent_format", latent_format)
    with caplog.at_level(logging.INFO, "loraclr"):
        masks, heat, loss = maps(model, sampled)
    assert torch.equal(masks, expected[0])
    assert loss == expected[2]
    cells = latent_format.spacial_downscale_ratio
    assert heat.shape == (2, 8 * cells, 12 * cells, 3)
    assert heat.std() > 0
    assert "connect the decoded picture to image" in caplog.text


def test_a_picture_with_alpha_is_drawn_without_it(patched, sampled):
    picture = torch.rand(1, 64, 96, 4)
    found = maps(patched[0], sampled, image=picture)[1]
    assert torch.equal(found, maps(patched[0], sampled, image=picture[..., :3])[1])
