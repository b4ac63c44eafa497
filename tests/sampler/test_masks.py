"""Masks and fusion, on pictures small enough to draw."""

import pytest
import torch
from loraclr.loraclr_core.sampler import masks


def drawn(*rows: str) -> torch.Tensor:
    return torch.tensor([[float(cell == "#") for cell in row] for row in rows])


def test_a_concept_takes_what_any_of_its_tokens_takes():
    """Each token is measured by its own strongest place: a weak token counts as much as a strong one."""
    maps = torch.zeros(1, 2, 2, 4)
    maps[0, 0, 0] = torch.tensor([1.0, 0.35, 0.29, 0.0])
    maps[0, 1, 1] = torch.tensor([0.0, 0.0, 0.02, 0.01])
    assert masks.concept_mask(masks.claim(maps), 0.3)[0].tolist() == drawn("##..", "..##").tolist()


@pytest.mark.parametrize(
    ("morphology", "expected"),
    [
        ("none", drawn("#....", ".###.", ".#.#.", ".###.", ".....")),
        ("dilate", drawn("#####", "#####", "#####", "#####", "#####")),
        ("erode", drawn(".....", ".....", ".....", ".....", ".....")),
        ("open", drawn(".....", ".....", ".....", ".....", ".....")),
    ],
)
def test_morphology(morphology, expected):
    maps = drawn("#....", ".###.", ".#.#.", ".###.", ".....")[None]
    assert masks.concept_mask(maps, 0.5, morphology)[0].tolist() == expected.tolist()


def test_close_fills_a_hole_and_keeps_the_rest():
    maps = drawn(".......", ".......", "..###..", "..#.#..", "..###..", ".......", ".......")[None]
    expected = drawn(".......", ".......", "..###..", "..###..", "..###..", ".......", ".......")
    assert masks.concept_mask(maps, 0.5, "close")[0].tolist() == expected.tolist()


def test_a_contested_place_goes_to_the_strongest_claim():
    """And to both where they are equal, as two masks of a user's are."""
    concepts = torch.stack([drawn("###."), drawn(".##.")])[None]
    claims = torch.tensor([[[[1.0, 0.9, 0.5, 0.2]], [[0.1, 0.4, 0.5, 0.3]]]])
    found = masks.strongest(concepts, claims)[0]
    assert found.tolist() == torch.stack([drawn("###."), drawn("..#.")]).tolist()


def test_claims_are_smoothed_over_the_neighbours_there_are():
    claim = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.9]]])
    assert [row == pytest.approx([0, 0, 0.15, 0.225]) for row in masks.smooth(claim)[0].tolist()] == [True, True]
    assert masks.smooth(torch.ones(1, 3, 3))[0].tolist() == torch.ones(3, 3).tolist()


def test_the_base_takes_what_nobody_claims():
    concepts = torch.stack([drawn("#..", "##."), drawn(".#.", "##.")])[None]
    assert masks.branch_masks(concepts)[0, 0].tolist() == drawn("..#", "..#").tolist()


def test_fusion_is_the_mean_weighted_by_masks():
    predictions = torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1, 1).expand(3, 1, 4, 1, 3)
    weights = masks.branch_masks(torch.tensor([[[[1.0, 0.0, 1.0]], [[0.0, 0.0, 1.0]]]]))
    assert masks.fuse(predictions, weights)[0, 0, 0].tolist() == [10.0, 1.0, 55.0]


def test_a_users_soft_mask_is_kept_soft():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4], mask[..., 4:] = 0.25, 0.75
    assert masks.resize(mask, (2, 4), "area")[0, 0].tolist() == [[0.25, 0.25, 0.75, 0.75]] * 2
