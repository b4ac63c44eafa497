"""The separation loss is NT-Xent over min-max scaled maps."""

import math

import pytest
import torch
from loraclr.loraclr_core.sampler import contrast

LABELS = torch.tensor([0, 0, 1, 0, 1, 2, 2])


def literal(maps: torch.Tensor, labels: list[int], temperature: float) -> float:
    """The formula, pair by pair."""
    vectors = []
    for m in maps.tolist():
        low, high = min(m), max(m)
        v = [(value - low) / (high - low) for value in m]
        length = math.sqrt(sum(value * value for value in v))
        vectors.append([value / length for value in v])

    def e(a, b):
        return math.exp(sum(p * q for p, q in zip(vectors[a], vectors[b], strict=True)) / temperature)

    losses = []
    for a in range(len(labels)):
        for p in range(len(labels)):
            if a != p and labels[a] == labels[p]:
                others = sum(e(a, n) for n in range(len(labels)) if labels[n] != labels[a])
                losses.append(-math.log(e(a, p) / (e(a, p) + others)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_it_is_the_formula_for_every_sample(temperature):
    maps = torch.rand(3, len(LABELS), 20, dtype=torch.float64)
    found = contrast.nt_xent(maps, LABELS, temperature)
    expected = [literal(sample, LABELS.tolist(), temperature) for sample in maps]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


def test_its_gradient_is_that_of_finite_differences():
    with torch.inference_mode(False), torch.enable_grad():
        maps = torch.rand(1, len(LABELS), 6, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda m: contrast.nt_xent(m, LABELS, 0.5), (maps,))


def test_one_concept_alone_has_nothing_to_tell_apart():
    """A loss of NaN here would put NaN into the latent."""
    with torch.inference_mode(False), torch.enable_grad():
        maps = torch.rand(2, 3, 9, requires_grad=True)
        loss = contrast.nt_xent(maps, torch.tensor([0, 0, 0]), 0.5)
        (gradient,) = torch.autograd.grad(loss.sum(), maps)
    assert loss.tolist() == [0, 0]
    assert (gradient == 0).all()


def test_a_flat_map_stays_finite():
    maps = torch.rand(1, 4, 9)
    maps[0, 1] = 0.3
    assert contrast.nt_xent(maps, torch.tensor([0, 0, 1, 1]), 0.5).isfinite().all()


def test_separate_concepts_score_lower_than_mixed_ones():
    left, right = torch.zeros(2, 4, 4)
    left[:, :2], right[:, 2:] = 1, 1
    apart = torch.stack([left, left, right, right]).flatten(1)[None]
    mixed = torch.stack([left, right, left, right]).flatten(1)[None]
    labels = torch.tensor([0, 0, 1, 1])
    assert contrast.nt_xent(apart, labels, 0.5) < contrast.nt_xent(mixed, labels, 0.5)
