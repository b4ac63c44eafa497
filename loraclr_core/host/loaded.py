"""A model that ComfyUI has loaded, for work that evaluates it with weight differences of its own."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import comfy.k_diffusion.sampling
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..lowrank import LowRank
from . import differentiable
from .lora import active
from .lora.layers import Layers

Deltas = dict[str, LowRank]
T = TypeVar("T")


class LoadedModel(NamedTuple):
    inner: BaseModel
    options: dict
    layers: Layers
    # Noise of one picture, (1, channels, …), on the sampling device; only its shape and device matter.
    noise: Tensor
    # σ of each step, and 0.
    sigmas: Tensor

    @property
    def in_place(self) -> bool:
        return changes_in_place(self.inner)

    def predict(self, deltas: Deltas, cond: list, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised prediction for `x` with these differences added to the layers."""
        with active.differentiable(self.layers, deltas):
            return self.evaluate(cond, x, sigma)

    def evaluate(self, cond: list, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised prediction for `x` of the model as it is. cond: from a text encoder."""
        # At each evaluation anew: what some models take beside the text depends on the picture's size.
        conds = {"cond": comfy.sampler_helpers.convert_cond(cond)}
        with torch.no_grad():
            comfy.samplers.process_conds(self.inner, x[:1], conds, x.device, torch.zeros_like(x[:1]))
        return comfy.samplers.calc_cond_batch(self.inner, [conds["cond"]], x, sigma, self.options)[0]

    def paint(self, denoise: Callable[..., Tensor], noise: Tensor) -> Tensor:
        """Return the pictures, in the model's own scale, that `denoise(x, σ)` makes from `noise` by Euler steps."""
        start = self.inner.model_sampling.noise_scaling(
            self.sigmas[0], noise, torch.zeros_like(noise), max_denoise=True
        )
        return comfy.k_diffusion.sampling.sample_euler(denoise, start, self.sigmas, disable=True)

    def signal_to_noise(self, sigma: Tensor) -> float:
        """Return the ratio of powers at σ, from the shares in which the model adds noise to a picture."""
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        scaling = self.inner.model_sampling.noise_scaling
        noise, signal = float(scaling(sigma, one, zero)), float(scaling(sigma, zero, one))
        return (signal / noise) ** 2


def changes_in_place(model: BaseModel) -> bool:
    """Return whether a model may add to its activations in place, as transformers do."""
    return not isinstance(model.diffusion_model, UNetModel)


def encode(clip: comfy.sd.CLIP, prompt: str) -> list:
    """Return the conditioning of a prompt."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def with_model(
    patcher: ModelPatcher,
    layers: Layers,
    conds: Sequence[list],
    latent: Tensor,
    sigmas: Tensor,
    work: Callable[[LoadedModel], T],
) -> T:
    """Return `work` of the model, loaded as for a run of a sampler and ready for gradients.

    conds: the conditioning that it will see, of which ComfyUI estimates the memory. This must be called in the context of
    `differentiable.gradients`.
    """
    results: list[T] = []

    class Working(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs) -> Tensor:
            options = extra_args["model_options"]
            options["transformer_options"].setdefault("optimized_attention_override", differentiable.attention)
            differentiable.make_normal(model_wrap.inner_model)
            results.append(work(LoadedModel(model_wrap.inner_model, options, layers, noise, sigmas)))
            return noise

    guider = comfy.samplers.CFGGuider(patcher)
    guider.inner_set_conds({str(number): cond for number, cond in enumerate(conds)})
    guider.sample(torch.zeros_like(latent), latent, Working(), sigmas, disable_pbar=True, seed=0)
    return results[0]
