"""The loss over the branches' maps, and the step against its gradient."""

import pytest
import torch
from loraclr.loraclr_core.sampler import contrast, separation
from loraclr.loraclr_core.sampler.separation import Branch

# Two concepts; the first has two tokens in its own branch.
BRANCHES = [Branch(None, [[1], [3]]), Branch(0, [[1, 2], [4]]), Branch(1, [[1], [3]])]


def maps() -> separation.Maps:
    generator = torch.Generator().manual_seed(0)
    return {number: torch.rand(2, 3, 4, 6, generator=generator) for number in range(3)}


def test_own_words_are_those_of_each_concept_in_its_own_branch():
    found = maps()
    cat, dog = separation.own_words(BRANCHES, found)
    assert torch.equal(cat, torch.stack([found[1][..., 1], found[1][..., 2]], dim=1))
    assert torch.equal(dog, found[2][..., 3][:, None])


def test_the_loss_is_nt_xent_over_every_concept_s_tokens_in_every_branch():
    found = maps()
    of_cat = [found[0][..., 1], found[1][..., 1], found[1][..., 2], found[2][..., 1]]
    of_dog = [found[0][..., 3], found[1][..., 4], found[2][..., 3]]
    joined = torch.stack([each.flatten(1) for each in of_cat + of_dog], dim=1)
    expected = contrast.nt_xent(joined, torch.tensor([0] * 4 + [1] * 3), 0.5)
    torch.testing.assert_close(separation.loss(BRANCHES, found, 0.5), expected)


def test_a_relative_step_has_the_asked_size_against_the_gradient():
    gradient = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = torch.full_like(gradient, 10.0)
    for size in (1e-6, 1.0, 1e6):
        move = separation.step(size * gradient, scale, 0.02, "relative")
        assert move.square().mean(dim=(1, 2, 3)).sqrt().tolist() == pytest.approx([0.2, 0.2])
        assert (move * gradient <= 0).all()


def test_an_absolute_step_is_alpha_in_the_model_s_units():
    """The model sees u = z / s: u − α ∇_u L is z − α s² ∇_z L."""
    gradient = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    move = separation.step(gradient, torch.full_like(gradient, 3.0), 20.0, "absolute (paper)")
    torch.testing.assert_close(move, -20.0 * 9.0 * gradient)


def test_no_gradient_is_no_step():
    nothing = torch.zeros(1, 4, 2, 2)
    assert torch.equal(separation.step(nothing, torch.ones_like(nothing), 0.02, "relative"), nothing)
