"""Heat maps drawn over a picture."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# How much of the heat map's colour covers the picture at most.
STRONGEST = 0.75


def rough_picture(latent_format, latent: Tensor) -> Tensor:
    """A latent's colours without a VAE, eight pixels to a cell: (1, channels, h, w) -> (1, 8h, 8w, 3), 0…1."""
    factors = latent_format.latent_rgb_factors
    if factors is None:
        raise ValueError("This model has no quick preview of a latent: connect the decoded picture to image.")
    latent = latent_format.process_in(latent.float())
    colours = torch.einsum("bchw,cr->bhwr", latent, torch.tensor(factors, dtype=latent.dtype, device=latent.device))
    if latent_format.latent_rgb_factors_bias is not None:
        colours = colours + torch.tensor(latent_format.latent_rgb_factors_bias, device=latent.device)
    colours = ((colours + 1) / 2).clamp(0, 1)
    return colours.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def heat_over(picture: Tensor, heat: Tensor, names: list[str]) -> Tensor:
    """picture: (1, H, W, 3), 0…1; heat: (concepts, h, w), 0…1 -> (concepts, H, W, 3), each with its name."""
    height, width = picture.shape[1:3]
    heat = F.interpolate(heat[:, None], size=(height, width), mode="bilinear").movedim(1, -1)
    # Blue where attention is weak through green to red where it is strong.
    colours = torch.cat([(2 * heat - 1).clamp(0, 1), 1 - (2 * heat - 1).abs(), (1 - 2 * heat).clamp(0, 1)], dim=-1)
    share = STRONGEST * heat
    blended = picture * (1 - share) + colours * share
    return torch.stack([_labelled(image, name) for image, name in zip(blended, names, strict=True)])


def _labelled(image: Tensor, name: str) -> Tensor:
    drawn = Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())
    font = ImageFont.load_default(size=max(10, image.shape[0] // 20))
    draw = ImageDraw.Draw(drawn)
    draw.text((6, 4), name, fill="white", font=font, stroke_width=2, stroke_fill="black")
    return torch.from_numpy(np.asarray(drawn).astype(np.float32) / 255)
