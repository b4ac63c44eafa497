"""Second moments of the layers' inputs, concept by concept, through ComfyUI's own sampler.

A concept acts through forward hooks, and the same hooks observe the layers' inputs and outputs. They are attached to
modules and know no block names, so every architecture that ComfyUI samples can be captured.
"""

from collections.abc import Callable
from typing import NamedTuple

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ... import lowrank
from ...merge.gram import Gram
from ...merge.moments import ConceptStatistics, LayerMoments
from ..loaded import encode
from ..lora.active import active, clip_with_summed, with_summed
from ..lora.adapters import Effect
from ..lora.layers import Layers, output_width
from ..weights import input_width
from .target import CaptureSettings, Target, empty_latent, noise_levels

# Tokens of each layer and concept that are held out to judge the merge.
HELD_OUT = 12
# The text encoder is judged on the first tokens of a prompt that is part of no capture.
HELD_OUT_TEXT = 8
JUDGING_PROMPT = "a picture of {trigger}"

# Sums over concepts of each layer's second moments, by weight key.
Grams = dict[str, Gram]


class Capture(NamedTuple):
    """The statistics of one concept."""

    # By weight key.
    statistics: dict[str, ConceptStatistics]
    # The sums with this concept's second moments added.
    grams: Grams


def capture(
    target: Target,
    model_effect: Effect,
    clip_effect: Effect,
    phrase: str,
    settings: CaptureSettings,
    grams: Grams,
    device: torch.device,
    evaluated: Callable[[], None],
) -> Capture:
    """Capture every layer of `target` while one concept alone is active.

    phrase: stands for `{trigger}`. grams: the sums so far, which are modified. evaluated is called after every
    evaluation of the model and may raise to stop. Raises ValueError where a layer's inputs hold NaN.
    """
    model, clip = with_summed(target.model, model_effect), clip_with_summed(target.clip, clip_effect)
    prompts = [template.replace("{trigger}", phrase) for template in settings.prompts]
    latent = empty_latent(target.model, settings.latent_shape)
    noise = comfy.sample.prepare_noise(latent, settings.seed)
    # The bare trigger as well: in the paper, the text encoder's layers see "{c}" beside "photo of a {c}".
    encoded_only = [phrase] if phrase not in prompts else []

    # A prompt has few tokens, and the trigger's matter most: all of them count, and another prompt is used to judge.
    text = _moments(target.clip_layers, clip_effect, grams, device, settings, len(prompts) + len(encoded_only), 0)
    image = _moments(target.model_layers, model_effect, grams, device, settings, settings.evaluations(), HELD_OUT)
    with active(target.clip_layers, clip_effect.merge, lambda key, x, y: text[key].observe(x, y)):
        conds = [encode(clip, prompt) for prompt in prompts]
        for prompt in encoded_only:
            encode(clip, prompt)
    with active(target.clip_layers, clip_effect.merge, lambda key, x, y: text[key].hold_out(x, HELD_OUT_TEXT)):
        encode(clip, JUDGING_PROMPT.replace("{trigger}", phrase))
    with active(target.model_layers, model_effect.merge, lambda key, x, y: image[key].observe(x, y)):
        for cond in conds:
            _sample(model, cond, noise, latent, settings, evaluated)
    statistics = _finish(text | image)
    return Capture(statistics, {key: layer.gram.to(torch.device("cpu")) for key, layer in (text | image).items()})


class _Unguided(comfy.samplers.CFGGuider):
    """Samples by the model's prediction for one prompt, as published.

    Guidance nodes (SAG, PAG, rescaled CFG, …) rely on a prediction without the prompt and evaluate the model again.
    Their functions are called for guided predictions only, so they do not affect this one.
    """

    def __init__(self, model: ModelPatcher, cond: list, evaluated: Callable[[], None]):
        super().__init__(model)
        self.inner_set_conds({"positive": cond})
        self.evaluated = evaluated

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None = None) -> Tensor:
        conds = [self.conds["positive"], None]  # two, as other nodes' wrappers expect
        prediction = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)[0]
        self.evaluated()
        return prediction


def _sample(
    model: ModelPatcher, cond: list, noise: Tensor, latent: Tensor, settings: CaptureSettings, evaluated
) -> None:
    """Run the sampler once without guidance."""
    _Unguided(model, cond, evaluated).sample(
        noise,
        latent,
        comfy.samplers.sampler_object("euler"),
        noise_levels(model, settings),
        disable_pbar=True,
        seed=settings.seed,
    )


def _moments(
    layers: Layers, effect: Effect, grams: Grams, device, settings: CaptureSettings, calls: int, held_out: int
) -> dict[str, LayerMoments]:
    moments = {}
    for key, module in layers.items():
        width = input_width(module)
        moments[key] = LayerMoments(
            gram=grams[key].to(device) if key in grams else Gram(width, device),
            delta=effect.merge.get(key) or lowrank.zero(output_width(module), width),
            seed=settings.seed,
            calls=calls,
            samples=settings.samples,
            held_out=held_out,
            # G costs in² per token, the layer itself in · out: a layer with narrow output counts fewer of a picture's
            # tokens.
            share=min(1.0, output_width(module) / width) if held_out else 1.0,
        )
    return moments


def _finish(moments: dict[str, LayerMoments]) -> dict[str, ConceptStatistics]:
    statistics = {}
    for key, layer in moments.items():
        try:
            statistics[key] = layer.finish()
        except ValueError as error:
            raise ValueError(f"Capture of {key} failed: {error}. Check the model and its upstream patches.") from error
    return statistics
