"""The objects of a plain picture and whose they become, on claims small enough to draw."""

import pytest
import torch
from loraclr.loraclr_core.sampler import objects

WEIGHTS = {".": 0.0, "-": 0.4, "+": 0.6, "#": 1.0}


def claims(*concepts: tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([[[[WEIGHTS[cell] for cell in row] for row in rows] for rows in concepts]])


def drawn(masks: torch.Tensor) -> list[list[str]]:
    return [["".join("#" if cell else "." for cell in row) for row in mask.tolist()] for mask in masks[0]]


def test_each_concept_gets_the_object_its_words_look_at():
    """One cell larger than it is."""
    one = ("........", ".+...#..", ".+...#..", "........")
    other = ("........", ".#...-..", ".#...-..", "........")
    found = drawn(objects.masks(claims(one, other), 0.3))
    assert found[0] == ["....###.", "....###.", "....###.", "....###."]
    assert found[1] == ["###.....", "###.....", "###.....", "###....."]


def test_two_concepts_of_one_class_get_an_object_each():
    """Their words look alike: at both objects, and a little more at the same."""
    both = ("#......+", "#......+", "........", "........")
    found = objects.masks(claims(both, both), 0.3)
    assert sorted(drawn(found)) == sorted(
        [["##......", "##......", "##......", "........"], ["......##", "......##", "......##", "........"]]
    )


def test_a_further_object_is_left_to_the_base():
    """And no mask grows over it."""
    one = ("#..+....", "#..+....", "........")
    found = objects.masks(claims(one), 0.3, "dilate")
    assert drawn(found) == [["##......"] * 3]


def test_objects_that_touch_are_parted_by_a_higher_threshold():
    """Then grow again to all of what is above the first one."""
    row = "##-##..."
    found = objects.masks(claims((row, row), (row, row)), 0.3)
    whole = found[0].amax(dim=0)
    assert whole.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]] * 2
    assert found[0].amin(dim=(0, 1)).sum() == 0
    assert all(mask[:, :2].sum() == 4 or mask[:, 3:5].sum() == 4 for mask in found[0])


def test_a_concept_without_an_object_has_an_empty_mask():
    one = (".#......", ".#......", "........")
    found = objects.masks(claims(one, tuple(row.replace("#", "+") for row in one)), 0.3)
    assert sorted(mask.sum().item() for mask in found[0]) == [0, 9]
    nothing = objects.masks(torch.zeros(1, 2, 4, 4), 0.3)
    assert not nothing.any()


def test_specks_are_no_objects():
    """A 64th of the picture is the smallest."""
    one = torch.zeros(1, 1, 16, 16)
    one[..., 2, 2:5] = 1.0
    one[..., 8:10, 8:10] = 0.5
    (mask,) = objects.masks(one, 0.3)[0]
    assert mask[7:11, 7:11].all()
    assert mask.sum() == 16


@pytest.mark.parametrize("morphology", ["none", "dilate", "erode"])
def test_masks_do_not_overlap_another_s_object(morphology):
    both = ("##.##...", "##.##...", "........")
    found = objects.masks(claims(both, both), 0.3, morphology)
    assert found[0, :, :2, [0, 1, 3, 4]].sum(dim=0).max() <= 1


def test_pictures_of_a_batch_are_parted_one_by_one():
    one = claims(("#.......", "#.......", "........"), ("....#...", "....#...", "........"))
    batch = torch.cat([one, one.flip(-1)])
    found = objects.masks(batch, 0.3)
    assert torch.equal(found[1], found[0].flip(-1))
