"""The parts of the shapes model, SD1.5's in small: text encoder, latents, noise, U-Net, decoder; and how they are stored.

Text comes from a frozen CLIP-L of a seed whose residual branches are damped, so that a token carries little but itself.
A latent is an exact function of the picture (`encode`); only the U-Net and the decoder are trained.
"""

from pathlib import Path

import comfy.clip_model
import comfy.ops
import demo_assets
import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.sd1_clip import SD1Tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .world import CELL, Scene

WEIGHTS = Path(__file__).parent / "weights"
STATES = Path(__file__).resolve().parents[2] / ".host" / "shapes"
# One level and no middle block: 18.7 million parameters.
UNET = {**demo_assets.UNET, "transformer_depth_middle": -2}
TEXT_SEED = 1
GAMMA = 5.0
RESIDUAL_GAIN, POSITION_GAIN = 0.1, 0.3

# Latent channels: lightness, red against green, blue against yellow, contrast within the cell. Each of about unit size.
TO_OPPONENT = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, -1.0, 0.0], [-0.5, -0.5, 1.0]])
SHIFT = torch.tensor([0.5, 0.05, 0.0, 0.05])
SCALE = torch.tensor([3.5, 3.5, 3.0, 9.0])

# SD1.5's noise: variance kept at each of 1000 timesteps.
KEPT = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


def make_unet(device: str = "cpu") -> UNetModel:
    return UNetModel(**UNET, dtype=torch.float32, device=device, operations=comfy.ops.disable_weight_init)


@torch.no_grad()
def make_text_encoder() -> comfy.clip_model.CLIPTextModel:
    model = demo_assets.make_text_encoder()
    demo_assets.fill(model, TEXT_SEED, RESIDUAL_GAIN)
    model.text_model.embeddings.position_embedding.weight.mul_(POSITION_GAIN)
    return model


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
        self.encoder = make_text_encoder().to(device)
        self.tokenizer = SD1Tokenizer()
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        """(prompts, 77, 768)"""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        for prompt in missing:
            (tokens,) = self.tokenizer.tokenize_with_weights(prompt)["l"]
            ids = torch.tensor([[token for token, _ in tokens]], device=self.device)
            self.known[prompt] = self.encoder(ids)[0][0].half()
        return torch.stack([self.known[prompt] for prompt in prompts]).float()

    def positions(self, prompt: str, word: str) -> list[list[int]]:
        """Where each occurrence of a word stands in a prompt's 77 tokens."""
        (tokens,) = self.tokenizer.tokenize_with_weights(prompt)["l"]
        (of_word,) = self.tokenizer.tokenize_with_weights(word)["l"]
        ids = [token for token, _ in tokens]
        wanted = [token for token, _ in of_word]
        wanted = wanted[1 : wanted.index(demo_assets.END_TOKEN)]
        starts = (i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted)
        return [list(range(start, start + len(wanted))) for start in starts]


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    kept = KEPT[timesteps][:, None, None, None]
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def denoising_loss(
    unet: nn.Module, text: Text, scenes: list[Scene], prompts: list[str], generator: torch.Generator
) -> Tensor:
    """Mean squared error of the predicted noise, with Min-SNR weights (arXiv 2303.09556)."""
    latents = encode(torch.stack([scene.picture() for scene in scenes]))
    timesteps = torch.randint(0, len(KEPT), (len(scenes),), generator=generator)
    noise = torch.randn(latents.shape, generator=generator)
    noisy = noised(latents, noise, timesteps)
    found = unet(noisy.to(text.device), timesteps.float().to(text.device), text(prompts)).cpu()
    snr = KEPT[timesteps] / (1 - KEPT[timesteps])
    return (snr.clamp(max=GAMMA) / snr * (found - noise).square().mean(dim=(1, 2, 3))).mean()


def keep(path: Path, state: dict) -> None:
    """A training's state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    scratch.replace(path)


# --- stored weights --------------------------------------------------------------------------------------------------


def store(path: Path, state: dict[str, Tensor]) -> None:
    """Matrices in 8 bits with a scale per row, everything else in half precision."""
    stored = {}
    for key, tensor in state.items():
        tensor = tensor.detach().cpu().float().contiguous()
        if tensor.ndim < 2:
            stored[key] = tensor.half()
            continue
        scale = tensor.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
        stored[key] = (tensor / scale.view(-1, *[1] * (tensor.ndim - 1))).round().to(torch.int8)
        stored[f"{key}.scale"] = scale
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    save_file(stored, scratch)
    scratch.chmod(0o644)  # safetensors makes files that only their owner can read
    scratch.replace(path)


def stored(path: Path) -> dict[str, Tensor]:
    """What `store` wrote, in float32."""
    found = load_file(path)
    scales = {key: found.pop(f"{key}.scale") for key in [*found] if f"{key}.scale" in found}
    return {
        key: tensor.float() * (scales[key].view(-1, *[1] * (tensor.ndim - 1)) if key in scales else 1)
        for key, tensor in found.items()
    }
