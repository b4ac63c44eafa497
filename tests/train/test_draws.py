"""What a step draws depends on the seed and the step alone, and treats pictures and noise levels alike."""

from collections import Counter

import torch
from loraclr.loraclr_core.train.draws import draws


def test_a_step_draws_the_same_again_whatever_was_drawn_before():
    late = draws(3, 17, 4, 5)
    for step in range(5):
        draws(3, step, 4, 5)
    assert draws(3, 17, 4, 5) == late
    assert torch.equal(draws(3, 17, 4, 5)[0].noise((1, 4, 8, 8)), late[0].noise((1, 4, 8, 8)))


def test_other_steps_seeds_and_rows_draw_something_else():
    levels = [draw.level for seed in (0, 1) for step in range(20) for draw in draws(seed, step, 2, 3)]
    noises = {draw.noise_seed for seed in (0, 1) for step in range(20) for draw in draws(seed, step, 2, 3)}
    assert len(set(levels)) == len(noises) == 80


def test_each_picture_comes_as_often_as_any_other():
    for batch in (1, 2, 3):
        count = Counter(draw.picture for step in range(30) for draw in draws(0, step, batch, 5))
        assert set(count.values()) == {30 * batch // 5}


def test_the_levels_of_a_batch_are_spread_over_the_schedule():
    for step in range(50):
        levels = sorted(draw.level for draw in draws(0, step, 4, 3))
        assert [int(level * 4) for level in levels] == [0, 1, 2, 3]
    assert all(0 < draw.level < 1 for step in range(1000) for draw in draws(0, step, 1, 1))
