"""The factors before training, and their average."""

import pytest
import torch
from loraclr.loraclr_core.train.factors import follow, initial


def test_a_layer_starts_as_it_is_with_a_random_down_matrix_of_its_own():
    one, other = (initial(key, torch.Size((6, 8)), 4, 0) for key in ("a", "b"))
    assert one.up.shape == (6, 4)
    assert one.down.shape == (4, 8)
    assert not one.dense().any()
    assert not torch.equal(one.down, other.down)
    assert torch.equal(one.down, initial("a", torch.Size((6, 8)), 4, 0).down)
    assert not torch.equal(one.down, initial("a", torch.Size((6, 8)), 4, 1).down)
    assert float(one.down.abs().max()) <= 8**-0.5


def test_the_rank_is_no_larger_than_the_layer():
    assert initial("a", torch.Size((3, 8, 1, 1)), 16, 0).rank == 3


def test_the_average_follows_at_once_at_first_and_slowly_later():
    average, factor = [torch.zeros(1)], [torch.ones(1)]
    follow(average, factor, 0, 0.99)
    assert float(average[0]) == pytest.approx(0.9)
    follow(average, [torch.zeros(1)], 10_000, 0.99)
    assert float(average[0]) == pytest.approx(0.9 * 0.99)
