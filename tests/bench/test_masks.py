"""The scenes on which masks are scored stand as their names say, and the score tells a thing's place from another."""

import random

import pytest
import torch
from quality import masks
from quality.masks import KINDS, Kind, make_pair, overlap, visible


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_two_things_stand_apart_touch_or_overlap(kind: Kind):
    rng = random.Random(0)
    for _ in range(8):
        things = make_pair(kind, rng).things
        (ax, ay), (bx, by) = ((thing.x, thing.y) for thing in things)
        apart = ((ax - bx) ** 2 + (ay - by) ** 2) ** 0.5 / sum(thing.radius for thing in things)
        assert apart == pytest.approx(kind.distance) if kind.distance else apart > 1
        assert (things[0].class_word == things[1].class_word) == kind.one_class


def test_the_thing_in_front_hides_the_other():
    kind = Kind("overlapping", 0.5, one_class=True)
    scene = make_pair(kind, random.Random(0))
    behind, front = visible(scene)
    assert not (behind & front).any()
    assert front.sum() > behind.sum() > 0


def test_the_score_is_one_for_the_truth_and_either_thing_of_one_class_may_be_whose_it_likes():
    claims = torch.zeros(1, 2, 16, 16)
    claims[0, 0, 2:6, 2:6] = 1.0
    claims[0, 1, 9:13, 9:13] = 1.0
    truth = masks.objects.masks(claims, 0.3) > 0.5
    assert overlap(truth, truth).tolist() == [[1, 1]]
    assert masks.score(claims, truth, 0.3, one_class=False) == 1
    assert masks.score(claims, truth.flip(1), 0.3, one_class=False) == 0
    assert masks.score(claims, truth.flip(1), 0.3, one_class=True) == 1
