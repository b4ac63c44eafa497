"""Attention and areas of finished runs, for Attention Maps of CLoRA."""

import hashlib
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

# How many finished runs a patched model remembers.
LIMIT = 8


class Record(NamedTuple):
    """One finished run, on the CPU."""

    concepts: list[str]
    # The areas of the last step, (batch, concepts, height, width).
    masks: Tensor
    # Attention of each concept's tokens in its own branch, 0…1, averaged over the steps, (batch, concepts, h, w).
    heat: Tensor
    # The separation loss of each step after its updates, each (batch,).
    losses: dict[int, Tensor]
    # The steps with updates.
    updated: list[int]


class Records:
    """The records of the last runs, by the latent that each of them made."""

    def __init__(self):
        self.by_latent: OrderedDict[str, Record] = OrderedDict()

    def keep(self, latent: Tensor, record: Record) -> None:
        """Remember a run, and forget the oldest."""
        self.by_latent[_fingerprint(latent)] = record
        while len(self.by_latent) > LIMIT:
            self.by_latent.popitem(last=False)

    def of(self, latent: Tensor) -> Record:
        """Return the record of the run that made this latent. Raises ValueError where there is none."""
        record = self.by_latent.get(_fingerprint(latent))
        if record is None:
            raise ValueError(
                "No record of this latent: it was not sampled with the MODEL connected here, or too many runs ago. Connect"
                " the LATENT output of a sampler that uses this MODEL, and run it again."
            )
        return record


def _fingerprint(latent: Tensor) -> str:
    """Return the same digest for a latent before and after the sampler node has passed it on."""
    passed_on = latent.to("cpu", torch.half)  # as coarse as ComfyUI may pass it on
    return hashlib.sha256(passed_on.contiguous().numpy().tobytes()).hexdigest()
