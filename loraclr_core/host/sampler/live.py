"""The live view of a CLoRA run in ComfyUI's page: small frames, at a low rate, and only while somebody is watching."""

import base64
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..pictures import jpeg, rough_picture

log = logging.getLogger("loraclr")

SECONDS = 0.25  # least time between two frames, except before the last of a run


class LiveView:
    """Sends frames of a run. send: takes a frame, as `show` makes it. watched: whether anyone would see it."""

    def __init__(self, names: list[str], send: Callable[[dict], None], watched: Callable[[], bool]):
        self.names = names
        self.send = send
        self.watched = watched
        self.start()

    def start(self) -> None:
        """Begin a run: send its first frame at once, and log its first failure."""
        self.due = 0.0
        self.complained = False

    def show(
        self,
        step: int,
        steps: int,
        latent_format,
        denoised: Tensor,
        masks: Tensor | None,
        heat: Tensor | None,
        losses: dict[int, Tensor],
    ) -> None:
        """Show the first picture of a batch after a step, counted from 0. A failure here never ends the run.

        denoised: (batch, channels, h, w), in the model's own scale. masks, heat: (batch, concepts, h, w), 0…1; None
        while the plain picture is made. losses: (batch,) by step.
        """
        now = time.monotonic()
        if now < self.due and step + 1 < steps:
            return
        with self._log_errors("a frame"):
            if not self.watched():
                return
            self.due = now + SECONDS
            picture = None
            with self._log_errors("the picture"):
                picture = _picture(latent_format, denoised[:1])
            self.send(
                {
                    "names": self.names,
                    "step": step + 1,
                    "steps": steps,
                    "picture": picture,
                    **({} if masks is None or heat is None else _maps(masks[0], heat[0])),
                    "losses": [_number(loss[0]) for _, loss in sorted(losses.items())],
                }
            )

    @contextmanager
    def _log_errors(self, part: str) -> Iterator[None]:
        """Log the first failure of a run and suppress all of them. ComfyUI's interrupt is no Exception, and passes."""
        try:
            yield
        except Exception as error:
            if not self.complained:
                log.warning(
                    "The live view of CLoRA lacks %s: %s. Sampling goes on.",
                    part,
                    error or type(error).__name__,
                    exc_info=True,
                )
            self.complained = True


def _maps(masks: Tensor, heat: Tensor) -> dict:
    return {
        "masks": [_bytes(mask) for mask in masks],
        "mask_size": [*masks.shape[-2:]],
        "heat": [_bytes(heat_map) for heat_map in heat],
        "heat_size": [*heat.shape[-2:]],
    }


def _picture(latent_format, latent: Tensor) -> str | None:
    """Return a latent's rough colours as a data URL, or None where its format does not define them."""
    drawn = rough_picture(latent_format, latent)
    return None if drawn is None else jpeg(drawn[0])


def _bytes(values: Tensor) -> str:
    """Return values, 0…1, as one byte each, row by row, in base64."""
    shares = values.float().nan_to_num().clamp(0, 1)
    return base64.b64encode((shares * 255).round().to(torch.uint8).cpu().numpy().tobytes()).decode()


def _number(loss: Tensor) -> float | None:
    """Return a loss rounded, or None for NaN and infinity: JSON has neither, and the page drops a message with one."""
    value = float(loss)
    return round(value, 4) if math.isfinite(value) else None
