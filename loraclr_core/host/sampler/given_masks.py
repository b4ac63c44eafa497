"""What a user must hear about masks given for a whole picture where that picture, or only a part of it, is sampled.

Nothing tells a model which part of a picture an upscaler samples. But a part often has another shape than the mask, and an
upscaler samples several within one run of its node.
"""

import torch
from comfy_execution.utils import ExecutionContext

from ...concept import Concept

SAME_SHAPE = 0.05  # of the ratio of width to height


def doubts(
    concepts: list[Concept], shape: torch.Size, node: ExecutionContext | None, before: ExecutionContext | None
) -> list[str]:
    """Return what may be wrong with the concepts' masks for a latent of this shape, (batch, channels, height, width), in words.

    node: whose run samples it. before: whose sampled with the same model before.
    """
    pictures, _, height, width = shape
    given = {concept.name: concept.mask for concept in concepts if concept.mask is not None}
    found = [
        f"The mask of “{name}” ({mask.shape[-1]}×{mask.shape[-2]}) has another shape than the picture and is stretched to it."
        for name, mask in given.items()
        if abs(mask.shape[-1] / mask.shape[-2] * height / width - 1) > SAME_SHAPE
    ]
    found += [
        f"Concept “{name}” has {len(mask)} masks for {pictures} pictures: they are taken in order, from the first again where"
        " they are too few."
        for name, mask in given.items()
        if 1 < len(mask) != pictures
    ]
    if given and node is not None and node == before:
        names = " and ".join(f"“{name}”" for name in given)
        found.append(
            f"One node samples several times with masks for {names}. If it samples parts of the picture, as tiled upscalers"
            " and detailers do, each mask is squeezed into each part: give that node a second CLoRA Attention Contrast"
            " Sampler whose concepts have no masks."
        )
    return found
