"""Muon: steps of a set length, in all directions alike."""

import pytest
import torch
from loraclr.loraclr_core.merge.muon import Muon, orthogonalise


def with_singular_values(rows: int, columns: int, values: list[float]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, len(values), generator=generator))[0] for n in (rows, columns))
    return left * torch.tensor(values) @ right.T


@pytest.mark.parametrize(("rows", "columns"), [(12, 5), (5, 12), (5, 5)])
def test_all_singular_values_come_near_one_and_directions_stay(rows, columns):
    matrix = with_singular_values(rows, columns, [9.0, 3.0, 1.0, 0.5, 0.2])
    found = orthogonalise(matrix)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    middle = left.T @ found @ right.T
    assert torch.allclose(middle, middle.diagonal().diag(), atol=1e-4)
    # The published iteration is fast rather than exact: about 0.7 to 1.2.
    assert float(middle.diagonal().min()) > 0.6
    assert float(middle.diagonal().max()) < 1.3


def test_a_matrix_of_zeros_stays_so():
    assert torch.equal(orthogonalise(torch.zeros(4, 3)), torch.zeros(4, 3))


def test_a_step_is_a_share_of_the_factor_whatever_the_gradient_s_size():
    for scale in (1e-6, 1.0, 1e6):
        factor = torch.full((40, 10), 3.0)
        optimizer = Muon([factor])
        factor.grad = scale * torch.randn(40, 10, generator=torch.Generator().manual_seed(1))
        optimizer.step(0.1)
        moved = (factor - 3.0).square().mean().sqrt() / 3.0
        assert 0.08 < float(moved) < 0.12, scale
        assert factor.grad is None


def test_it_finds_a_low_rank_matrix_some_of_whose_directions_are_a_hundred_times_as_weak():
    goal = with_singular_values(24, 16, [10.0, 3.0, 1.0, 0.3, 0.1])
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode(False), torch.enable_grad():
        factors = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((24, 5), (5, 16))]
        optimizer = Muon(factors)
        for step in range(300):
            (factors[0] @ factors[1] - goal.clone()).square().sum().backward()
            optimizer.step(0.1 * (1 - step / 300))
        left = (factors[0] @ factors[1] - goal).detach()
    assert float(left.norm()) < 0.1
