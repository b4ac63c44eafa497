"""Scores on vectors made by hand."""

import math

import pytest
import torch
from loraclr.loraclr_core.train import scores
from loraclr.loraclr_core.train.scores import Score, Vectors, score
from scipy import stats
from torch import Tensor


def at(*degrees: float) -> Tensor:
    """Return unit vectors of the plane at these angles."""
    angles = torch.tensor(degrees).double().deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def kps(*cosines: float) -> float:
    return scores.knowledge_preservation(torch.tensor(cosines).double()).value


@pytest.mark.parametrize(("cosine", "expected"), [(1.0, 0.0), (0.0, 0.5), (-1.0, 1.0)])
def test_kps_of_equal_unrelated_and_opposite_pictures(cosine, expected):
    assert kps(cosine, cosine) == pytest.approx(expected)


def test_kps_is_one_minus_the_harmonic_mean():
    assert kps(1.0, 0.0) == pytest.approx(1 - 2 / (1 / 1.0 + 1 / 0.5))


def test_kps_gives_back_the_similarities_of_the_papers_figures():
    """0.1231 (CAT) and 0.0808 (LoRA) are pairs that are 0.877 and 0.919 alike."""
    assert kps(2 * 0.8769 - 1) == pytest.approx(0.1231)
    assert kps(2 * 0.9192 - 1) == pytest.approx(0.0808)


def test_a_lora_that_changes_nothing():
    pictures = at(0, 20, 70)
    result = score(Vectors(pictures, pictures, pictures, pictures))
    assert result.kps == pytest.approx((0.0, 0.0), abs=1e-12)
    assert result.kept == pytest.approx((1.0, 0.0), abs=1e-12)
    assert result.identity == result.identity_without
    assert result.diversity == result.base_diversity


def test_every_score_of_a_lora_by_hand():
    result = score(Vectors(at(90, 60), at(0, 0), base=at(60, 0), references=at(90, 30, 60)))
    assert result.pairs == pytest.approx([0.0, 0.5])
    assert result.base_pairs == pytest.approx([0.5, 1.0])
    assert result.kept.value == pytest.approx(0.75)
    root = math.sqrt(3) / 2
    assert result.identity.value == pytest.approx(((1 + 0.5 + root) + (root + root + 1)) / 6)
    assert result.identity_without.value == pytest.approx((0 + root + 0.5) / 3)
    assert result.diversity.value == pytest.approx(0.0)
    assert result.base_diversity.value == pytest.approx(0.5)


def test_lengths_of_vectors_count_for_nothing():
    generator = torch.Generator().manual_seed(0)
    vectors = [torch.randn(5, 8, generator=generator) for _ in range(4)]
    longer = [vector * torch.rand(5, 1, generator=generator).add(0.5) for vector in vectors]
    for first, second in zip(score(Vectors(*vectors)), score(Vectors(*longer)), strict=True):
        assert first == pytest.approx(second, abs=1e-6)


def test_what_pictures_do_not_allow_is_none():
    result = score(Vectors(at(30), at(0)))
    assert result.kps.margin is None
    assert (
        result.kept is result.identity is result.identity_without is result.diversity is result.base_diversity is None
    )
    assert score(Vectors(at(30, 0), at(0, 90))).diversity == Score(pytest.approx(1.0), None)


def test_the_interval_of_a_mean_is_students():
    base = at(10, 35, 80, 5, 50)
    kept = score(Vectors(base, at(0, 0, 0, 0, 0), base)).kept
    low, high = stats.t.interval(0.95, 4, kept.value, stats.sem(base[:, 0].numpy()))
    assert (kept.value - kept.margin, kept.value + kept.margin) == pytest.approx((low, high))


@pytest.mark.parametrize("name", ["kps", "diversity"])
def test_the_interval_holds_the_truth_nearly_as_often_as_it_says(name):
    """In a world of pictures about 0.8 alike. KPS of a dozen pictures is skewed: its interval holds somewhat less often."""
    generator = torch.Generator().manual_seed(1)

    def draw() -> Score:
        with_trigger, without_trigger = (2 + torch.randn(12, 6, generator=generator) for _ in range(2))
        return getattr(score(Vectors(with_trigger, without_trigger)), name)

    truth = sum(draw().value for _ in range(600)) / 600
    runs = [draw() for _ in range(300)]
    held = sum(abs(run.value - truth) <= run.margin for run in runs) / len(runs)
    assert 0.87 <= held <= 0.98
