"""PEFT's tensors beside a LoRA's two factors that ComfyUI does not read: DoRA's magnitudes and `lora_bias`."""

import comfy.model_management
import torch
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor

_SAVED = ("", ".weight", ".default", ".default.weight")
MAGNITUDES = tuple(f".lora_magnitude_vector{ending}" for ending in _SAVED)
BIASES = (".lora_B.bias", ".lora_B.default.bias", ".lora_up.bias", ".lora.up.bias", ".lora_linear_layer.up.bias")


class DoRA(WeightAdapterBase):
    """A DoRA by PEFT's formula, m · (W + s BA) / ‖W + s BA‖ with the norm of each row; weights = (up, down, alpha, m).

    ComfyUI's own `dora_scale` along the rows divides by ‖W‖ instead, so the magnitudes cannot be passed to it.
    """

    name = "peft_dora"

    def __init__(self, loaded_keys: set[str], weights: tuple):
        self.loaded_keys = loaded_keys
        self.weights = weights

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original_weight=None,
    ):
        """Turn `weight` into W + strength · (W' − W), in place like ComfyUI's adapters."""
        up, down, magnitude = (
            comfy.model_management.cast_to_device(self.weights[part], weight.device, intermediate_dtype)
            for part in (0, 1, 3)
        )
        alpha = self.weights[2]
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        before = weight.to(intermediate_dtype)
        learnt = before + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        size = learnt.flatten(1).norm(dim=1) + torch.finfo(intermediate_dtype).eps
        rows = (magnitude.reshape(weight.shape[0]) / size).reshape(-1, *(1 for _ in weight.shape[1:]))
        weight += function((strength * (rows * learnt - before)).type(weight.dtype))
        return weight


def with_magnitude(lora: LoRAAdapter, magnitude: Tensor) -> DoRA | None:
    """Return the LoRA as PEFT's DoRA, or None where it is not a plain LoRA."""
    up, down, alpha, *others = lora.weights
    return DoRA(lora.loaded_keys, (up, down, alpha, magnitude)) if others == [None, None, None] else None


def bias_difference(lora: LoRAAdapter | DoRA, bias: Tensor) -> tuple[str, tuple[Tensor]]:
    """Return the difference of `lora_bias` to the layer's bias, scaled like the factors, as a patch for ComfyUI."""
    _, down, alpha, *_ = lora.weights
    return "diff", (bias if alpha is None else bias * (alpha / down.shape[0]),)
