"""Concept Area: where the sampler draws what is masked with it, on pictures of usual sizes."""

import nodes
import pytest
import torch
from comfy_extras.nodes_mask import InvertMask
from loraclr.loraclr_core.sampler import masks
from pack import run


def area(name: str, **box: float) -> torch.Tensor:
    return run("LoRACLR_ConceptArea", area=name, **box)[0]


def on_latent(mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the mask as the sampler uses it, (height, width)."""
    return masks.resize(masks.given(mask, "cat")[:, None], (height, width), "area")[0, 0]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 64), (104, 152), (128, 128), (8, 12)])
@pytest.mark.parametrize(("first", "second", "axis"), [("left half", "right half", 1), ("top half", "bottom half", 0)])
def test_halves_end_in_the_middle_of_any_latent(first, second, axis, height, width):
    expected = torch.zeros(height, width)
    expected.narrow(axis, 0, expected.shape[axis] // 2).fill_(1)
    assert torch.equal(on_latent(area(first), height, width), expected)
    assert torch.equal(on_latent(area(second), height, width), 1 - expected)


@pytest.mark.parametrize("width", [96, 144, 12])
def test_thirds_are_exact_where_the_latent_divides_by_three(width):
    thirds = [on_latent(area(f"{side} third"), 64, width)[0] for side in ("left", "middle", "right")]
    assert torch.stack(thirds).argmax(dim=0).tolist() == [3 * column // width for column in range(width)]
    assert {value for third in thirds for value in third.tolist()} == {0.0, 1.0}


def test_thirds_share_the_cells_between_them_where_it_does_not():
    thirds = torch.stack([on_latent(area(f"{side} third"), 64, 64)[0] for side in ("left", "middle", "right")])
    torch.testing.assert_close(thirds.sum(dim=0), torch.ones(64))
    assert ((thirds > 0) & (thirds < 1)).sum(dim=1).tolist() == [1, 2, 1]


def test_a_box_lies_where_its_shares_say_and_ends_with_the_picture():
    mask = on_latent(area("box", left=0.75, top=0.25, width=0.5, height=0.5), 64, 96)
    expected = torch.zeros(64, 96)
    expected[16:48, 72:] = 1
    assert torch.equal(mask, expected)


@pytest.mark.parametrize("empty", [{"width": 0.0}, {"height": 0.0}, {"left": 1.0}, {"top": 1.0}])
def test_an_empty_box_is_refused_with_what_to_change(empty):
    with pytest.raises(
        ValueError, match=r"box of Concept Area is empty: .* Set width and height above 0, and left and top"
    ):
        area("box", **empty)


def test_stock_mask_nodes_take_an_area():
    (inverted,) = InvertMask.execute(area("left half")).args
    assert torch.equal(inverted, area("right half"))
    (latent,) = nodes.SetLatentNoiseMask().set_mask({"samples": torch.zeros(1, 4, 8, 8)}, inverted)
    assert latent["noise_mask"].shape[-2:] == inverted.shape[-2:]
