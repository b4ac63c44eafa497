"""Second moments are those of the rows, however they came and however they are kept."""

import pytest
import torch
from loraclr.loraclr_core.merge.gram import Gram
from symmetric import full

CPU = torch.device("cpu")


def gram_of(rows: torch.Tensor, portion: int = 7) -> Gram:
    gram = Gram(rows.shape[1], CPU)
    for part in rows.split(portion):
        gram.add(part)
    return gram


# One panel and several; half of the width and more.
@pytest.mark.parametrize(("width", "count"), [(6, 2), (30, 15), (30, 16), (700, 300), (700, 360), (700, 600)])
def test_moments_are_those_of_all_rows(width, count):
    rows = torch.randn(count, width)
    gram = gram_of(rows)
    torch.testing.assert_close(full(gram.lower()), rows.T @ rows, rtol=1e-4, atol=1e-3)


def test_few_rows_are_kept_as_they_are():
    rows = torch.randn(10, 30)
    found = gram_of(rows).few_rows()
    assert found is not None
    assert torch.equal(found, rows)
    assert gram_of(torch.randn(16, 30)).few_rows() is None


@pytest.mark.parametrize(("count", "other"), [(4, 5), (4, 50), (50, 4), (50, 50), (9, 12), (0, 4)])
def test_a_weighted_sum_leaves_both_terms_as_they_were(count, other):
    first, second = torch.randn(count, 30), torch.randn(other, 30)
    terms = gram_of(first), gram_of(second)
    total = terms[0].plus(terms[1], 0.25)
    torch.testing.assert_close(full(total.lower()), first.T @ first + 0.25 * second.T @ second, rtol=1e-4, atol=1e-4)
    for gram, rows in zip(terms, (first, second), strict=True):
        torch.testing.assert_close(full(gram.lower()), rows.T @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("count", "other"), [(4, 5), (4, 50), (50, 50)])
def test_a_diagonal_beside_the_rows_survives_sums_products_and_panels(count, other):
    terms = gram_of(torch.randn(count, 30)), gram_of(torch.randn(other, 30))
    diagonals = torch.rand(30), torch.rand(30)
    for gram, diagonal in zip(terms, diagonals, strict=True):
        gram.diagonal = diagonal
    total = terms[0].plus(terms[1], 0.25)
    expected = full(terms[0].lower()) + 0.25 * full(terms[1].lower())
    torch.testing.assert_close(full(total.lower()), expected, rtol=1e-4, atol=1e-4)
    assert total.mean_diagonal() == pytest.approx(float(expected.trace()) / 30, rel=1e-4)
    rows = torch.randn(3, 30)
    torch.testing.assert_close(total.times(rows), rows @ expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("width", "rank"), [(6, 20), (30, 5), (700, 60)])
def test_principal_rows_leave_no_more_than_the_weakest_directions(width, rank):
    rows = torch.randn(2 * width, width) / torch.arange(1, width + 1) ** 0.7
    matrix = rows.T @ rows
    principal = gram_of(rows).principal_rows(rank)
    weakest = torch.linalg.eigvalsh(matrix)[: max(0, width - rank)]
    assert len(principal) == min(rank, width)
    assert (matrix - principal.T @ principal).trace() < 1.05 * weakest.sum() + 1e-4 * matrix.trace()
    sizes = principal.square().sum(dim=1)
    assert (sizes[:-1] >= sizes[1:]).all()


def test_principal_rows_are_no_more_than_there_are_directions():
    rows = torch.randn(4, 30)
    assert len(gram_of(rows).principal_rows(20)) == 4
