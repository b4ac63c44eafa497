"""The distances are those of the paper, from samples alone."""

import pytest
import torch
from loraclr.loraclr_core import lowrank
from loraclr.loraclr_core.lowrank import LowRank
from loraclr.loraclr_core.merge.objective import Margin, held_out_error, negative_distances
from merge.problems import negative, positive, problem


def test_held_out_error_is_the_positive_distance_per_token():
    case = problem()
    delta = LowRank(torch.randn(8, 3), torch.randn(3, 12))
    found = sum(held_out_error(concept, delta) * len(concept.held_out) for concept in case.concepts)
    assert found == pytest.approx(float(positive(case, delta.dense())), rel=1e-4)


def test_negative_distances_need_no_base_weight():
    case = problem()
    delta = LowRank(torch.randn(8, 3), torch.randn(3, 12))
    torch.testing.assert_close(negative_distances(case.concepts, delta), negative(case, delta.dense()))


def test_distances_from_samples_are_scaled_to_all_tokens():
    case = problem(tokens=2000)
    delta = lowrank.zero(8, 12)
    expected = negative(case, delta.dense())
    for concept in case.concepts:
        concept.inputs, concept.outputs = concept.inputs[:500], concept.outputs[:500]
    torch.testing.assert_close(negative_distances(case.concepts, delta), expected, rtol=0.1, atol=0)


def test_a_lone_concept_has_nobody_to_keep_away_from():
    assert negative_distances(problem(concepts=1).concepts, lowrank.zero(8, 12)).isinf().all()


def test_relative_margin_is_a_fraction_of_the_mean_distance_between_concepts():
    case = problem()
    a, b, c = (concept.outputs for concept in case.concepts)
    mean = ((a - b).norm() + (a - c).norm() + (b - c).norm()) / 3
    assert Margin(0.5, "relative").resolve(case.concepts) == pytest.approx(float(mean) / 2)
    assert Margin(0.5).resolve(case.concepts) == 0.5
