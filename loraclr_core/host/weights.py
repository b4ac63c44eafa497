"""Weights as a model keeps them: plain, quantised by the host, or packed by the loader of another pack.

A packed weight has another shape than its layer, a state dict has keys that are no parameters (scales, tables, what a
loader puts there to reserve memory), a quantised layer need not be an `nn.Linear`, and a loader's tensor class may answer
`clone` with itself. Layers, not tensors, are asked for shapes here.
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

    The host's quantised layers and those of other packs only look like an `nn.Linear`. A bank of experts has the same two
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
    """Return the width of a linear layer's input; of a convolution's as a matrix product sees it."""
    shape = weight_shape(module)
    assert shape is not None
    return shape[1:].numel()


def stored(patcher: ModelPatcher, key: str) -> Tensor:
    """Return a weight without its patches: the host's copy of it while they are applied.

    The patcher's own `get_key_patches` fails on keys that are no parameters. Raises AttributeError for one of those.
    """
    if key in patcher.hook_backup:
        return patcher.hook_backup[key][0]
    return patcher.backup[key].weight if key in patcher.backup else comfy.utils.get_attr(patcher.model, key)


def content(patcher: ModelPatcher, key: str, placed: object) -> object:
    """Return what tells one model from another at a key of its state dict: the weight, or what is `placed` at another key.

    None where there is no data, or where it follows from the layer's weight: the host's scales, which change as it patches.
    """
    with contextlib.suppress(AttributeError):
        if isinstance(weight := stored(patcher, key), Tensor):
            return weight
    module = functools.reduce(lambda of, name: getattr(of, name, None), key.split(".")[:-1], patcher.model)
    follows = is_wrapper(getattr(module, "weight", None))
    return None if follows or getattr(placed, "is_meta", False) else placed


def dequantised(patcher: ModelPatcher, key: str, device: torch.device) -> Tensor:
    """Return a copy of a weight without its patches; as it is stored where its layer does not say how to dequantise it."""
    path, _, name = key.rpartition(".")
    module = patcher.model.get_submodule(path)
    weight = stored(patcher, key)
    if hasattr(module, "get_weight"):  # ComfyUI-GGUF's, which also applies the patches that it finds on the tensor
        weight = copied(weight)
        weight.patches = []
        return module.get_weight(weight.to(device), torch.float32)
    convert = getattr(module, f"convert_{name}", lambda weight, **_: weight)  # the host's
    return convert(weight.to(device=device, copy=True), inplace=True)


def is_wrapper(parameter: object) -> bool:
    """Return whether a tensor keeps its data in others, as the host's quantised ones do."""
    return hasattr(parameter, "__tensor_flatten__")


def rewrapped(parameter: Tensor) -> nn.Parameter:
    """Return another wrapper of the same data; an inference tensor where that is the mode."""
    names, kind = parameter.__tensor_flatten__()
    parts = {name: getattr(parameter, name) for name in names}
    made = type(parameter).__tensor_unflatten__(parts, kind, parameter.shape, parameter.stride())
    return nn.Parameter(made, requires_grad=False)


def copied(parameter: Tensor) -> Tensor:
    """Return a copy, of the same class and with the same attributes; outside of inference mode no inference tensor."""
    # Not the class's own `clone`, which may return the tensor itself.
    with torch._C.DisableTorchFunctionSubclass():
        copy = torch.Tensor.clone(torch.Tensor.detach(parameter))
    if type(copy) is not Tensor or type(parameter) is nn.Parameter:
        return nn.Parameter(copy, requires_grad=False)
    copy = Tensor._make_subclass(type(parameter), copy)
    vars(copy).update(vars(parameter))
    return copy
