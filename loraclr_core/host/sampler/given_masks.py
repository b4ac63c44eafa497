"""The masks that the user gives: one with each concept, or one batch for all of them.

They are for whole pictures, but only a part of one may be sampled, and a model is never told which. A part often has
another shape than the mask, and an upscaler samples several parts within one run of its node; of both, the user is warned.
"""

import comfy.utils
import torch
from comfy_execution.utils import ExecutionContext
from torch import Tensor

from ...concept import Concept
from ...sampler import masks, shares

SAME_SHAPE = 0.05  # relative tolerance of the ratio of width to height


def split(areas: Tensor, concepts: list[Concept]) -> Tensor:
    """Return a batch of masks as (pictures, concepts, height, width).

    areas: a mask for each concept, in the concepts' order; for several pictures one set after another. Raises ValueError
    where it is no mask, or holds another number.
    """
    checked = masks.given(areas, "Input “areas”")
    if len(checked) % len(concepts):
        names = ", ".join(f"“{concept.name}”" for concept in concepts)
        raise ValueError(
            f"Input “areas” holds {len(checked)} masks for {len(concepts)} concepts ({names}): connect one mask for each, in"
            " this order; an empty one leaves the place to the sampler. For several pictures, one set after another."
        )
    return checked.unflatten(0, (-1, len(concepts)))


def place(concepts: list[Concept], areas: Tensor | None, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Return the given masks at the latent's size, and which there are: (batch, concepts, height, width), (batch, concepts).

    areas: masks that go before the concepts' own, (pictures, concepts, height, width); an empty one gives nothing.
    """
    given = latent.new_zeros(latent.shape[0], len(concepts), *latent.shape[-2:])
    is_given = torch.zeros(given.shape[:2], dtype=torch.bool, device=latent.device)
    for number, concept in enumerate(concepts):
        if concept.mask is not None:
            given[:, number] = _fit(concept.mask[:, None], latent)[:, 0]
            is_given[:, number] = True
    if areas is not None:
        fitted = _fit(areas, latent)
        is_filled = fitted.amax(dim=(-2, -1)) > 0
        given = torch.where(is_filled[..., None, None], fitted, given)
        is_given = is_given | is_filled
    return given, is_given


def _fit(given: Tensor, latent: Tensor) -> Tensor:
    """Return masks, (pictures, n, height, width), at a latent's size, in order for each picture of its batch."""
    resized = masks.resize(given.to(latent), latent.shape[-2:], "area")
    return comfy.utils.repeat_to_batch_size(resized, latent.shape[0])


def by_name(concepts: list[Concept], areas: Tensor | None) -> dict[str, Tensor]:
    """Return the masks of each concept that has any, (pictures, height, width)."""
    own = {concept.name: concept.mask for concept in concepts if concept.mask is not None}
    if areas is None:
        return own
    return own | {concept.name: areas[:, i] for i, concept in enumerate(concepts) if areas[:, i].any()}


def doubts(
    given: dict[str, Tensor], shape: torch.Size, node: ExecutionContext | None, before: ExecutionContext | None
) -> list[str]:
    """Return warnings about masks for a latent of this shape, (batch, channels, height, width).

    given: each concept's, (pictures, height, width). node: the node whose run samples it. before: the node whose run
    sampled last with the same model.
    """
    pictures, *_, height, width = shape
    warnings = [
        f"The mask of “{name}” ({mask.shape[-1]}×{mask.shape[-2]}) has another shape than the picture and is stretched to it."
        for name, mask in given.items()
        if not shares.is_shares(mask) and abs(mask.shape[-1] / mask.shape[-2] * height / width - 1) > SAME_SHAPE
    ]
    warnings += [
        f"Concept “{name}” has {len(mask)} masks for {pictures} pictures: they are taken in order, from the first again where"
        " they are too few."
        for name, mask in given.items()
        if 1 < len(mask) != pictures
    ]
    if given and node is not None and node == before:
        names = " and ".join(f"“{name}”" for name in given)
        warnings.append(
            f"One node samples several times with masks for {names}. If it samples parts of the picture, as tiled upscalers"
            " and detailers do, each mask is squeezed into each part: give that node a second CLoRA Attention Contrast"
            " Sampler whose concepts have no masks."
        )
    return warnings
