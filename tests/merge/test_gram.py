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
