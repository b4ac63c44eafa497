"""Gradients through a model that ComfyUI has loaded for inference."""

import contextlib
import importlib
from collections.abc import Callable, Iterable, Iterator

import comfy.model_management
import comfy.quant_ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor, nn

from . import weights

# Fused kernels that ComfyUI uses in training too, in Anima: one in 0.30, the other in older versions.
FUSED, UNFUSED = ("rms_rope_split_half", "apply_rope_split_half"), "comfy_kitchen.backends.eager.rope"


@contextlib.contextmanager
def gradients(in_place: bool, setting: str, models: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Turn autograd on, and leave the inference mode in which the executor runs nodes.

    in_place: for models that add to their activations in place; autograd then saves copies of the changed tensors, at a
    cost. setting: the node's setting that at 0 needs no gradients, "" where there is none. models: further models whose
    weights ComfyUI may move meanwhile, beside those that it has loaded now. Raises ValueError where another patch's
    tensors cannot be differentiated.
    """
    models = {*models, *_list_loaded()}
    keeping = torch.autograd.graph.allow_mutation_on_saved_tensors() if in_place else contextlib.nullcontext()
    try:
        with torch.inference_mode(False), torch.enable_grad(), keeping, _as_in_training():
            yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        remedy = f"Set {setting} to 0, or remove that patch." if setting else "Remove that patch."
        raise ValueError(
            f"Another patch on this model works on tensors that cannot be differentiated ({error}). {remedy}"
        ) from error
    finally:
        if torch.is_inference_mode_enabled():
            for model in models.union(_list_loaded()):
                _make_movable(model)


def _list_loaded() -> list[nn.Module]:
    return [loaded.model.model for loaded in comfy.model_management.current_loaded_models if loaded.model is not None]


@contextlib.contextmanager
def _as_in_training() -> Iterator[None]:
    """Set ComfyUI's own switches for what has no gradients.

    Fused kernels are replaced by torch's operations. Weights that are kept in RAM get memory of their own whenever they are
    used, not one of the few buffers of asynchronous offloading, which are overwritten before the backward pass.
    """
    with contextlib.ExitStack() as changes:
        changes.enter_context(_changed(comfy.model_management, in_training=True, NUM_STREAMS=0))
        kernels = getattr(comfy.quant_ops, "ck", None)
        if names := [name for name in FUSED if hasattr(kernels, name)]:
            unfused = importlib.import_module(UNFUSED)
            changes.enter_context(_changed(kernels, **{name: getattr(unfused, name) for name in names}))
        yield


@contextlib.contextmanager
def _changed(module: object, **values) -> Iterator[None]:
    """Set variables of a module within the context."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def make_normal(model: nn.Module) -> None:
    """Replace parameters and buffers made in inference mode, which autograd refuses to save, by ordinary clones.

    They are replaced one at a time, so the model is never held twice, and permanently, because the values are the same.
    When ComfyUI patches weights again they become inference tensors again, so this must be called before every gradient
    pass. ComfyUI's quantised weights stay ordinary only until the end of `gradients`. Weights that ComfyUI pinned in RAM
    stay as they are: they are used through copies on the device only, and their memory must not be freed before it unpins
    them.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference() and not parameter.is_pinned():
                module._parameters[name] = weights.copied(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


def _make_movable(model: nn.Module) -> None:
    """Turn quantised weights into inference tensors: ComfyUI can neither move nor patch others in inference mode.

    Ordinary ones come from `make_normal`, and from ComfyUI itself where it moved or patched a model outside of that
    mode.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if weights.is_wrapper(parameter) and not parameter.is_inference():
                module._parameters[name] = weights.rewrapped(parameter)


def attention(function: Callable, *args, **kwargs) -> Tensor:
    """Attend by torch's own attention, which has gradients; an `optimized_attention_override`."""
    return attention_pytorch(*args, **kwargs)


def part_from_skips(transformer_options: dict) -> None:
    """Continue from a copy after each input block.

    ComfyUI adds a ControlNet to the skip connections in place, which would change tensors that the backward pass needs.
    """
    patches = dict(transformer_options.get("patches", {}))
    name = "input_block_patch_after_skip"
    patches[name] = [*patches.get(name, []), lambda h, options: h.clone()]
    transformer_options["patches"] = patches
