"""Scores tell what a rendered picture holds, whose truth is known."""

import dataclasses
import random

import pytest
import torch
from quality.comparisons import RIGHT
from shapes import scores
from shapes.world import BACKGROUNDS, CLASSES, CONCEPTS, Scene, Thing, make_scene

BALL, BOX, *_ = CONCEPTS
BALL2 = CONCEPTS[4]


def drawn(look, class_word: str, x: float, y: float, radius: float = 26.0) -> Thing:
    """A concept's look on a form."""
    return Thing(class_word, "", x, y, radius, look.pattern, look.first, look.second)


def picture(*things: Thing, background: str = "in fog"):
    return Scene(things, background, 0.0).picture()[None]


@pytest.mark.parametrize("seed", range(12))
def test_identity_of_true_concepts_is_high_and_of_others_low(seed):
    rng = random.Random(seed)
    kinds = rng.sample([*CONCEPTS, *CLASSES], 3)
    shown = make_scene(kinds, rng).picture()[None]
    for concept in CONCEPTS:
        found = float(scores.identity(shown, concept).score)
        assert found >= 0.9 if concept in kinds else found <= 0.4


def test_identity_tells_where():
    found = scores.identity(picture(drawn(BALL, "ball", 40, 80)), BALL)
    assert [float(value) for value in found[1:]] == pytest.approx([20, 40, 13], abs=1)


@pytest.mark.parametrize(
    "spoiled",
    [
        drawn(dataclasses.replace(BALL, second=BALL.first), "ball", 60, 60),
        drawn(dataclasses.replace(BALL, pattern="mast"), "ball", 60, 60),
        drawn(dataclasses.replace(BALL, first=BALL.second, second=BALL.first), "ball", 60, 60),
    ],
    ids=["one colour", "another pattern", "colours exchanged"],
)
def test_half_a_look_is_not_that_look(spoiled):
    assert float(scores.identity(picture(spoiled), BALL).score) < RIGHT


@pytest.mark.parametrize(
    ("onto", "second", "expected"),
    [
        (BOX, drawn(BOX, "box", 95, 64), False),
        (BOX, drawn(BALL, "box", 95, 64), True),
        (BALL2, drawn(BALL2, "ball", 95, 64), False),
        (BALL2, drawn(BALL, "ball", 95, 64), True),
    ],
    ids=["apart", "on another form", "apart within a class", "drawn twice within a class"],
)
def test_a_look_is_bleeding_where_it_is_on_another_thing(onto, second, expected):
    shown = picture(drawn(BALL, "ball", 35, 64), second)
    found = float(scores.bleeding(shown, BALL, onto, scores.identity(shown, BALL)))
    assert found >= 0.9 if expected else found <= 0.4


@pytest.mark.parametrize("seed", range(6))
def test_plain_things_are_found_by_form_and_hue(seed):
    rng = random.Random(seed)
    kinds = rng.sample(CLASSES, 2)
    shown = make_scene([*kinds], rng).picture()[None]
    for word in CLASSES:
        found = float(scores.match(shown, scores.class_template(word)).score)
        assert found >= 0.8 if word in kinds else found <= 0.4


@pytest.mark.parametrize("words", BACKGROUNDS)
def test_backgrounds_are_told_apart(words):
    shown = picture(drawn(BALL, "ball", 60, 60), background=words)
    found = {each: float(scores.background(shown, each)) for each in BACKGROUNDS}
    assert found.pop(words) > 0.9
    assert max(found.values()) < 0.1


def test_pictures_of_a_batch_are_scored_each_alone():
    shown = torch.cat([picture(drawn(BALL, "ball", 60, 60)), picture(drawn(BOX, "box", 60, 60))])
    found = scores.identity(shown, BALL).score
    assert float(found[0]) >= 0.9
    assert float(found[1]) <= 0.4
