"""Gradients through a model that the host has loaded for inference."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import comfy.model_management
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from . import weights


@contextlib.contextmanager
def gradients(in_place: bool, setting: str, models: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Autograd on, out of the inference mode that the executor runs nodes in.

    in_place: for models that add to their activations in place, which takes what is changed aside first, at a cost.
    setting: of the node, at 0 does without gradients. models: whose weights the host may move meanwhile, beside those that
    it has loaded now.
    Raises ValueError where another patch's tensors refuse to be differentiated.
    """
    models = {*models, *_loaded()}
    keeping = torch.autograd.graph.allow_mutation_on_saved_tensors() if in_place else contextlib.nullcontext()
    try:
        with torch.inference_mode(False), torch.enable_grad(), keeping, _training():
            yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise ValueError(
            f"Another patch on this model works on tensors that cannot be differentiated ({error}). Set {setting} to 0, or"
            " remove that patch."
        ) from error
    finally:
        if torch.is_inference_mode_enabled():
            for model in models.union(_loaded()):
                _make_movable(model)


def _loaded() -> list[nn.Module]:
    return [loaded.model.model for loaded in comfy.model_management.current_loaded_models if loaded.model is not None]


@contextlib.contextmanager
def _training() -> Iterator[None]:
    """The host's own switch: its fused kernels, which have no gradients, give way to torch's operations."""
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def make_normal(model: nn.Module) -> None:
    """Replaces parameters and buffers made in inference mode, which autograd refuses to save, by ordinary clones.

    One at a time, so the model is never held twice, and for good: the values are the same. Whenever the host patches
    weights anew they are inference tensors again, so this belongs before every gradient pass. The host's quantised weights
    are ordinary until the end of `gradients` only.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = weights.copied(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


def _make_movable(model: nn.Module) -> None:
    """Replaces quantised weights that are no inference tensors, which the host can neither move nor patch in inference mode.

    They come from `make_normal`, and from the host itself where it moved or patched a model outside of that mode.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if weights.is_wrapper(parameter) and not parameter.is_inference():
                module._parameters[name] = weights.rewrapped(parameter)


def check_weights_stay(model: nn.Module, device: torch.device, setting: str) -> None:
    """Raises ValueError where weights pass through the host's reused transfer buffers, which spoils a backward pass."""
    if comfy.model_management.NUM_STREAMS == 0:
        return
    if any(parameter.device != device for parameter in model.parameters()):
        raise ValueError(
            "The model does not fit on the device, and ComfyUI's asynchronous offloading overwrites weights that gradients"
            f" need. Start ComfyUI with --disable-async-offload, or set {setting} to 0."
        )


def attention(function: Callable, *args, **kwargs) -> Tensor:
    """An `optimized_attention_override` that can be differentiated: torch's own, whatever the host has chosen."""
    return attention_pytorch(*args, **kwargs)


def part_from_skips(transformer_options: dict) -> None:
    """Runs on from a copy after each input block: the host adds a ControlNet to the skip connections in place, which would
    change what the backward pass still needs."""
    patches = dict(transformer_options.get("patches", {}))
    name = "input_block_patch_after_skip"
    patches[name] = [*patches.get(name, []), lambda h, options: h.clone()]
    transformer_options["patches"] = patches
