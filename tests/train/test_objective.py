"""The terms of the loss on hand-made values."""

import pytest
import torch
from loraclr.loraclr_core.train.objective import concept_loss, outside_loss, preservation_loss, weight

PREDICTION = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
SUBJECT = torch.tensor([[1.0, 0.0], [0.0, 0.0]])


def test_the_weightings():
    assert [weight("picture (stock node)", ratio) for ratio in (0.01, 1.0, 100.0)] == [1.0, 1.0, 1.0]
    assert [weight("noise (paper)", ratio) for ratio in (0.01, 1.0, 100.0)] == [0.01, 1.0, 100.0]
    assert [weight("Min-SNR 5", ratio) for ratio in (0.01, 1.0, 100.0)] == [0.1, 1.0, 5.0]


def test_the_terms_are_means_over_all_values():
    zero = torch.zeros_like(PREDICTION)
    assert float(concept_loss(PREDICTION, zero)) == pytest.approx((1 + 4 + 9 + 16) / 4)
    assert float(concept_loss(PREDICTION, zero, SUBJECT)) == pytest.approx(1 / 4)
    assert float(outside_loss(PREDICTION, zero, SUBJECT)) == pytest.approx((4 + 9 + 16) / 4)
    assert float(preservation_loss(PREDICTION, PREDICTION)) == 0.0


def test_half_precision_is_compared_in_single():
    large = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)
    assert float(preservation_loss(large, torch.zeros_like(large))) == pytest.approx(90_000.0)
