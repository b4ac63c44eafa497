"""Heat maps drawn over a picture."""

import logging

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ..pictures import rough_picture
from .labels import PLACE, STROKE, Label

log = logging.getLogger("loraclr")

# How much of the heat map's colour covers the picture at most.
STRONGEST = 0.75


def background(latent_format, latent: Tensor) -> tuple[Tensor, str]:
    """Return a background for heat maps without a picture, (1, H, W, 3), and a message if it could not be drawn.

    latent: (1, channels, h, w), as LATENT holds it.
    """
    try:
        picture = rough_picture(latent_format, latent_format.process_in(latent.float()))
    except Exception:  # the masks and losses of a long sampling must not be lost with it
        log.warning("Attention Maps of CLoRA cannot draw this latent.", exc_info=True)
        picture = None
    if picture is not None:
        return picture, ""
    height, width = (latent_format.spacial_downscale_ratio * cells for cells in latent.shape[-2:])
    grey = torch.full((1, height, width, 3), 0.5, device=latent.device)
    return grey, "This model's latents cannot be drawn without a VAE: connect the decoded picture to image."


def heat_over(picture: Tensor, heat: Tensor, labels: list[Label]) -> Tensor:
    """Draw heat maps, (concepts, h, w), 0…1, over (1, H, W, 3), 0…1 -> (concepts, H, W, 3), each with its label."""
    height, width = picture.shape[1:3]
    heat = F.interpolate(heat[:, None], size=(height, width), mode="bilinear").movedim(1, -1)
    # Blue where attention is weak through green to red where it is strong.
    colours = torch.cat([(2 * heat - 1).clamp(0, 1), 1 - (2 * heat - 1).abs(), (1 - 2 * heat).clamp(0, 1)], dim=-1)
    share = STRONGEST * heat
    blended = picture * (1 - share) + colours * share
    return torch.stack([_draw_label(image, label) for image, label in zip(blended, labels, strict=True)])


def _draw_label(image: Tensor, label: Label) -> Tensor:
    drawn = Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    draw = ImageDraw.Draw(drawn)
    draw.text(PLACE, label.text, fill="white", font=label.font, stroke_width=STROKE, stroke_fill="black")
    return torch.from_numpy(np.asarray(drawn).astype(np.float32) / 255)
