"""LoRA state dicts of every adapter type, for a weight of any shape, by the formats' public descriptions."""

import math

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


def lora(name: str, shape: tuple[int, ...], rank: int = 4, alpha: float | None = 2.0, scale: float = 1.0) -> StateDict:
    """LoRA for a linear layer, LoCon for a convolution."""
    out, width, kernel = shape[0], shape[1], shape[2:]
    state = {
        f"{name}.lora_up.weight": scale * torch.randn(out, rank, *(1 for _ in kernel)) / rank**0.5,
        f"{name}.lora_down.weight": torch.randn(rank, width, *kernel) / math.prod(shape[1:]) ** 0.5,
    }
    return state if alpha is None else state | {f"{name}.alpha": torch.tensor(alpha)}


def peft(name: str, shape: tuple[int, ...], rank: int = 4) -> StateDict:
    return {
        f"{name}.lora_A.weight": torch.randn(rank, shape[1]) / shape[1] ** 0.5,
        f"{name}.lora_B.weight": torch.randn(shape[0], rank) / rank**0.5,
    }


def tucker(name: str, shape: tuple[int, ...], rank: int = 4) -> StateDict:
    """LoCon of a convolution with its kernel in a middle factor."""
    return {
        f"{name}.lora_up.weight": torch.randn(shape[0], rank, 1, 1) / rank**0.5,
        f"{name}.lora_mid.weight": torch.randn(rank, rank, *shape[2:]) / rank,
        f"{name}.lora_down.weight": torch.randn(rank, shape[1], 1, 1) / shape[1] ** 0.5,
        f"{name}.alpha": torch.tensor(2.0),
    }


def dora(name: str, shape: tuple[int, ...], rank: int = 4) -> StateDict:
    return lora(name, shape, rank) | {f"{name}.dora_scale": 1 + 0.1 * torch.rand(shape[0], *(1 for _ in shape[1:]))}


def loha(name: str, shape: tuple[int, ...], rank: int = 2) -> StateDict:
    width = math.prod(shape[1:])
    return {
        f"{name}.hada_w1_a": torch.randn(shape[0], rank) / 2,
        f"{name}.hada_w1_b": torch.randn(rank, width) / width**0.25,
        f"{name}.hada_w2_a": torch.randn(shape[0], rank) / 2,
        f"{name}.hada_w2_b": torch.randn(rank, width) / width**0.25,
        f"{name}.alpha": torch.tensor(1.0),
    }


def lokr(name: str, shape: tuple[int, ...], rank: int = 2, block: int = 4) -> StateDict:
    out, width = shape[0] // block, math.prod(shape[1:]) // block
    return {
        f"{name}.lokr_w1": torch.randn(block, block) / block,
        f"{name}.lokr_w2_a": torch.randn(out, rank) / rank,
        f"{name}.lokr_w2_b": torch.randn(rank, width) / width**0.5,
        f"{name}.alpha": torch.tensor(1.0),
    }


def glora(name: str, shape: tuple[int, ...], rank: int = 4) -> StateDict:
    out, width = shape
    return {
        f"{name}.a1.weight": torch.randn(width, rank) / width**0.5,
        f"{name}.a2.weight": torch.randn(rank, width) / width**0.5,
        f"{name}.b1.weight": torch.randn(out, rank) / rank,
        f"{name}.b2.weight": torch.randn(rank, width) / width**0.5,
        f"{name}.alpha": torch.tensor(2.0),
    }


def oft(name: str, shape: tuple[int, ...], block: int = 8) -> StateDict:
    return {f"{name}.oft_blocks": 0.05 * torch.randn(shape[0] // block, block, block)}


def boft(name: str, shape: tuple[int, ...], block: int = 8, stages: int = 2) -> StateDict:
    blocks = 0.05 * torch.randn(stages, shape[0] // block, block, block)
    return {f"{name}.oft_blocks": blocks, f"{name}.alpha": torch.tensor(100.0)}


def full(name: str, shape: tuple[int, ...]) -> StateDict:
    return {f"{name}.diff": 0.05 * torch.randn(shape)}


def bias(name: str, shape: tuple[int, ...]) -> StateDict:
    return {f"{name}.diff_b": 0.1 * torch.randn(shape[0])}


LINEAR = {"LoRA": lora, "PEFT": peft, "DoRA": dora, "LoHa": loha, "LoKr": lokr, "GLoRA": glora}
LINEAR |= {"OFT": oft, "BOFT": boft, "full": full}
CONVOLUTION = {"LoCon": lora, "LoCon Tucker": tucker, "LoHa": loha, "LoKr": lokr, "OFT": oft, "full": full}
