"""What all trainings of the shapes model share: latents, loss, and where a training's state is kept.

A latent is an exact function of the picture (`encode`), and the text encoder comes from a seed; only the U-Net and the
decoder are trained.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from demo_encoder import SCALE, SHIFT, TO_OPPONENT
from denoising import KEPT, SNR, Text, noised, quick, spread_timesteps
from torch import Tensor, nn

from .world import CELL, Scene

STATES = Path(__file__).resolve().parents[2] / ".host" / "shapes"


def encode(pictures: Tensor) -> Tensor:
    """pictures: (batch, 3, h, w), 0…1 -> latents (batch, 4, h/8, w/8), as the U-Net sees them."""
    opponent = torch.einsum("oc,bchw->bohw", TO_OPPONENT.to(pictures), pictures)
    means = F.avg_pool2d(opponent, CELL)
    lightness = opponent[:, :1]
    spread = (F.avg_pool2d(lightness.square(), CELL) - means[:, :1].square()).clamp(min=0).sqrt()
    latents = torch.cat([means, spread], dim=1)
    shift, scale = (t.to(pictures)[:, None, None] for t in (SHIFT, SCALE))
    return (latents - shift) * scale


def denoising_loss(
    unet: nn.Module,
    text: Text,
    scenes: list[Scene],
    prompts: list[str],
    generator: torch.Generator,
    transformer_options: dict | None = None,
    weights: Tensor | float = 1.0,
) -> Tensor:
    """Mean squared error of the picture that the predicted noise leaves. weights: (n, 1, h, w), of places.

    Timesteps are weighted by their signal-to-noise ratio, bounded above (Min-SNR, arXiv 2303.09556) and below: what is where
    is decided where there is next to no signal, and with the first bound alone a second thing is often forgotten.
    """
    latents = encode(torch.stack([scene.picture() for scene in scenes]))
    timesteps = spread_timesteps(len(scenes), generator)
    noise = torch.randn(latents.shape, generator=generator)
    noisy, context, device = noised(latents, noise, timesteps), text(prompts), text.device
    with quick(device):
        found = unet(
            noisy.to(device), timesteps.float().to(device), context, transformer_options=transformer_options or {}
        )
    found = found.float().cpu()
    snr = KEPT[timesteps] / (1 - KEPT[timesteps])
    return (snr.clamp(*SNR) / snr * (weights * (found - noise).square()).mean(dim=(1, 2, 3))).mean()
