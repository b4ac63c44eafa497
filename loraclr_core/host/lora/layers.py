"""A layer of the model as a matrix product over tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ...lowrank import LowRank
from ..weights import weight_shape

Layers = dict[str, nn.Module]  # by the key of the weight


def output_width(module: nn.Module) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else module.out_features


def input_tokens(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return inputs as tokens: (…, in) -> (tokens, in), or for a convolution (b, c, h, w) -> (tokens, c·kh·kw)."""
    if not isinstance(module, nn.Conv2d):
        return inputs.reshape(-1, inputs.shape[-1])
    patches = F.unfold(inputs, module.kernel_size, module.dilation, module.padding, module.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def output_tokens(module: nn.Module, output: Tensor) -> Tensor:
    """Return a layer's output, (…, out) or (b, out, h, w), as (tokens, out) in the order of `input_tokens`."""
    if not isinstance(module, nn.Conv2d):
        return output.reshape(-1, output.shape[-1])
    return output.flatten(2).transpose(1, 2).flatten(0, 1)


def product(module: nn.Module, delta: LowRank, inputs: Tensor) -> Tensor:
    """Return the contribution of a weight difference to the layer's output."""
    if not isinstance(module, _ConvNd):
        return delta.apply(inputs)
    shape = weight_shape(module)
    assert shape is not None
    hidden = module._conv_forward(inputs, delta.down.view(-1, *shape[1:]), None)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(module.kernel_size)]
    return convolve(hidden, delta.up.reshape(*delta.up.shape, *(1 for _ in module.kernel_size)))


def add_product(module: nn.Module, delta: LowRank, inputs: Tensor, output: Tensor) -> None:
    """Add the contribution of a weight difference to `output`, in place."""
    if isinstance(module, nn.Conv2d):
        output += product(module, delta, inputs)
        return
    hidden = (inputs @ delta.down.T).flatten(0, -2)
    output.view(-1, output.shape[-1]).addmm_(hidden, delta.up.T)


def dense(difference: LowRank | Tensor, shape: torch.Size) -> Tensor:
    """Return a difference as a tensor of the weight's `shape`."""
    return difference.dense().reshape(shape) if isinstance(difference, LowRank) else difference
