"""Which branch draws where, on pictures small enough to draw."""

import torch
from loraclr.loraclr_core.sampler.areas import Areas, AreaSettings

WEIGHTS = {".": 0.0, "-": 0.4, "+": 0.6, "#": 1.0}
NONE_GIVEN = torch.tensor([[False, False]])
SETTINGS = AreaSettings(threshold=0.5, morphology="none")


def drawing(*concepts: tuple[str, ...]) -> torch.Tensor:
    """(1, concepts, height, width)"""
    return torch.tensor([[[[WEIGHTS[cell] for cell in row] for row in rows] for rows in concepts]])


def drawn(areas: torch.Tensor) -> list[list[str]]:
    return [["".join("#" if cell else "." for cell in row) for row in area.tolist()] for area in areas[0]]


def nothing(concepts: int = 2) -> torch.Tensor:
    return torch.zeros(1, concepts, 2, 8)


def test_a_given_mask_is_the_area_whatever_attention_says():
    left = drawing(("####....", "####...."), ("........", "........"))
    areas = Areas(left, torch.tensor([[True, False]]), None, SETTINGS)
    areas.update(drawing(("......##", "......##"), ("#.....##", "#.....##")), 0)
    assert drawn(areas.concepts) == [["####....", "####...."], ["......##", "......##"]]


def test_an_object_of_the_plain_picture_is_the_area_from_the_first_step_to_the_last():
    claims = drawing(("##......", "##......"), (".....##.", ".....##."))
    areas = Areas(nothing(), NONE_GIVEN, claims, SETTINGS)
    first = drawn(areas.concepts)
    assert first == [["###.....", "###....."], ["....####", "....####"]]  # a cell larger than the object
    areas.update(claims.flip(1), 3)
    assert drawn(areas.concepts) == first


def test_objects_are_sought_outside_of_given_masks():
    given = drawing(("####....", "####...."), ("........", "........"))
    claims = drawing(("........", "........"), ("##....#.", "##....#."))
    areas = Areas(given, torch.tensor([[True, False]]), claims, SETTINGS)
    assert drawn(areas.concepts) == [["####....", "####...."], [".....###", ".....###"]]


def test_without_an_object_a_concept_follows_its_own_words_outside_of_the_others():
    claims = drawing(("##......", "##......"), ("........", "........"))
    areas = Areas(nothing(), NONE_GIVEN, claims, SETTINGS)
    areas.update(drawing(("........", "........"), ("##....#.", "##....#.")), 0)
    assert drawn(areas.concepts) == [["###.....", "###....."], ["......#.", "......#."]]


def test_a_contested_place_goes_by_the_claims_of_every_step_so_far():
    """Attention of a single step is noisy; a place does not change hands for it."""
    cat, dog = ("########", "########"), ("++++++++", "++++++++")
    areas = Areas(nothing(), NONE_GIVEN, None, SETTINGS)
    for _ in range(2):
        areas.update(drawing(cat, dog), 0)
    areas.update(drawing(dog, cat), 1)
    assert drawn(areas.concepts) == [["########", "########"], ["........", "........"]]


def test_averaging_leaves_a_contested_place_to_all():
    whole = ("########", "########")
    areas = Areas(nothing(), NONE_GIVEN, None, AreaSettings(threshold=0.5, overlap="average (paper)"))
    areas.update(drawing(whole, whole), 0)
    assert areas.concepts.all()


def test_every_branch_counts_everywhere_before_the_first_masked_step():
    settings = AreaSettings(threshold=0.5, morphology="none", first_masked_step=2)
    claims = drawing(("##......", "##......"), (".....##.", ".....##."))
    areas = Areas(nothing(), NONE_GIVEN, claims, settings)
    assert areas.branches.all()
    areas.update(claims, 2)
    assert drawn(areas.branches)[0] == ["...#....", "...#...."]
