"""The scores say of rendered pictures what is in them, where the judge is right about every place."""

import random

import pytest
import torch
from characters import scores
from characters.judge import CELL, HEADS, truth
from characters.sprites import STYLES
from characters.world import APART, CONCEPTS, HUGGING, OVERLAPPING, SIDE, Character, Scene, make_scene

CAT, DOG, FOX, ROBOT, CAT2, *_ = CONCEPTS
SEEDS = range(20)
KINDS = "cat", "bear", "frog", "pig"


def figures(scene: Scene) -> list[scores.Figure]:
    """The figures of a picture whose every place is judged right; what is not asked of a place counts as nothing."""
    shares = {}
    for head, label in truth(scene).items():
        choices = torch.nn.functional.one_hot(label.clamp(min=0), HEADS[head])
        shares[head] = choices.movedim(-1, 0).float()
    return list(scores.figures_in(shares))


def scenes(*kinds, **asked) -> list[Scene]:
    return [make_scene(kinds, random.Random(seed), **asked) for seed in SEEDS]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_characters_that_stand_apart_are_a_figure_each(count):
    for scene in scenes(*KINDS[:count], distance=APART):
        assert sorted(figure.class_word for figure in figures(scene)) == sorted(KINDS[:count])


def test_a_concept_that_is_there_is_found_and_another_is_not():
    for scene in scenes(CAT, "dog", distance=APART):
        found = figures(scene)
        assert scores.identity(found, CAT) == 1
        assert scores.identity(found, DOG) == 0
        assert scores.bleeding(found, CONCEPTS) == 0


@pytest.mark.parametrize("distance", [HUGGING, OVERLAPPING])
def test_two_of_one_class_are_told_apart_where_they_touch(distance):
    for scene in scenes(CAT, CAT2, distance=distance):
        found = figures(scene)
        assert scores.identity(found, CAT) == scores.identity(found, CAT2) == 1


def test_an_outfit_on_another_class_is_bleeding_and_no_concept():
    dressed_up = Character("", "", "dog", CAT.worn)
    for scene in scenes(dressed_up, "fox", distance=APART):
        found = figures(scene)
        assert scores.bleeding(found, (CAT,)) == 1
        assert scores.bleeding(found, (FOX,)) == 0
        assert scores.identity(found, CAT) == 0


def test_those_who_hug_are_in_contact_and_those_apart_are_not():
    for relation in ("and", "hugging"):
        close = scenes("cat", "dog", relation=relation, distance=HUGGING)
        assert all(scores.in_contact(figures(scene), "cat", "dog") for scene in close)
    far = scenes("cat", "dog", distance=(1.3, 1.8))
    assert not any(scores.in_contact(figures(scene), "cat", "dog") for scene in far)


def test_who_is_in_front_is_seen():
    for scene in scenes(FOX, ROBOT, relation="in front of"):
        found = figures(scene)
        assert scores.in_front(found, FOX, ROBOT)
        assert not scores.in_front(found, ROBOT, FOX)


@pytest.mark.parametrize("style", STYLES)
def test_the_style_is_that_of_the_figures(style):
    (other,) = set(STYLES) - {style}
    for scene in scenes("cat", "dog", style=style):
        assert scores.in_style(figures(scene), style) == 1
        assert scores.in_style(figures(scene), other) == 0


def test_specks_are_no_figures():
    side = SIDE // CELL
    shares = {head: torch.zeros(count, side, side) for head, count in HEADS.items()}
    for share in shares.values():
        share[0] = 1
    shares["class"][:, 3:5, 3:5] = torch.eye(HEADS["class"])[1][:, None, None]
    assert not list(scores.figures_in(shares))
