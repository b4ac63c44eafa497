"""Training with class pictures as in DreamBooth (arXiv 2208.12242), the control: the node has no such way.

Beside each picture of the concept, a picture that the base model painted of its class word is learned as if it were data, with
the same weight. So a step has as many rows with gradients as one that preserves.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

from loraclr.loraclr_core.host.loaded import Deltas
from loraclr.loraclr_core.host.train import train
from loraclr.loraclr_core.host.train.rows import Rows
from loraclr.loraclr_core.train.draws import Draw
from pack import World
from shapes.world import BACKGROUNDS, ShapeConcept
from torch import Tensor

from ..cells import sample_base
from ..methods import Ask


class ClassPictureRows(Rows):
    """Learns pictures of others as they are, where Rows asks the base model what to preserve."""

    def _row(self, deltas: Deltas, draw: Draw, preserves: bool) -> dict[str, float]:
        picture = self.data.pictures[draw.picture]
        terms = self._concept(deltas, picture.caption.concept, *self._noisy(picture.latent, draw), picture, None)
        other = self.data.others[draw.other % len(self.data.others)]
        x, sigma = self._noisy(other.latent, draw)
        return terms | self._preservation(deltas, other.caption, x, sigma, other.latent.to(x))


@contextlib.contextmanager
def learned() -> Iterator[None]:
    """Let the node learn the pictures of others."""
    with mock.patch.object(train, "Rows", ClassPictureRows):
        yield


def paint(world: World, concept: ShapeConcept) -> tuple[list[Tensor], list[str]]:
    """Return batches of pictures of the class word by the base model, four on each background, and a caption for each picture."""
    asks = [Ask((), (), (concept.class_word,), background, seed) for seed, background in enumerate(BACKGROUNDS, 1000)]
    batches = [sample_base(world, ask).movedim(1, -1) for ask in asks]
    return batches, [ask.text() for ask, batch in zip(asks, batches, strict=True) for _ in batch]
