"""Whose turn it is, and what stands for the others."""

import pytest
import torch
from loraclr.loraclr_core.sampler.turns import Turns

GUIDED = ("positive", "negative")
CONCEPTS = [1, 2, 3]


def run(turns: Turns, steps, branches=CONCEPTS, roles=GUIDED) -> list[list[int]]:
    """The branches that each of these evaluations runs; each result holds the number of its evaluation."""
    ran = []
    for number, step in enumerate(steps):
        due = turns.due(branches, step, roles)
        value = torch.tensor(float(number))
        turns.hold(due, roles, [[value] * len(due) for _ in roles], dict.fromkeys(due, value))
        ran.append(due)
    return ran


def test_every_concept_has_the_first_step_and_then_they_take_turns():
    assert run(Turns(1), range(6)) == [CONCEPTS, [1], [2], [3], [1], [2]]
    assert run(Turns(2), range(5)) == [CONCEPTS, [1, 2], [1, 3], [2, 3], [1, 2]]  # each of them twice in three steps


@pytest.mark.parametrize("per_step", [0, 3, 8])
def test_with_enough_or_without_a_number_all_run_at_every_step(per_step):
    assert run(Turns(per_step), range(3)) == [CONCEPTS] * 3


def test_a_step_that_is_evaluated_again_runs_the_same_branches():
    assert run(Turns(1), [0, 0, 1, 1, 2, 2]) == [CONCEPTS, CONCEPTS, [1], [1], [2], [2]]


def test_steps_that_are_left_out_or_taken_back_cost_nobody_a_turn():
    """As samplers with adaptive steps do: with turns by the step's number, one of two concepts would never have one."""
    assert run(Turns(1), [0, 2, 4, 6, 3], branches=[1, 2]) == [[1, 2], [1], [2], [1], [2]]


def test_the_base_branch_takes_no_turns():
    assert run(Turns(1), range(3), branches=[0, 1, 2]) == [[0, 1, 2], [0, 1], [0, 2]]


def test_lists_that_were_not_predicted_before_are_predicted_for_all():
    """Guidance may begin or end during a run."""
    turns = Turns(1)
    assert run(turns, [0, 1], roles=("positive", None)) == [CONCEPTS, [1]]
    assert run(turns, [2, 3]) == [CONCEPTS, [2]]


def test_the_others_results_are_those_of_their_last_turn():
    turns = Turns(1)
    run(turns, range(4))
    assert [float(value) for value in turns.predictions(CONCEPTS, 1)] == [1, 2, 3]
    assert {branch: float(maps) for branch, maps in turns.maps(CONCEPTS).items()} == {1: 1, 2: 2, 3: 3}
