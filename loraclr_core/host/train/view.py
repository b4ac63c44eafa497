"""The live view of a training in ComfyUI's page: curves and small previews, and only while somebody is watching."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from .learner import Learner, Losses

log = logging.getLogger("loraclr")

SECONDS = 1.0  # least time between two frames, except before the last
POINTS = 200  # of a curve at most


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A small picture by the LoRA as it was after `step` steps."""

    # With the words filled in.
    prompt: str
    # Whether the trigger is in the prompt.
    with_trigger: bool
    # A JPEG as a data URL.
    picture: str
    step: int


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the page is told, as JSON: the event “loraclr.train”, with what nodes/page.py's `source` says beside these."""

    # Steps done, of `steps`.
    step: int
    steps: int
    # Until the end; None while it is not known.
    seconds_left: float | None
    # Curves of the losses from the first step to `step`: means over equal parts of it, at most POINTS; None for parts
    # without such a term. All but `losses` are empty where the whole training has no such term.
    losses: list[float | None]
    preservation: list[float | None]
    outside: list[float | None]
    beside: list[float | None]
    # Of the last time that previews were drawn, in the order of preview_prompts; empty before.
    previews: list[Preview]


class TrainView:
    """Sends frames of a training. send: takes a frame as a dict. watched: whether anyone would see it."""

    def __init__(self, send: Callable[[dict], None], watched: Callable[[], bool]):
        self.send, self.watched = send, watched
        self.previews: list[Preview] = []
        self.due = 0.0
        self.complained = False

    def draw(self, previews: Callable[[], list[Preview]]) -> None:
        """Draw previews for the next frames, if anyone would see them. A failure here never ends the training."""
        try:
            if self.watched():
                self.previews, self.due = previews(), 0.0
        except Exception as error:
            self._complain("the previews", error)

    def show(self, learner: Learner, steps: int, seconds_left: float | None, *, last: bool = False) -> None:
        """Send a frame, if one is due or the training ends here."""
        now = time.monotonic()
        if now < self.due and not last:
            return
        try:
            if self.watched():
                self.due = now + SECONDS
                self.send(asdict(self._frame(learner, steps, seconds_left)))
        except Exception as error:
            self._complain("a frame", error)

    def _frame(self, learner: Learner, steps: int, seconds_left: float | None) -> Frame:
        return Frame(
            step=learner.step,
            steps=steps,
            seconds_left=seconds_left,
            losses=curve(learner.losses, "concept"),
            preservation=curve(learner.losses, "preservation"),
            outside=curve(learner.losses, "outside"),
            beside=curve(learner.losses, "beside"),
            previews=self.previews,
        )

    def _complain(self, part: str, error: Exception) -> None:
        """Log the first failure of a run."""
        if not self.complained:
            log.warning("The live view of the training lacks %s: %s. Training goes on.", part, error, exc_info=True)
        self.complained = True


def curve(losses: list[Losses], term: str) -> list[float | None]:
    """Return the means of a term over at most POINTS equal parts of the steps; nothing where no step has it."""
    values = [getattr(step, term) for step in losses]
    width = max(1, math.ceil(len(values) / POINTS))
    means = [_mean(values[start : start + width]) for start in range(0, len(values), width)]
    return means if any(mean is not None for mean in means) else []


def _mean(values: list[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(f"{sum(numbers) / len(numbers):.4g}") if numbers else None
