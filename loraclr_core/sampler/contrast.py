"""CLoRA's contrast: the attention of one concept should look alike in every branch, and unlike that of the others.

Every token of a concept's phrase has one attention map per branch; the concept is the map's label. The loss is NT-Xent
(the normalised temperature-scaled cross entropy) over all maps, as in arXiv 2403.19776. With cosine similarity s,

    L = mean over ordered pairs (a, p) of one label of  −log( e^{s_ap/τ} / (e^{s_ap/τ} + Σ_{n of another label} e^{s_an/τ}) )
"""

import torch
from torch import Tensor

# Avoids a division by zero for a map that is the same everywhere.
FLAT = 1e-8


def scaled(maps: Tensor) -> Tensor:
    """Return maps, (..., positions), min-max scaled to 0…1."""
    low, high = maps.amin(dim=-1, keepdim=True), maps.amax(dim=-1, keepdim=True)
    return (maps - low) / (high - low).clamp(min=FLAT)


def nt_xent(maps: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the loss of each sample, (batch,). maps: (batch, maps, positions), unscaled; labels: (maps,).

    It is zero where there is only one label: nothing has to be told apart.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    unit = torch.nn.functional.normalize(scaled(maps), dim=-1)
    logits = unit @ unit.transpose(-1, -2) / temperature
    same = labels[:, None] == labels[None, :]
    others = logits.masked_fill(same, -torch.inf).logsumexp(dim=-1, keepdim=True)
    losses = torch.logaddexp(logits, others) - logits
    pairs = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    # Selected rather than multiplied by the mask: without another label, the rest is not finite.
    return losses[:, pairs].mean(dim=-1)
