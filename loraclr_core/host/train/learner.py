"""The factors of a LoRA while it is trained."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...lowrank import LowRank
from ...train import factors
from ..loaded import Deltas
from ..lora.layers import Layers
from ..weights import weight_shape
from .settings import TrainSettings

WARMUP = 20  # steps in which the learning rate grows to its value: Adam's first ones follow a single picture
LARGEST_GRADIENT = 1.0  # norm
WEIGHT_DECAY = 0.01


class Losses(NamedTuple):
    """The terms of one step's loss, without α and β; None where the step had no such term."""

    concept: float
    preservation: float | None = None
    outside: float | None = None


class DivergedError(ValueError):
    """A loss that is no number; the message says what to do."""


class Learner:
    """Trains the factors of the layers with AdamW, and keeps their average."""

    def __init__(self, layers: Layers, settings: TrainSettings, device: torch.device):
        self.settings = settings
        self.deltas: Deltas = {}
        for key, module in layers.items():
            shape = weight_shape(module)
            assert shape is not None
            start = factors.initial(key, shape, settings.rank, settings.seed).to(device)
            self.deltas[key] = LowRank(*(factor.requires_grad_() for factor in start))
        self.averages = [factor.detach().clone() for factor in self.leaves()]
        self.optimizer = torch.optim.AdamW(self.leaves(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
        # Of each step that was taken.
        self.losses: list[Losses] = []

    @property
    def step(self) -> int:
        """Return how many steps were taken."""
        return len(self.losses)

    def leaves(self) -> list[Tensor]:
        return [factor for delta in self.deltas.values() for factor in delta]

    def descend(self, losses: Losses, scale: float) -> None:
        """Take a step along the gradients, which are `scale` times those of the loss. Raises DivergedError."""
        leaves = [factor for factor in self.leaves() if factor.grad is not None]
        for factor in leaves:
            factor.grad.div_(scale)  # pyright: ignore[reportOptionalMemberAccess]
        norm = float(torch.nn.utils.clip_grad_norm_(leaves, LARGEST_GRADIENT))
        if not math.isfinite(norm) or not all(value is None or math.isfinite(value) for value in losses):
            self.optimizer.zero_grad()
            raise DivergedError(
                f"The loss became NaN or Inf in step {self.step + 1}. Lower learning_rate, which is"
                f" {self.settings.learning_rate:g}; if it is so in the first step, the model gives no numbers at this"
                " precision: load it in bfloat16 or float32."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, (self.step + 1) / WARMUP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        factors.follow(self.averages, self.leaves(), self.step, self.settings.ema)
        self.losses.append(losses)

    def result(self) -> Deltas:
        """Return the average of the factors, or the factors themselves where none is kept, on the CPU."""
        kept = self.averages if self.settings.ema > 0 else self.leaves()
        values = iter([factor.detach().float().cpu().clone() for factor in kept])
        return {key: LowRank(next(values), next(values)) for key in self.deltas}
