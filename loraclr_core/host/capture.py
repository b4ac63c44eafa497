"""Second moments of the layers' inputs, concept by concept, through the host's own sampler.

A concept acts through forward hooks that add its low-rank product to each layer's output, and the same hooks observe
what goes in and out. No weight is patched, so a capture leaves nothing to undo but its hooks, and a quantised base
serves as well as any. The hooks know modules, not block names: whatever architecture the host samples is captured.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import comfy.sample
import comfy.samplers
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .. import lowrank
from ..gram import Gram
from ..lowrank import LowRank
from ..moments import ConceptStatistics, LayerMoments
from .adapters import Effect, shapes
from .weights import input_width

# Tokens per layer and concept that are kept: to measure distances between concepts, and to judge the merge on.
SAMPLES = 16
HELD_OUT = 12
# The text encoder is judged on the first tokens of a prompt that no capture counts.
HELD_OUT_TEXT = 8
JUDGING_PROMPT = "a picture of {trigger}"
# Latent side of a capture without a latent connected: 512 pixels for most models.
LATENT_SIDE = 64


class CaptureSettings(NamedTuple):
    """prompts: templates with `{trigger}`. latent_shape: (channels, …, height, width), None for the default."""

    prompts: tuple[str, ...]
    steps: int
    seed: int
    latent_shape: tuple[int, ...] | None
    samples: int = SAMPLES

    def evaluations(self) -> int:
        """Model evaluations of one concept's capture."""
        return len(self.prompts) * self.steps


Layers = dict[str, nn.Module]
# Sums over concepts of each layer's second moments, by weight key.
Grams = dict[str, Gram]
Observer = Callable[[str, Tensor, Tensor], None]


class Target(NamedTuple):
    """The model a capture runs on: the diffusion model and, where it is merged too, the text encoder."""

    model: ModelPatcher
    clip: object
    model_layers: Layers
    clip_layers: Layers

    def layers(self) -> list[str]:
        return [*self.model_layers, *self.clip_layers]


def capture(
    target: Target,
    model_effect: Effect,
    clip_effect: Effect,
    phrase: str,
    settings: CaptureSettings,
    grams: Grams,
    device: torch.device,
    step_done: Callable[[], None],
) -> dict[str, ConceptStatistics]:
    """Statistics of every layer of `target` while one concept alone is active.

    phrase: what `{trigger}` stands for. grams: where the concept's second moments are added; of no use after an error.
    step_done is called after every evaluation and may raise to stop.
    Raises ValueError where a layer sees NaN.
    """
    model, clip = with_summed(target.model, model_effect), _clip_with_summed(target.clip, clip_effect)
    prompts = [template.replace("{trigger}", phrase) for template in settings.prompts]
    latent = empty_latent(target.model, settings.latent_shape)
    noise = comfy.sample.prepare_noise(latent, settings.seed)
    # The bare trigger as well: the paper's text encoder layers see "{c}" beside "photo of a {c}".
    encoded_only = [phrase] if phrase not in prompts else []

    # A prompt has few tokens, and the trigger's are the ones that matter: all count, and another prompt is the judge.
    text = _moments(target.clip_layers, clip_effect, grams, device, settings, len(prompts) + len(encoded_only), 0)
    image = _moments(target.model_layers, model_effect, grams, device, settings, settings.evaluations(), HELD_OUT)
    with _observing(target.clip_layers, clip_effect.merge, lambda key, x, y: text[key].observe(x, y)):
        conds = [_encode(clip, prompt) for prompt in prompts]
        for prompt in encoded_only:
            _encode(clip, prompt)
    with _observing(target.clip_layers, clip_effect.merge, lambda key, x, y: text[key].hold_out(x, HELD_OUT_TEXT)):
        _encode(clip, JUDGING_PROMPT.replace("{trigger}", phrase))
    with _observing(target.model_layers, model_effect.merge, lambda key, x, y: image[key].observe(x, y)):
        for cond in conds:
            _sample(model, cond, noise, latent, settings, step_done)
    return _finish(text, grams) | _finish(image, grams)


def empty_latent(model: ModelPatcher, shape: tuple[int, ...] | None) -> Tensor:
    """(1, channels, [frames,] height, width) of zeros, as the model's latent format wants it."""
    channels = model.get_model_object("latent_format").latent_channels
    latent = torch.zeros(1, *(shape or (channels, LATENT_SIDE, LATENT_SIDE)))
    return comfy.sample.fix_empty_latent_channels(model, latent)


def encode(target: Target, prompt: str, effect: Effect, *summed: Effect) -> list:
    """Conditioning by the text encoder with one effect's merged differences, and what can only be summed of all."""
    with _observing(target.clip_layers, effect.merge, lambda key, x, y: None):
        return _encode(_clip_with_summed(target.clip, effect, *summed), prompt)


def with_summed(patcher: ModelPatcher, *effects: Effect) -> ModelPatcher:
    """A clone with the differences that no hook can add (biases, norms, wide convolutions) as ordinary patches."""
    if not any(effect.add for effect in effects):
        return patcher
    patcher = patcher.clone()
    for effect in effects:
        known = shapes(patcher, effect.add)
        patcher.add_patches({key: ("diff", (dense(d, known[key]),)) for key, d in effect.add.items()})
    return patcher


def _clip_with_summed(clip, *effects: Effect):
    if any(effect.add for effect in effects):
        clip, patcher = clip.clone(), clip.patcher
        clip.patcher = with_summed(patcher, *effects)
    return clip


def dense(difference: LowRank | Tensor, shape: torch.Size) -> Tensor:
    """A difference as the tensor of `shape` that is added to the weight."""
    return difference.dense().reshape(shape) if isinstance(difference, LowRank) else difference


def _encode(clip, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def _sample(
    model: ModelPatcher, cond: list, noise: Tensor, latent: Tensor, settings: CaptureSettings, step_done
) -> None:
    """One run without guidance, as published."""
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": cond})
    guider.sample(
        *(noise, latent, comfy.samplers.sampler_object("euler"), noise_levels(model, settings)),
        callback=lambda step, denoised, x, total: step_done(),
        disable_pbar=True,
        seed=settings.seed,
    )


def noise_levels(model: ModelPatcher, settings: CaptureSettings) -> Tensor:
    """σ of each step, and 0."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", settings.steps)


def _moments(
    layers: Layers, effect: Effect, grams: Grams, device, settings: CaptureSettings, calls: int, held_out: int
) -> dict[str, LayerMoments]:
    moments = {}
    for key, module in layers.items():
        width = input_width(module)
        gram = grams[key].to(device) if key in grams else Gram(width, device)
        delta = effect.merge.get(key) or lowrank.zero(output_width(module), width)
        # G costs in² per token and the layer itself in · out: a layer that narrows counts fewer of a picture's tokens.
        share = min(1.0, output_width(module) / width) if held_out else 1.0
        moments[key] = LayerMoments(gram, delta, settings.seed, calls, settings.samples, held_out, share)
    return moments


def _finish(moments: dict[str, LayerMoments], grams: Grams) -> dict[str, ConceptStatistics]:
    captured = {}
    for key, layer in moments.items():
        try:
            captured[key] = layer.finish()
        except ValueError as error:
            raise ValueError(f"Capture of {key} failed: {error}. Check the model and its upstream patches.") from error
        grams[key] = layer.gram.to(torch.device("cpu"))
    return captured


@contextlib.contextmanager
def _observing(layers: Layers, deltas: dict[str, LowRank], observe: Observer) -> Iterator[None]:
    """Every layer with its difference added, and `observe(key, inputs, outputs)` called with its tokens."""
    with contextlib.ExitStack() as hooks:
        for key, module in layers.items():
            hook = _hook(key, deltas.get(key), observe)
            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _hook(key: str, delta: LowRank | None, observe: Observer):
    def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        nonlocal delta
        inputs = args[0] if args else kwargs["input"]
        if delta is not None:
            delta = delta.to(inputs)  # a no-op after the first call
            _add(module, delta, inputs, output)
        observe(key, input_tokens(module, inputs), output_tokens(module, output))
        return output

    return hook


# --- a layer as a matrix product over tokens -------------------------------------------------------------------------


def output_width(module: nn.Module) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else module.out_features


def input_tokens(module: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs of a linear layer (…, in) -> (tokens, in); of a convolution (b, c, h, w) -> (tokens, c·kh·kw)."""
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(-1, inputs.shape[-1])
    patches = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def output_tokens(module: nn.Module, output: Tensor) -> Tensor:
    """(…, out) or (b, out, h, w) -> (tokens, out), in the order of `input_tokens`."""
    if not isinstance(module, nn.Conv2d):
        return output.reshape(-1, output.shape[-1])
    return output.flatten(2).transpose(1, 2).flatten(0, 1)


def _add(module: nn.Module, delta: LowRank, inputs: Tensor, output: Tensor) -> None:
    """Adds ΔW's part to the layer's output, in place."""
    if not isinstance(module, nn.Conv2d):
        hidden = (inputs @ delta.down.T).flatten(0, -2)
        output.view(-1, output.shape[-1]).addmm_(hidden, delta.up.T)
        return
    output += product(module, delta, inputs)


def product(module: nn.Module, delta: LowRank, inputs: Tensor) -> Tensor:
    """What ΔW adds to the layer's output."""
    if not isinstance(module, nn.Conv2d):
        return delta.apply(inputs)
    down = delta.down.view(-1, module.in_channels, *module.kernel_size)
    hidden = F.conv2d(inputs, down, stride=module.stride, padding=module.padding, dilation=module.dilation)
    return F.conv2d(hidden, delta.up[:, :, None, None])
