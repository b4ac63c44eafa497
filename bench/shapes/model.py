"""What all trainings of the shapes model share: latents, prompts, noise, loss, and where a training's state is kept.

A latent is an exact function of the picture (`encode`), and the text encoder comes from a seed; only the U-Net and the
decoder are trained.
"""

from pathlib import Path

import demo_assets
import torch
import torch.nn.functional as F
from comfy.sd1_clip import SD1Tokenizer
from demo_encoder import SCALE, SHIFT, TO_OPPONENT
from torch import Tensor, nn

from .world import CELL, Scene

STATES = Path(__file__).resolve().parents[2] / ".host" / "shapes"
SNR = 0.1, 5.0  # what the weight of a timestep's error in the picture is kept between

# SD1.5's noise: variance kept at each of 1000 timesteps.
KEPT = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


def encode(pictures: Tensor) -> Tensor:
    """pictures: (batch, 3, h, w), 0…1 -> latents (batch, 4, h/8, w/8), as the U-Net sees them."""
    opponent = torch.einsum("oc,bchw->bohw", TO_OPPONENT.to(pictures), pictures)
    means = F.avg_pool2d(opponent, CELL)
    lightness = opponent[:, :1]
    spread = (F.avg_pool2d(lightness.square(), CELL) - means[:, :1].square()).clamp(min=0).sqrt()
    latents = torch.cat([means, spread], dim=1)
    shift, scale = (t.to(pictures)[:, None, None] for t in (SHIFT, SCALE))
    return (latents - shift) * scale


class Text:
    """Prompts as the U-Net takes them, (77, 768) each, encoded once."""

    def __init__(self, device: torch.device):
        self.device = device
        self.encoder = demo_assets.damped_text_encoder().to(device)
        self.tokenizer = SD1Tokenizer()
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        """(prompts, 77, 768)"""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if missing:
            tokens = [self.tokenizer.tokenize_with_weights(prompt)["l"][0] for prompt in missing]
            ids = torch.tensor([[token for token, _ in of_prompt] for of_prompt in tokens], device=self.device)
            with quick(self.device):
                self.known |= zip(missing, self.encoder(ids)[0].half(), strict=True)
        return torch.stack([self.known[prompt].float() for prompt in prompts])

    def positions(self, prompt: str, word: str) -> list[list[int]]:
        """Where each occurrence of a word stands in a prompt's 77 tokens."""
        (tokens,) = self.tokenizer.tokenize_with_weights(prompt)["l"]
        (of_word,) = self.tokenizer.tokenize_with_weights(word)["l"]
        ids = [token for token, _ in tokens]
        wanted = [token for token, _ in of_word]
        wanted = wanted[1 : wanted.index(self.tokenizer.clip_l.end_token)]
        starts = (i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted)
        return [list(range(start, start + len(wanted))) for start in starts]


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    kept = KEPT[timesteps][:, None, None, None]
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def spread_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """One out of each of `count` equal parts of the schedule, in random order: less noise than without the parts."""
    parts = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (parts / count * len(KEPT)).long()


def quick(device: torch.device) -> torch.autocast:
    """bfloat16 for matrix products, where the device has them: half of the time."""
    return torch.autocast(device.type, torch.bfloat16, device.type != "cpu" or torch.cpu._is_avx512_bf16_supported())


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


def keep(path: Path, state: dict) -> None:
    """A training's state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    scratch.replace(path)
