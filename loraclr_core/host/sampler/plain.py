"""The picture that the base branch makes on its own: the first take of a run, met again while concepts are composed in it.

Base prompt, model and noise are the same in both takes, so nothing of the base branch has to be evaluated twice.
"""

from typing import NamedTuple

from torch import Tensor

# Two sigmas this close, relatively, are the same noise level.
SAME_SIGMA = 1e-5


class Moment(NamedTuple):
    """One of the host's calls for predictions.

    x: the latent it asked at, (batch, channels, h, w). predictions: what it got for each list of conditioning, like x.
    maps: the base branch's attention, (batch, h, w, tokens), of the sampler's own calls.
    """

    sigma: float
    x: Tensor
    predictions: list[Tensor]
    maps: Tensor | None


class PlainPicture:
    """Its moments in the order of the sampler's calls, to `add` in the first take and to get by `next` in the second."""

    def __init__(self):
        self.moments: list[Moment] = []
        self.met = 0
        self.finished = False

    def add(self, sigma: float, x: Tensor, predictions: list[Tensor], maps: Tensor | None) -> None:
        self.moments.append(Moment(sigma, x.clone(), predictions, maps))

    @property
    def maps(self) -> list[Tensor]:
        """Of every own call of the sampler."""
        return [moment.maps for moment in self.moments if moment.maps is not None]

    def next(self, sigma: float, lists: int, own: bool) -> Moment:
        """The moment of the same call in the first take. lists: how many lists of conditioning it is for; own: whether it is
        the sampler's own. Raises RuntimeError where there was none like it.

        A sampler that chooses its own step sizes may ask at another noise level. What is between two of them is taken as
        straight in σ, as one Euler step takes it.
        """

        def alike(moment: Moment) -> bool:
            return len(moment.predictions) == lists and (moment.maps is not None) == own

        for moment in self.moments[self.met : self.met + 1]:
            self.met += 1
            if alike(moment) and abs(moment.sigma - sigma) <= SAME_SIGMA * sigma:
                return moment
        others = [moment for moment in self.moments if alike(moment)]
        if not others:
            raise RuntimeError(
                f"The sampler, or a patch of the model, asks for {lists} predictions that it did not ask for while CLoRA made"
                " the plain picture. Remove that patch, or set surroundings to “composed (paper)”."
            )
        before = min(others, key=lambda moment: (moment.sigma < sigma, abs(moment.sigma - sigma)))
        after = min(others, key=lambda moment: (moment.sigma > sigma, abs(moment.sigma - sigma)))
        apart = before.sigma - after.sigma
        share = (before.sigma - sigma) / apart if apart > 0 else 0.0
        predictions = [a.lerp(b, share) for a, b in zip(before.predictions, after.predictions, strict=True)]
        return Moment(sigma, before.x.lerp(after.x, share), predictions, before.maps)
