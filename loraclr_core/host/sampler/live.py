"""What a page is shown of a CLoRA run while it samples: small, and no oftener than anyone looks."""

import base64
import io
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .overlay import rough_picture

SECONDS = 0.25  # between two frames, but for the last of a run
SIDE = 256  # pixels, at most
QUALITY = 80


class LiveView:
    """send: takes a frame, as `frame` makes it. watched: whether anyone would see it."""

    def __init__(self, names: list[str], send: Callable[[dict], None], watched: Callable[[], bool]):
        self.names = names
        self.send = send
        self.watched = watched
        self.due = 0.0

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
        """After a step, 0 first; of a batch the first picture. denoised: (batch, channels, h, w). masks, heat: (batch,
        concepts, h, w), 0…1; None while the plain picture is made. losses: (batch,) by step.
        """
        now = time.monotonic()
        if (now < self.due and step + 1 < steps) or not self.watched():
            return
        self.due = now + SECONDS
        self.send(
            {
                "names": self.names,
                "step": step + 1,
                "steps": steps,
                "picture": _jpeg(rough_picture(latent_format, denoised[:1])[0]),
                **({} if masks is None or heat is None else _maps(masks[0], heat[0])),
                "losses": [round(float(loss[0]), 4) for _, loss in sorted(losses.items())],
            }
        )


def _maps(masks: Tensor, heat: Tensor) -> dict:
    return {
        "masks": [_bytes(mask) for mask in masks],
        "mask_size": [*masks.shape[-2:]],
        "heat": [_bytes(found) for found in heat],
        "heat_size": [*heat.shape[-2:]],
    }


def _jpeg(picture: Tensor) -> str:
    """(H, W, 3), 0…1 -> a data URL."""
    share = SIDE / max(picture.shape[:2])
    if share < 1:
        picture = F.interpolate(picture.movedim(-1, 0)[None], scale_factor=share, mode="area")[0].movedim(0, -1)
    file = io.BytesIO()
    Image.fromarray((picture * 255).round().to(torch.uint8).cpu().numpy()).save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _bytes(values: Tensor) -> str:
    """0…1 -> a byte each, row by row, in base64."""
    return base64.b64encode((values.float() * 255).round().to(torch.uint8).cpu().numpy().tobytes()).decode()
