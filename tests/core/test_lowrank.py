"""Factors stand for their matrix, whatever is done to them."""

import pytest
import torch
from loraclr.loraclr_core import lowrank
from loraclr.loraclr_core.lowrank import LowRank


def factors(out_width: int, in_width: int, rank: int) -> LowRank:
    return LowRank(torch.randn(out_width, rank), torch.randn(rank, in_width))


def test_sum_and_norm_are_those_of_the_matrices():
    a, b = factors(6, 5, 2), factors(6, 5, 3)
    total = lowrank.add([a, b])
    torch.testing.assert_close(total.dense(), a.dense() + b.dense())
    torch.testing.assert_close(total.norm(), total.dense().norm())


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_squeeze_bounds_the_rank_and_keeps_the_matrix(shape):
    term = factors(*shape, 10)
    squeezed = lowrank.squeeze(term)
    assert squeezed.rank == 4
    torch.testing.assert_close(squeezed.dense(), term.dense())


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_a_dense_matrix_is_kept_exactly(shape):
    matrix = torch.randn(shape)
    assert lowrank.from_dense(matrix).rank == 4
    assert torch.equal(lowrank.from_dense(matrix).dense(), matrix)


@pytest.mark.parametrize(("shape", "rank", "kept"), [((60, 90), 3, 3), ((300, 200), 50, 50), ((40, 60), 38, 40)])
def test_compressed_finds_the_rank_of_a_dense_matrix(shape, rank, kept):
    """A matrix of high rank is not decomposed, only kept with the narrower side as its rank."""
    matrix = factors(*shape, rank).dense()
    found = lowrank.compressed(matrix, 3e-6)
    assert found.rank == kept
    assert (found.dense() - matrix).norm() < 1e-5 * matrix.norm()


def test_truncate_to_a_rank_is_the_nearest_matrix_and_tells_its_distance():
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    nearest, error = lowrank.truncate(lowrank.from_dense(matrix), rank=2)
    torch.testing.assert_close(nearest.dense(), torch.diag(torch.tensor([3.0, 2.0, 0.0])), atol=1e-6, rtol=0)
    assert error == pytest.approx(1 / 14**0.5)


def test_truncate_of_nothing_is_nothing():
    nothing, error = lowrank.truncate(LowRank(torch.zeros(4, 2), torch.randn(2, 3)))
    assert (nothing.rank, error) == (0, 0.0)
