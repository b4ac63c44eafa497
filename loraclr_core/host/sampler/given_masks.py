"""Warnings about masks that were given for a whole picture, where only a part of it may be sampled.

A model is never told which part of a picture an upscaler samples. But a part often has another shape than the mask, and
an upscaler samples several parts within one run of its node.
"""

import torch
from comfy_execution.utils import ExecutionContext

from ...concept import Concept
from ...sampler import shares

SAME_SHAPE = 0.05  # relative tolerance of the ratio of width to height


def doubts(
    concepts: list[Concept], shape: torch.Size, node: ExecutionContext | None, before: ExecutionContext | None
) -> list[str]:
    """Return warnings about the concepts' masks for a latent of this shape, (batch, channels, height, width).

    node: the node whose run samples it. before: the node whose run sampled last with the same model.
    """
    pictures, _, height, width = shape
    masks = {concept.name: concept.mask for concept in concepts if concept.mask is not None}
    warnings = [
        f"The mask of “{name}” ({mask.shape[-1]}×{mask.shape[-2]}) has another shape than the picture and is stretched to it."
        for name, mask in masks.items()
        if not shares.is_shares(mask) and abs(mask.shape[-1] / mask.shape[-2] * height / width - 1) > SAME_SHAPE
    ]
    warnings += [
        f"Concept “{name}” has {len(mask)} masks for {pictures} pictures: they are taken in order, from the first again where"
        " they are too few."
        for name, mask in masks.items()
        if 1 < len(mask) != pictures
    ]
    if masks and node is not None and node == before:
        names = " and ".join(f"“{name}”" for name in masks)
        warnings.append(
            f"One node samples several times with masks for {names}. If it samples parts of the picture, as tiled upscalers"
            " and detailers do, each mask is squeezed into each part: give that node a second CLoRA Attention Contrast"
            " Sampler whose concepts have no masks."
        )
    return warnings
