"""Claims that end where the objects do.

Attention marks the inside of an object and fades towards its outline, which is in the picture itself. So the claims pass through
a joint bilateral filter (Petschnigg et al., SIGGRAPH 2004): each becomes the mean of those around it, as far as the
latent is alike there.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .masks import NONE

REACH = 2  # cells to each side
TIMES = 3
# A neighbour that is unlike by this much counts e⁻¹ as much as one alike: mean square over channels, each in its own deviations.
UNLIKE = 0.5


def follow_outlines(claims: Tensor, latent: Tensor) -> Tensor:
    """Return the claims as the outlines in a picture bound them, (batch, concepts, h, w), each at most 1.

    latent: of that picture without noise, (batch, channels, …, height, width), of any size.
    """
    guide = F.interpolate(latent.flatten(1, -3).to(claims), size=claims.shape[-2:], mode="area")
    deviation, mean = torch.std_mean(guide, dim=(-2, -1), keepdim=True)
    around = _windows((guide - mean) / deviation.clamp(min=NONE))
    unlikeness = (around - around[:, :, around.shape[2] // 2, None]).square().mean(dim=1)
    weights = torch.exp(-unlikeness / UNLIKE) * _windows(torch.ones_like(guide[:, :1]))[:, 0]
    weights = weights / weights.sum(dim=1, keepdim=True)
    for _ in range(TIMES):
        claims = torch.einsum("bkwij,bwij->bkij", _windows(claims), weights)
    return claims / claims.amax(dim=(-2, -1), keepdim=True).clamp(min=NONE)


def _windows(values: Tensor) -> Tensor:
    """Return what is around each place, 0 outside the picture: (batch, n, h, w) -> (batch, n, places of a window, h, w)."""
    height, width = values.shape[-2:]
    around = F.unfold(values, 2 * REACH + 1, padding=REACH)
    return rearrange(around, "b (n w) (i j) -> b n w i j", n=values.shape[1], i=height, j=width)
