"""A concept active in a model, whose low-rank part changes no weight.

Forward hooks add the concept's low-rank product to each layer's output. Removing the hooks undoes everything, and a
quantised base works as well as any other. Differences that no hook can add become ordinary patches of a clone.
"""

import contextlib
from collections.abc import Callable, Iterator

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...lowrank import LowRank
from .adapters import Effect, shapes
from .layers import Layers, add_product, dense, input_tokens, output_tokens, product

Observer = Callable[[str, Tensor, Tensor], None]  # the weight's key, inputs (tokens, in), outputs (tokens, out)


def with_summed(patcher: ModelPatcher, *effects: Effect) -> ModelPatcher:
    """Return a clone patched with all differences that can only be summed: biases, norms, wide convolutions."""
    if not any(effect.add for effect in effects):
        return patcher
    patcher = patcher.clone()
    for effect in effects:
        sizes = shapes(patcher, effect.add)
        patcher.add_patches({key: ("diff", (dense(d, sizes[key]),)) for key, d in effect.add.items()})
    return patcher


def clip_with_summed(clip: comfy.sd.CLIP, *effects: Effect) -> comfy.sd.CLIP:
    """Return a text encoder patched in the same way."""
    if any(effect.add for effect in effects):
        clip, patcher = clip.clone(), clip.patcher
        clip.patcher = with_summed(patcher, *effects)
    return clip


@contextlib.contextmanager
def active(layers: Layers, deltas: dict[str, LowRank], observe: Observer | None = None) -> Iterator[None]:
    """Add the effect of each weight difference to its layer's output, in place, and let `observe` see the tokens."""
    ready: dict[str, LowRank] = {}

    def add(key: str, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        if key in deltas:
            ready[key] = ready.get(key, deltas[key]).to(inputs)  # no copy after the first call
            add_product(module, ready[key], inputs, output)
        if observe is not None:
            observe(key, input_tokens(module, inputs), output_tokens(module, output))
        return output

    with _hook(layers, add):
        yield


@contextlib.contextmanager
def differentiable(layers: Layers, deltas: dict[str, LowRank]) -> Iterator[None]:
    """Add the effect of each weight difference to its layer's output, differentiable by the difference's factors."""

    def add(key: str, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        return output + product(module, deltas[key].to(inputs), inputs) if key in deltas else output

    with _hook(layers, add):
        yield


@contextlib.contextmanager
def _hook(layers: Layers, add: Callable[[str, nn.Module, Tensor, Tensor], Tensor]) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for key, module in layers.items():

            def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor, key: str = key) -> Tensor:
                return add(key, module, args[0] if args else kwargs["input"], output)

            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield
