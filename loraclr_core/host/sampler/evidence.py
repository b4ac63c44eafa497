"""What the plain picture shows, known before the concepts are composed in it."""

from torch import Tensor

from ...sampler.areas import Areas
from ...sampler.clarity import Evidence
from . import given_masks
from .plain import PlainPicture
from .records import Record
from .take import Composition


def gather(composition: Composition, picture: PlainPicture, latent: Tensor) -> Evidence | None:
    """Return the concepts' areas in a plain picture, and how its attention shows them; None where nothing was sampled.

    latent: any of the picture's size, (batch, channels, height, width).
    """
    base = composition.branches[0]
    claims, attention = picture.claims(base), picture.attention(base)
    if claims is None or attention is None:
        return None
    given, is_given = given_masks.place(composition.concepts, composition.areas, latent.cpu())
    areas = Areas(given, is_given, claims.cpu(), composition.settings.areas)
    return Evidence(areas.placed, is_given, claims.cpu(), attention.cpu())


def record(composition: Composition, evidence: Evidence) -> Record:
    """Return the record of a run that ended with the plain picture."""
    return Record(
        concepts=[concept.name for concept in composition.concepts],
        masks=evidence.areas,
        heat=evidence.claims,
        losses={},
        updated=[],
    )
