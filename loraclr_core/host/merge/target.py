"""The model that concepts are merged into, and how it is sampled to capture them."""

from typing import NamedTuple

import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..loaded import encode
from ..lora import adapters
from ..lora.active import active, clip_with_summed
from ..lora.adapters import Effect
from ..lora.layers import Layers

# Tokens of each layer and concept that are kept to measure the distances between concepts.
SAMPLES = 16
# The output of Empty Latent Image for 512×512 pixels.
EMPTY_512 = {"samples": torch.zeros(1, 4, 64, 64), "downscale_ratio_spacial": 8}


class CaptureSettings(NamedTuple):
    """How a concept is sampled to capture it."""

    # Templates, each with `{trigger}`.
    prompts: tuple[str, ...]
    steps: int
    seed: int
    # Shape of one picture's latent, (channels, …, height, width), from `latent_shape`.
    latent_shape: tuple[int, ...]
    samples: int = SAMPLES

    def evaluations(self) -> int:
        """Return how many times one concept's capture evaluates the model."""
        return len(self.prompts) * self.steps


class Target(NamedTuple):
    """A diffusion model and its text encoder, with the layers of each that are merged."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    model_layers: Layers
    clip_layers: Layers

    def layers(self) -> Layers:
        return self.model_layers | self.clip_layers

    def with_layers(self, keys: list[str]) -> "Target":
        """Return the target with further layers, by weight key, of the model or its text encoder."""

        def widened(patcher: ModelPatcher, layers: Layers) -> Layers:
            weights = patcher.model_state_dict() if keys else {}
            return layers | {key: adapters.layer(patcher, key) for key in keys if key in weights and key not in layers}

        return self._replace(
            model_layers=widened(self.model, self.model_layers),
            clip_layers=widened(self.clip.patcher, self.clip_layers),
        )


def latent_shape(model: ModelPatcher, latent: dict | None) -> tuple[int, ...]:
    """Return the shape in which the stock sampler samples one picture of `latent`; without one, of 512×512 pixels.

    An empty latent states how many pixels one of its cells covers; the cells of the model's VAE may be larger.
    """
    latent = EMPTY_512 if latent is None else latent
    fixed = comfy.sample.fix_empty_latent_channels(
        model,
        latent["samples"],
        downscale_ratio_spacial=latent.get("downscale_ratio_spacial"),
        downscale_ratio_temporal=latent.get("downscale_ratio_temporal"),
    )
    return tuple(fixed.shape[1:])


def empty_latent(model: ModelPatcher, shape: tuple[int, ...]) -> Tensor:
    """Return zeros, (1, channels, [frames,] height, width), with as many channels as the model has."""
    return comfy.sample.fix_empty_latent_channels(model, torch.zeros(1, *shape))


def noise_levels(model: ModelPatcher, settings: CaptureSettings) -> Tensor:
    """Return σ of each step, and 0."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", settings.steps)


def encode_with(target: Target, prompt: str, effect: Effect, *summed: Effect) -> list:
    """Encode `prompt` with one effect's low-rank differences hooked in and all effects' summed differences patched."""
    with active(target.clip_layers, effect.merge):
        return encode(clip_with_summed(target.clip, effect, *summed), prompt)
