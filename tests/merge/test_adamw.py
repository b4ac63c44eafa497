"""The published optimiser, as published."""

import pytest
import torch
from loraclr.loraclr_core.merge import adamw
from loraclr.loraclr_core.merge.adamw import PUBLISHED, AdamWSettings
from loraclr.loraclr_core.merge.objective import Margin
from merge.problems import CPU, negative, positive, problem


def literal_loss(case, delta, margin):
    """L = 1/n Σ_i [ d_p,i² + max(0, m − d_n,i)² ] + λ_mse MSE + λ_Δ ‖Δ‖_F, term by term."""
    n = len(case.concepts)
    hinge = (margin - negative(case, delta)).clamp(min=0).square().sum()
    elements = sum(c.outputs.numel() for c in case.concepts)
    mse = positive(case, delta) / elements
    return (positive(case, delta) + hinge) / n + 0.1 * mse + 0.001 * delta.norm()


@pytest.mark.parametrize("margin", [0.5, 40.0])
def test_loss_is_the_published_one(margin):
    case = problem()
    delta = torch.randn(8, 12)
    inputs = torch.stack(case.features)
    targets = torch.stack([c.outputs for c in case.concepts])
    loss = adamw.loss(delta, inputs, targets, inputs @ case.weight.T, margin, PUBLISHED)
    torch.testing.assert_close(loss, literal_loss(case, delta, margin), rtol=1e-5, atol=0)


def test_published_settings():
    assert AdamWSettings(1e-4, 1e-4, 50, 0.1, 0.001) == PUBLISHED


def test_fifty_small_steps_go_downhill_and_no_further_than_they_can():
    case = problem()
    merged = adamw.solve(case.concepts, Margin(0.5), CPU).dense()
    assert positive(case, merged) < positive(case, torch.zeros_like(merged))
    assert merged.abs().max() <= 50 * 1e-4 * 1.05


def test_long_enough_it_reaches_the_least_squares_merge():
    """What separates it from the closed form is its number of steps, not another objective."""
    case = problem()
    merged = adamw.solve(case.concepts, Margin(0.5), CPU, AdamWSettings(learning_rate=1e-2, iterations=2000)).dense()
    features = torch.cat(case.features)
    targets = torch.cat([x @ c.delta.dense().T for x, c in zip(case.features, case.concepts, strict=True)])
    best = torch.linalg.lstsq(features, targets).solution.T
    assert positive(case, merged) < 1.01 * positive(case, best)


def test_the_best_iterate_is_kept():
    case = problem()
    wild = AdamWSettings(learning_rate=10.0, iterations=5)
    merged = adamw.solve(case.concepts, Margin(0.5), CPU, wild).dense()
    assert torch.equal(merged, torch.zeros_like(merged))
