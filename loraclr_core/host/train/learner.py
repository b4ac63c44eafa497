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
MOST_OVERFLOWS = 5  # steps in a row whose gradients overflow in half precision; so many end the training
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what torch's AdamW keeps of a factor


class Losses(NamedTuple):
    """The terms of one step's loss, without α and β; None where the step had no such term."""

    concept: float
    preservation: float | None = None
    outside: float | None = None
    beside: float | None = None


class DivergedError(ValueError):
    """A loss that is no number; the message says what to do."""


class Learner:
    """Trains the factors of the layers with AdamW, and keeps their average."""

    def __init__(self, layers: Layers, settings: TrainSettings):
        self.settings = settings
        self.deltas: Deltas = {}
        for key, module in layers.items():
            shape = weight_shape(module)
            assert shape is not None
            start = factors.initial(key, shape, settings.rank, settings.seed)
            self.deltas[key] = LowRank(*(factor.requires_grad_() for factor in start))
        self.averages = [factor.detach().clone() for factor in self.leaves()]
        self.optimizer = torch.optim.AdamW(self.leaves(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
        # Of each step that was taken.
        self.losses: list[Losses] = []
        # The steps, counted from 0, that moved nothing, as their gradients overflowed.
        self.overflows: list[int] = []

    @property
    def step(self) -> int:
        """Return how many steps were taken."""
        return len(self.losses)

    def notes(self) -> list[str]:
        """Return what the user should know of the steps so far."""
        if not self.overflows:
            return []
        return [
            f"{len(self.overflows)} of {self.step} steps taught nothing, as their gradients overflowed in half precision. If"
            " it is more than a few, load the model in bfloat16."
        ]

    def leaves(self) -> list[Tensor]:
        return [factor for delta in self.deltas.values() for factor in delta]

    def descend(self, losses: Losses, scale: float) -> None:
        """Take a step along the gradients, which are `scale` times those of the loss. Raises DivergedError.

        Gradients that overflowed, as those of a single noise level may in half precision, move nothing.
        """
        leaves = [factor for factor in self.leaves() if factor.grad is not None]
        for factor in leaves:
            factor.grad.div_(scale)  # pyright: ignore[reportOptionalMemberAccess]
        norm = float(torch.nn.utils.clip_grad_norm_(leaves, LARGEST_GRADIENT))
        overflows = not math.isfinite(norm)
        is_number = all(value is None or math.isfinite(value) for value in losses)
        if not is_number or (overflows and self._overflowed_before()):
            self.optimizer.zero_grad()
            raise DivergedError(
                f"The {'gradients' if is_number else 'loss'} became NaN or Inf in step {self.step + 1}. Lower learning_rate, which is"
                f" {self.settings.learning_rate:g}; if it is so in the first step, the model gives no numbers at this"
                " precision: load it in bfloat16 or float32."
            )
        if overflows:
            self.overflows.append(self.step)
        else:
            self._move()
        self.optimizer.zero_grad()
        self.losses.append(losses)

    def _overflowed_before(self) -> bool:
        """Return whether so many steps before this one overflowed that it is the last that may."""
        before = range(self.step - MOST_OVERFLOWS + 1, self.step)
        return self.overflows[-len(before) :] == list(before)

    def _move(self) -> None:
        """Change the factors along their gradients, and their average."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, (self.step + 1) / WARMUP)
        self.optimizer.step()
        factors.follow(self.averages, self.leaves(), self.step, self.settings.ema)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next steps depend on, as tensors on the CPU."""
        tensors = {}
        for number, (factor, average) in enumerate(zip(self.leaves(), self.averages, strict=True)):
            values = {"factor": factor, "average": average, **self.optimizer.state.get(factor, {})}
            tensors |= {f"{number}.{name}": value.detach().cpu().clone() for name, value in values.items()}
        losses = [[math.nan if value is None else value for value in step] for step in self.losses]
        tensors["losses"] = torch.tensor(losses, dtype=torch.float64).reshape(-1, len(Losses._fields))
        return tensors | {"overflows": torch.tensor(self.overflows, dtype=torch.int64)}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a state. Raises KeyError or ValueError, and changes nothing, where it does not fit."""
        states = []
        for number, factor in enumerate(self.leaves()):
            state = {name: tensors[f"{number}.{name}"] for name in ("factor", "average")}
            moments = {name: tensors[f"{number}.{name}"] for name in MOMENTS if f"{number}.{name}" in tensors}
            if any(value.shape != factor.shape for name, value in (state | moments).items() if name != "step"):
                raise ValueError(f"its factor {number} has another shape than the layer's")
            states.append((state, moments))
        losses, overflows = tensors["losses"].tolist(), tensors["overflows"].tolist()
        for factor, average, (state, moments) in zip(self.leaves(), self.averages, states, strict=True):
            factor.data.copy_(state["factor"])
            average.copy_(state["average"])
            if moments:
                places = {name: "cpu" if name == "step" else factor.device for name in moments}
                self.optimizer.state[factor] = {name: value.to(places[name]) for name, value in moments.items()}
        self.losses = [Losses(concept, *map(_or_none, others)) for concept, *others in losses]
        self.overflows = overflows

    def to(self, device: torch.device) -> None:
        """Move everything that is trained to a device."""
        for factor in self.leaves():
            factor.data = factor.data.to(device)
            moments = self.optimizer.state.get(factor, {})
            moments |= {name: value.to(device) for name, value in moments.items() if name != "step"}
        self.averages = [average.to(device) for average in self.averages]

    def result(self) -> Deltas:
        """Return a copy of what is saved, on the CPU."""
        return {key: LowRank(*(factor.cpu().clone() for factor in delta)) for key, delta in self.shown().items()}

    def shown(self) -> Deltas:
        """Return what is saved: the average of the factors, or the factors themselves where none is kept."""
        values = iter(self.averages if self.settings.ema > 0 else [factor.detach() for factor in self.leaves()])
        return {key: LowRank(next(values), next(values)) for key in self.deltas}


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
