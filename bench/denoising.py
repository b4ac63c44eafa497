"""What the trainings of small models share: noise, prompts, a U-Net's first weights and attention, precision and kept states."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import small_models
import torch
from comfy.sd1_clip import SD1Tokenizer
from loraclr.loraclr_core.host.sampler.attention import Read, Recorder
from loraclr.loraclr_core.host.sampler.layers import read_layers
from torch import Tensor, nn

CELLS = 16  # of a latent's side, for 128 pixels
SNR = 0.1, 5.0  # what the weight of a timestep's error in the picture is kept between

# SD1.5's noise: variance kept at each of 1000 timesteps.
KEPT = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


class Text:
    """Prompts as the U-Net takes them, (77, 768) each, encoded once."""

    def __init__(self, device: torch.device):
        self.device = device
        self.encoder = small_models.damped_text_encoder().to(device)
        self.tokenizer = SD1Tokenizer()
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Tensor:
        """Return prompts encoded, (prompts, 77, 768)."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if missing:
            tokens = [self.tokenizer.tokenize_with_weights(prompt)["l"][0] for prompt in missing]
            ids = torch.tensor([[token for token, _ in of_prompt] for of_prompt in tokens], device=self.device)
            with quick(self.device):
                self.known |= zip(missing, self.encoder(ids)[0].half(), strict=True)
        return torch.stack([self.known[prompt].float() for prompt in prompts])

    def positions(self, prompt: str, word: str) -> list[list[int]]:
        """Return where each occurrence of a word stands in a prompt's 77 tokens."""
        (tokens,) = self.tokenizer.tokenize_with_weights(prompt)["l"]
        (of_word,) = self.tokenizer.tokenize_with_weights(word)["l"]
        ids = [token for token, _ in tokens]
        wanted = [token for token, _ in of_word]
        wanted = wanted[1 : wanted.index(self.tokenizer.clip_l.end_token)]
        starts = (i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted)
        return [list(range(start, start + len(wanted))) for start in starts]


def noised(latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return latents with noise, (n, 4, h, w). timesteps: (n,)"""
    kept = KEPT[timesteps][:, None, None, None]
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def spread_timesteps(count: int, generator: torch.Generator) -> Tensor:
    """Return one out of each of `count` equal parts of the schedule, in random order: less noise than without the parts."""
    parts = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (parts / count * len(KEPT)).long()


def quick(device: torch.device) -> torch.autocast:
    """Compute matrix products in bfloat16 where the device has them: half of the time."""
    return torch.autocast(device.type, torch.bfloat16, device.type != "cpu" or torch.cpu._is_avx512_bf16_supported())


def initialise(unet: nn.Module) -> None:
    """Set the weights as U-Nets of this kind start: no block adds anything yet."""
    small_models.fill(unet, seed=0, residual_gain=small_models.RESIDUAL_GAIN)
    for name, weight in unet.named_parameters():
        if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            nn.init.zeros_(weight)


@contextlib.contextmanager
def reading(unet: nn.Module, rows: int) -> Iterator[tuple[Recorder, dict]]:
    """Give a recorder of the attention in one forward pass, and the transformer options to run it with."""
    recorder = Recorder(read_layers(unet, CELLS, CELLS), stop=False)
    recorder.begin([Read(range(rows), 0, 77)], 77, rows)
    yield recorder, recorder.options({})
    recorder.add(recorder.end())


def keep(path: Path, state: dict) -> None:
    """Store a training's state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    torch.save(state, scratch)
    scratch.replace(path)
