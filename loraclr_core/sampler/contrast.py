"""CLoRA's contrast: attention of one concept should look alike in every branch, and unlike that of the others.

Every token of a concept's phrase gives one attention map per branch; the concept is its label. The loss is NT-Xent (the
normalised temperature-scaled cross entropy) over all maps, as in arXiv 2403.19776: with cosine similarity s,

    L = mean over ordered pairs (a, p) of one label of  −log( e^{s_ap/τ} / (e^{s_ap/τ} + Σ_{n of another label} e^{s_an/τ}) )
"""

import torch
from torch import Tensor

# Keeps a map that is the same everywhere from dividing by zero.
FLAT = 1e-8


def scaled(maps: Tensor) -> Tensor:
    """Min-max scaled maps. maps: (..., positions) -> the same shape, 0…1."""
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    return (maps - low) / (high - low).clamp(min=FLAT)


def nt_xent(maps: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The loss of each sample. maps: (batch, maps, positions), unscaled; labels: (maps,) -> (batch,).

    Zero where there is nothing to tell apart: one label alone.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    unit = torch.nn.functional.normalize(scaled(maps), dim=-1)
    logits = unit @ unit.transpose(-1, -2) / temperature
    same = labels[:, None] == labels[None, :]
    others = logits.masked_fill(same, -torch.inf).logsumexp(dim=-1, keepdim=True)
    losses = torch.logaddexp(logits, others) - logits
    pairs = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    # Selected, not multiplied with the mask: where no other label exists the rest is not finite.
    return losses[:, pairs].mean(dim=-1)
