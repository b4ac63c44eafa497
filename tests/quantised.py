"""Small models with their linear layers quantised, in three forms that users load, beside the same models dequantised.

- `packed`: a real Q8_0 file, in tensors, layers and a patcher of the form that ComfyUI-GGUF gives them.
- `four_bit`: as bitsandbytes keeps them: a column of bytes, with scales and a table beside it in the state dict.
- `host_fp8`: ComfyUI's own quantised layers, which are no `nn.Linear`.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import architectures
import comfy.lora
import comfy.ops
import comfy.utils
import gguf
import torch
import torch.nn.functional as F
from architectures import Model
from comfy.model_patcher import ModelPatcher
from gguf import GGMLQuantizationType
from torch import Tensor, nn

PLAIN, Q8 = GGMLQuantizationType.F32, GGMLQuantizationType.Q8_0
BLOCK = 32  # values that share a scale
BLOCK_BYTES = 2 + BLOCK


class Pair(NamedTuple):
    """The same weights twice: as the form keeps them, and in float32."""

    quantised: Model
    plain: Model


@functools.cache
def pair(form: str, name: str, folder: Path) -> Pair:
    """An architecture in a form. folder: for files that belong to it."""
    quantised, plain = (architectures.build.__wrapped__(name) for _ in range(2))
    FORMS[form](quantised, plain, folder)
    return Pair(quantised, plain)


def _replace_linear_layers(
    quantised: Model, plain: Model, make: Callable[[nn.Linear], tuple[nn.Module, Tensor]]
) -> None:
    """Of the diffusion model. make: a layer -> what takes its place, and the weight in float32 that this stands for."""
    root, twin = quantised.model.model, plain.model.model
    for name, layer in [*root.named_modules()]:
        if isinstance(layer, nn.Linear):
            made, weight = make(layer)
            path, _, last = name.rpartition(".")
            setattr(root.get_submodule(path), last, made)
            twin.get_submodule(name).weight.copy_(weight)


# --- ComfyUI-GGUF ----------------------------------------------------------------------------------------------------


class Packed(Tensor):
    """Bytes that pass for a weight: made with keywords, `clone` and `detach` return it itself, `shape` is the layer's."""

    def __new__(cls, data, **kind):
        return super().__new__(cls, data)

    def __init__(self, data, *, tensor_type, tensor_shape):
        super().__init__()
        self.tensor_type, self.tensor_shape, self.patches = tensor_type, tensor_shape, []

    def to(self, *args, **kwargs):
        new = super().to(*args, **kwargs)
        vars(new).update(tensor_type=self.tensor_type, tensor_shape=self.tensor_shape, patches=[*self.patches])
        return new

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self

    @property
    def shape(self):
        return getattr(self, "tensor_shape", self.size())


class PackedLayer(nn.Module):
    """Dequantises when it runs, and applies the patches that its weight carries."""

    largest = False

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Sizes without data, and one key more, so that the host reserves memory to dequantise the largest weight."""
        for name, tensor in self._parameters.items():
            if tensor is not None:
                destination[prefix + name] = torch.zeros_like(tensor, device="meta")
        if self.largest:
            destination[f"{prefix}temp.weight"] = torch.empty(*self.weight.shape, device="meta")

    def get_weight(self, tensor, dtype):
        weight = tensor.as_subclass(Tensor)
        if tensor.tensor_type == Q8:
            blocks = weight.reshape(-1, BLOCK_BYTES)
            scales, codes = blocks[:, :2].view(torch.float16), blocks[:, 2:].view(torch.int8)
            weight = (scales.to(dtype) * codes).reshape(tensor.shape)
        for patches, key in tensor.patches:
            weight = comfy.lora.calculate_weight(patches, weight, key)
        return weight.to(dtype)

    def parameters_for(self, x):
        return (None if p is None else self.get_weight(p, x.dtype) for p in (self.weight, self.bias))


class PackedLinear(PackedLayer, nn.Linear):
    def forward(self, x):
        return F.linear(x, *self.parameters_for(x))


class PackedConv2d(PackedLayer, nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, *self.parameters_for(x))


class PackedLayerNorm(PackedLayer, nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, *self.parameters_for(x), self.eps)


class PackedGroupNorm(PackedLayer, nn.GroupNorm):
    def forward(self, x):
        return F.group_norm(x, self.num_groups, *self.parameters_for(x), self.eps)


PACKED_LAYERS = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    nn.LayerNorm: PackedLayerNorm,
    nn.GroupNorm: PackedGroupNorm,
}


class PackedPatcher(ModelPatcher):
    """Leaves packed weights as they are and puts the patches on them."""

    def patch_weight_to_device(self, key, *args, **kwargs):
        weight = comfy.utils.get_attr(self.model, key)
        if getattr(weight, "tensor_type", PLAIN) == PLAIN:
            super().patch_weight_to_device(key, *args, **kwargs)
        elif key in self.patches:
            weight.patches = [(self.patches[key], key)]

    def unpatch_model(self, device_to=None, unpatch_weights=True):
        for weight in self.model.parameters():
            if unpatch_weights and isinstance(weight, Packed):
                weight.patches = []
        super().unpatch_model(device_to=device_to, unpatch_weights=unpatch_weights)


def _write(path: Path, state: dict[str, Tensor]) -> None:
    """Everything in Q8_0, rows that are no multiple of a block by their values in order, as converters do."""
    writer = gguf.GGUFWriter(path, "test")
    for key, weight in state.items():
        rows = weight.numpy() if weight.shape[-1] % BLOCK == 0 else weight.reshape(-1, BLOCK).numpy()
        writer.add_tensor(key, gguf.quants.quantize(rows, Q8), raw_dtype=Q8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def packed(quantised: Model, plain: Model, folder: Path) -> None:
    """Every layer, the text encoder's too; norms, biases and what blocks do not fit are in float32 but of the same class."""
    for part in ("model", "clip"):
        root, twin = (m.model.model if part == "model" else m.clip.cond_stage_model for m in (quantised, plain))
        layers = {
            name: kind
            for name, module in root.named_modules()
            for layer, kind in PACKED_LAYERS.items()
            if isinstance(module, layer)
        }
        own = {name: root.get_submodule(name).weight for name in layers}
        own = {name: weight.detach() for name, weight in own.items() if weight is not None and weight.ndim > 1}
        path = folder / f"{part}.gguf"
        _write(path, {name: weight for name, weight in own.items() if weight.numel() % BLOCK == 0})
        read = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        for name, kind in layers.items():
            module = root.get_submodule(name)
            module.__class__ = kind
            if name in read:
                data, shape = torch.from_numpy(read[name].data.copy()), module.weight.shape
                module.weight = nn.Parameter(Packed(data, tensor_type=Q8, tensor_shape=shape), requires_grad=False)
                of_file = torch.from_numpy(gguf.quants.dequantize(read[name].data, Q8))
                twin.get_submodule(name).weight.copy_(of_file.reshape(shape))
            for key, tensor in [*module._parameters.items()]:
                if tensor is not None and not isinstance(tensor, Packed):
                    wrapped = Packed(tensor.detach(), tensor_type=PLAIN, tensor_shape=tensor.shape)
                    setattr(module, key, nn.Parameter(wrapped, requires_grad=False))
        root.get_submodule(max(own, key=lambda name: own[name].numel())).largest = True
    quantised.model.__class__ = quantised.clip.patcher.__class__ = PackedPatcher


# --- bitsandbytes ----------------------------------------------------------------------------------------------------

TABLE = torch.linspace(-1, 1, 16)


class FourBit(nn.Parameter):
    """Two codes to a byte, in one column; what they stand for is on the tensor."""

    def __new__(cls, weight):
        rows = weight.reshape(-1, BLOCK)
        scales = rows.abs().amax(dim=1, keepdim=True)
        codes = ((rows / scales + 1) * 7.5).round().to(torch.uint8).reshape(-1, 2)
        new = torch.Tensor._make_subclass(cls, (codes[:, :1] * 16 + codes[:, 1:]))
        new.absmax, new.quant_map, new.of_layer = scales, TABLE, weight.shape
        return new

    def dequantised(self):
        codes = torch.cat([self.data // 16, self.data % 16], dim=1).long()
        return (self.quant_map[codes].reshape(-1, BLOCK) * self.absmax).reshape(self.of_layer)


class FourBitLinear(nn.Module):
    """No `nn.Linear`, but with its sizes."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = FourBit(layer.weight.detach()), layer.bias

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.absmax"] = self.weight.absmax
        destination[f"{prefix}weight.quant_map"] = self.weight.quant_map
        destination[f"{prefix}weight.quant_state.bitsandbytes__nf4"] = torch.zeros(4, dtype=torch.uint8)

    def forward(self, x):
        return F.linear(x, self.weight.dequantised(), self.bias)


def _four_bit_layer(layer: nn.Linear) -> tuple[nn.Module, Tensor]:
    made = FourBitLinear(layer)
    return made, made.weight.dequantised()


def four_bit(quantised: Model, plain: Model, folder: Path) -> None:
    _replace_linear_layers(quantised, plain, _four_bit_layer)


# --- the host --------------------------------------------------------------------------------------------------------

FP8_CONFIGURATION = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}


def _fp8_layer(layer: nn.Linear) -> tuple[nn.Module, Tensor]:
    scale = layer.weight.abs().max() / 448
    codes = (layer.weight.detach() / scale).to(torch.float8_e4m3fn)
    state = {"weight": codes, "weight_scale": scale}
    state["comfy_quant"] = torch.tensor(list(json.dumps(FP8_CONFIGURATION).encode()), dtype=torch.uint8)
    if layer.bias is not None:
        state["bias"] = layer.bias.detach()
    kind = comfy.ops.mixed_precision_ops(compute_dtype=torch.float32).Linear
    made = kind(layer.in_features, layer.out_features, bias=layer.bias is not None)
    made.load_state_dict(state)
    return made, codes.float() * scale


def host_fp8(quantised: Model, plain: Model, folder: Path) -> None:
    _replace_linear_layers(quantised, plain, _fp8_layer)


FORMS: dict[str, Callable[[Model, Model, Path], None]] = {
    "packed": packed,
    "four_bit": four_bit,
    "host_fp8": host_fp8,
}
