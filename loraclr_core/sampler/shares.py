"""Simple areas of a picture as masks: halves, thirds, or any box, in shares of the picture.

Shares fit a picture of any size and shape, so these masks have a size of their own, `SIDE`×`SIDE`. It is a multiple of 2, 3
and 100: halves, thirds and hundredths end between pixels and are exact wherever the latent can divide so.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# No picture that a latent gives has this side, which is no multiple of 8: by it, `is_shares` knows these masks.
SIDE = 900


class Box(NamedTuple):
    """A rectangle in shares of the picture, 0…1."""

    left: float
    top: float
    width: float
    height: float


AREAS = {
    "left half": Box(0, 0, 1 / 2, 1),
    "right half": Box(1 / 2, 0, 1 / 2, 1),
    "top half": Box(0, 0, 1, 1 / 2),
    "bottom half": Box(0, 1 / 2, 1, 1 / 2),
    "left third": Box(0, 0, 1 / 3, 1),
    "middle third": Box(1 / 3, 0, 1 / 3, 1),
    "right third": Box(2 / 3, 0, 1 / 3, 1),
}


def mask(box: Box) -> Tensor:
    """Return a box as a mask, (1, SIDE, SIDE); what lies outside the picture is cut off.

    Raises ValueError where nothing is left of it.
    """
    result = torch.zeros(1, SIDE, SIDE)
    result[:, _pixels(box.top, box.height), _pixels(box.left, box.width)] = 1
    if not result.any():
        raise ValueError(
            f"The box of Concept Area is empty: it begins at {box.left:g} from the left and {box.top:g} from the top, is"
            f" {box.width:g} wide and {box.height:g} high. Set width and height above 0, and left and top below 1."
        )
    return result


def is_shares(mask: Tensor) -> bool:
    """Return whether a mask, (…, height, width), is in shares of the picture and so fits one of any shape."""
    return mask.shape[-2:] == (SIDE, SIDE)


def _pixels(start: float, length: float) -> slice:
    return slice(round(SIDE * start), round(SIDE * (start + length)))
