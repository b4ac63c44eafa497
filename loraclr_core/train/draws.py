"""What is drawn at random in each step of a training: a function of the seed and the step alone.

So a training that goes on from a saved state draws what it would have drawn without the break.
"""

import random
from typing import NamedTuple

import torch
from torch import Tensor

# Levels are kept off the ends of the schedule, where there is no noise, or nothing but noise.
EDGE = 1e-4


class Draw(NamedTuple):
    """One row of a step."""

    picture: int
    # The place in the schedule: 0 is the most noise, 1 none.
    level: float
    noise_seed: int
    # Each uniform in 0…1; less than a share means yes.
    drop_caption: float
    empty_prompt: float
    use_other: float
    beside: float
    # Which of the pictures of others, or of the subject beside them; take it modulo their number.
    other: int

    def noise(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.noise_seed))


def draws(seed: int, step: int, batch: int, pictures: int) -> list[Draw]:
    """Return the rows of a step, counted from 0: each picture as often as any other, levels spread over the batch."""
    rng = random.Random(f"{seed} {step}")
    parts = rng.sample(range(batch), batch)
    return [
        Draw(
            picture=_picture(seed, step * batch + row, pictures),
            level=min(max((part + rng.random()) / batch, EDGE), 1 - EDGE),
            noise_seed=rng.getrandbits(32),
            drop_caption=rng.random(),
            empty_prompt=rng.random(),
            use_other=rng.random(),
            beside=rng.random(),
            other=rng.getrandbits(32),
        )
        for row, part in enumerate(parts)
    ]


def _picture(seed: int, number: int, pictures: int) -> int:
    """Return the picture of the row of this number: each epoch has every picture once, in an order of its own."""
    epoch, place = divmod(number, pictures)
    order = random.Random(f"{seed} epoch {epoch}").sample(range(pictures), pictures)
    return order[place]
