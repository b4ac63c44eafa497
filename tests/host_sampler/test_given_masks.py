"""What is said about masks of the whole picture, where only a part of it may be sampled."""

import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from host_sampler.sampling import CLORA, clora, concept, maps, plain, sample
from loraclr.loraclr_core.host.sampler.compose import compose
from loraclr.loraclr_core.host.sampler.notes import Notes
from loraclr.loraclr_core.host.sampler.settings import Settings
from pack import run

SETTINGS = Settings(surroundings="composed (paper)")


def told(demo, size: tuple[int, int], mask: torch.Tensor | None, nodes: tuple[str, ...]) -> list[str]:
    """What the user is told while these nodes sample latents of this size, one after another."""
    chain, said = concept("dog", concept("cat", mask=mask)), []
    composed = compose(demo.model, demo.clip, chain, CLORA["prompt"], "", SETTINGS, Notes(said.append))
    for node in nodes:
        with CurrentNodeContext("prompt", node):
            sample(*composed, {"samples": torch.zeros(1, 4, *size)}, steps=1)
    return said


WHOLE = torch.ones(1, 64, 96)


@pytest.mark.parametrize("size", [(8, 12), (4, 6)])
def test_nothing_is_said_where_each_node_samples_a_picture_of_the_mask_s_shape(demo, size):
    assert told(demo, size, WHOLE, ("3", "5")) == []


def test_a_mask_of_another_shape_is_told(demo):
    (text,) = told(demo, (8, 8), WHOLE, ("3",))
    assert text == "The mask of “cat” (96×64) has another shape than the picture and is stretched to it."


def test_a_node_that_may_sample_parts_of_the_picture_is_told_what_becomes_of_masks(demo):
    """Ultimate SD Upscale samples tile after tile in one run, and nothing tells a model where a tile is."""
    (text,) = told(demo, (8, 12), WHOLE, ("3", "3"))
    assert "“cat”. If it samples parts of the picture" in text
    assert "whose concepts have no masks" in text


def test_an_area_in_shares_fits_a_picture_of_any_shape(demo):
    (area,) = run("LoRACLR_ConceptArea", area="left half")
    assert told(demo, (8, 12), area, ("3",)) == []


def test_a_concept_stays_in_its_area(demo, latent):
    """Outside the areas, the picture is the one without concepts."""
    left, right = (run("LoRACLR_ConceptArea", area=f"{side} third")[0] for side in ("left", "right"))
    model, positive, negative = clora(demo, concept("dog", concept("cat", mask=left), mask=right), update_strength=0.0)
    picture = sample(model, positive, negative, latent, steps=3)
    cat, dog = maps(model, picture)[0]
    assert cat.tolist() == [[1.0] * 4 + [0.0] * 8] * 8
    assert dog.tolist() == [[0.0] * 8 + [1.0] * 4] * 8
    change = (picture["samples"] - plain(demo, latent, steps=3)["samples"]).abs()
    assert change[..., 4:8].max() < 1e-2 * change[..., :4].max()
    assert change[..., 4:8].max() < 1e-2 * change[..., 8:].max()


def test_nothing_is_said_without_masks(demo):
    assert told(demo, (8, 8), None, ("3", "3")) == []
