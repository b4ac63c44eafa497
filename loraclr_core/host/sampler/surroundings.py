"""The surroundings of a concept's area, as its branch sees them.

As published, every branch runs on the composed picture. A LoRA then sees the other concepts' subjects, which it was
never trained beside, and redraws them; the base sees only subjects it does not know, and its layout drifts; and a
concept is drawn wherever its words attend, often more than once. With the plain picture around its area, a branch sees
only the plain picture and its own concept, and the base branch is the plain picture.
"""

from typing import NamedTuple, Protocol

from torch import Tensor

from ...sampler.areas import Areas
from ...sampler.separation import Branch, Maps
from .evaluation import Evaluation
from .plain import PlainPicture


class Prepared(NamedTuple):
    """The results of an evaluation that are known beforehand."""

    # The branches still to be evaluated; they come after the known ones.
    missing: list[int]
    maps: Maps
    # The known branches' predictions for each of ComfyUI's lists of conditioning.
    predictions: list[list[Tensor]]
    # The latent that they are of, (batch, channels, h, w); None without any.
    latent: Tensor | None


class Surroundings(Protocol):
    # Whether other nodes have asked for predictions of their own before.
    others_ask: bool

    def plain_claims(self, base: Branch) -> Tensor | None:
        """Return the concepts' claims in the plain picture, (batch, concepts, h, w); None without one."""
        ...

    def prepare(self, evaluation: Evaluation, areas: Areas, by_sampler: bool) -> Prepared:
        """Set an evaluation's surroundings and return its known results. by_sampler: whether the sampler itself calls."""
        ...


class ComposedSurroundings:
    """Every branch sees the composed picture everywhere, as published."""

    others_ask = False

    def __init__(self, branches: int):
        self.branches = branches

    def plain_claims(self, base: Branch) -> None:
        return None

    def prepare(self, evaluation: Evaluation, areas: Areas, by_sampler: bool) -> Prepared:
        return Prepared(list(range(self.branches)), {}, [[] for _ in evaluation.calls], None)


class PlainSurroundings:
    """Every branch sees the composed picture in its area, and the plain picture around it."""

    def __init__(self, branches: int, picture: PlainPicture):
        self.branches = branches
        self.picture = picture
        self.others_ask = any(moment.maps is None for moment in picture.moments)
        self.calls = 0
        self.seen: Tensor | None = None  # the areas before the sampler's last own call

    def plain_claims(self, base: Branch) -> Tensor | None:
        return self.picture.claims(base)

    def prepare(self, evaluation: Evaluation, areas: Areas, by_sampler: bool) -> Prepared:
        moment = self.picture.at(self.calls, float(evaluation.sigma[0]), len(evaluation.calls), by_sampler)
        self.calls += 1
        if by_sampler or self.seen is None:
            self.seen = areas.branches
        evaluation.surround(moment.x, self.seen)
        predictions = [
            [] if call.role is None else [plain]
            for call, plain in zip(evaluation.calls, moment.predictions, strict=True)
        ]
        maps = {} if moment.maps is None else {0: moment.maps}
        return Prepared(list(range(1, self.branches)), maps, predictions, moment.x)
