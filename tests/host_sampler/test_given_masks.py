"""What is said about masks of the whole picture, where only a part of it may be sampled."""

import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from host_sampler.sampling import CLORA, clora, concept, maps, plain, sample
from host_sampler.sampling import compose as compose_node
from loraclr.loraclr_core.host.sampler.compose import compose
from loraclr.loraclr_core.host.sampler.evaluation import KEY
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


def third(side: str) -> torch.Tensor:
    return run("LoRACLR_ConceptArea", area=f"{side} third")[0]


def drawn(demo, concepts, latent, areas=None):
    """The areas of a picture, and how far it is from the one without concepts in each place."""
    model, positive, negative = compose_node(demo, concepts, update_strength=0.0, areas=areas)
    picture = sample(model, positive, negative, latent, steps=3)
    change = (picture["samples"] - plain(demo, latent, steps=3)["samples"]).abs().amax(dim=1)
    return model.get_attachment(KEY).records.of(picture["samples"]).masks, change


def test_moving_a_mask_moves_the_concept(demo, concepts, latent):
    """One mask for each concept, in the order of the chain."""
    left, middle, right = (third(side) for side in ("left", "middle", "right"))
    columns = {"left": slice(0, 4), "middle": slice(4, 8), "right": slice(8, 12)}
    for areas, free in ((torch.cat([left, right]), "middle"), (torch.cat([left, middle]), "right")):
        masks, change = drawn(demo, concepts, latent, areas)
        expected = torch.nn.functional.interpolate(areas[None], size=(8, 12), mode="area")
        torch.testing.assert_close(masks, expected)
        strengths = {side: float(change[..., where].max()) for side, where in columns.items()}
        assert strengths.pop(free) < 1e-2 * min(strengths.values())


def test_soft_edges_are_kept_and_any_size_or_inverse_fits(demo, concepts, latent):
    ramp = torch.linspace(0, 1, 48).expand(32, 48)
    masks, _ = drawn(demo, concepts, latent, torch.stack([ramp, torch.zeros(32, 48)]).clamp(max=0.5) * 2)
    assert masks[0, 0, 0, 1:5].tolist() == sorted(masks[0, 0, 0, 1:5].tolist())
    assert 0 < masks[0, 0, 0, 2] < 1
    inverse, _ = drawn(demo, concepts, latent, 1 - torch.cat([third("left"), third("right")]))
    assert inverse[0, 0, 0].tolist() == [0.0] * 4 + [1.0] * 8
    assert inverse[0, 1, 0].tolist() == [1.0] * 8 + [0.0] * 4


def test_a_batch_may_hold_a_set_of_masks_for_each_picture(demo, concepts):
    """Sets as Attention Maps of CLoRA gives them, one picture after another."""
    left, middle, right = (third(side) for side in ("left", "middle", "right"))
    two = {"samples": torch.zeros(2, 4, 8, 12)}
    masks, _ = drawn(demo, concepts, two, torch.cat([left, right, middle, left]))
    assert masks[:, :, 0, ::4].tolist() == [[[1.0, 0, 0], [0, 0, 1.0]], [[0, 1.0, 0], [1.0, 0, 0]]]


def test_a_batch_goes_before_the_concepts_own_masks_where_it_is_not_empty(demo, latent):
    left, middle, right = (third(side) for side in ("left", "middle", "right"))
    chain = concept("dog", concept("cat", mask=left), mask=right)
    masks, _ = drawn(demo, chain, latent, torch.cat([middle, torch.zeros_like(right)]))
    assert masks[0, :, 0, ::4].tolist() == [[0, 1.0, 0], [0, 0, 1.0]]


def test_a_batch_of_another_number_says_what_to_connect(demo, concepts):
    with pytest.raises(
        ValueError, match=r"“areas” holds 3 masks for 2 concepts \(“cat”, “dog”\): connect one mask for each"
    ):
        compose_node(demo, concepts, areas=torch.ones(3, 8, 12))
    with pytest.raises(ValueError, match="values from 0 to 255"):
        compose_node(demo, concepts, areas=torch.tensor([0.0, 255]).expand(2, 8, 2))


def test_nothing_is_said_without_masks(demo):
    assert told(demo, (8, 8), None, ("3", "3")) == []
