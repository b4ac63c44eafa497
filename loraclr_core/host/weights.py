"""Weights as a model stores them: plain, quantised by ComfyUI, or packed by the loader of another pack.

A packed weight has another shape than its layer. A state dict has keys that are no parameters: scales, tables, and
entries that a loader adds to reserve memory. A quantised layer need not be an `nn.Linear`, and the `clone` of a
loader's tensor class may return the tensor itself. Shapes are therefore taken from layers, not from tensors.
"""

import contextlib
import functools

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def is_linear(module: nn.Module) -> bool:
    """Return whether the layer is a product with one matrix.

    Quantised layers of ComfyUI and of other packs only resemble an `nn.Linear`. A bank of experts has the same two
    sizes, but no `forward`.
    """
    sized = hasattr(module, "in_features") and hasattr(module, "out_features")
    return isinstance(module, nn.Linear) or (sized and type(module).forward is not nn.Module.forward)


def weight_shape(module: nn.Module) -> torch.Size | None:
    """Return the shape of a linear layer's or a convolution's weight, however it is stored; None for other layers."""
    if is_linear(module):
        return torch.Size((module.out_features, module.in_features))
    if isinstance(module, _ConvNd):
        outer, inner = module.out_channels, module.in_channels
        if module.transposed:
            outer, inner = inner, outer
        return torch.Size((outer, inner // module.groups, *module.kernel_size))
    return None


def input_width(module: nn.Module) -> int:
    """Return the width of a linear layer's input, or of a convolution's unfolded input."""
    shape = weight_shape(module)
    assert shape is not None
    return shape[1:].numel()


def stored(patcher: ModelPatcher, key: str) -> Tensor:
    """Return a weight without its patches: ComfyUI's backup while they are applied.

    The patcher's own `get_key_patches` fails on keys that are no parameters. Raises AttributeError for such a key.
    """
    if key in patcher.hook_backup:
        return patcher.hook_backup[key][0]
    return patcher.backup[key].weight if key in patcher.backup else comfy.utils.get_attr(patcher.model, key)


def content(patcher: ModelPatcher, key: str, placed: object) -> object:
    """Return the content of a key of a model's state dict that identifies the model: a weight, or else `placed`.

    None where there is no data, or where the content follows from the layer's weight, as ComfyUI's scales do, which
    change when it patches.
    """
    with contextlib.suppress(AttributeError):
        if isinstance(weight := stored(patcher, key), Tensor):
            return weight
    module = functools.reduce(lambda of, name: getattr(of, name, None), key.split(".")[:-1], patcher.model)
    follows = is_wrapper(getattr(module, "weight", None))
    return None if follows or getattr(placed, "is_meta", False) else placed


def dequantised(patcher: ModelPatcher, key: str, device: torch.device) -> Tensor:
    """Return a dequantised copy of a weight without its patches; as stored where its layer has no way to dequantise."""
    path, _, name = key.rpartition(".")
    module = patcher.model.get_submodule(path)
    weight = stored(patcher, key)
    if hasattr(module, "get_weight"):  # ComfyUI-GGUF's, which also applies the patches that it finds on the tensor
        weight = copied(weight)
        weight.patches = []
        return module.get_weight(weight.to(device), torch.float32)
    convert = getattr(module, f"convert_{name}", lambda weight, **_: weight)  # ComfyUI's
    return convert(weight.to(device=device, copy=True), inplace=True)


def is_wrapper(parameter: object) -> bool:
    """Return whether a tensor keeps its data in other tensors, as ComfyUI's quantised ones do."""
    return hasattr(parameter, "__tensor_flatten__")


def rewrapped(parameter: Tensor) -> nn.Parameter:
    """Return a new wrapper of the same data, which is an inference tensor in inference mode."""
    names, kind = parameter.__tensor_flatten__()
    parts = {name: getattr(parameter, name) for name in names}
    made = type(parameter).__tensor_unflatten__(parts, kind, parameter.shape, parameter.stride())
    return nn.Parameter(made, requires_grad=False)


def copied(parameter: Tensor) -> Tensor:
    """Return a copy of the same class with the same attributes; outside of inference mode it is an ordinary tensor."""
    # The class's own `clone` may return the tensor itself.
    with torch._C.DisableTorchFunctionSubclass():
        copy = torch.Tensor.clone(torch.Tensor.detach(parameter))
    if type(copy) is not Tensor or type(parameter) is nn.Parameter:
        return nn.Parameter(copy, requires_grad=False)
    copy = Tensor._make_subclass(type(parameter), copy)
    vars(copy).update(vars(parameter))
    return copy
