"""The picture that the base branch makes on its own, replayed while the concepts are composed in it.

Base prompt, model and noise are the same in both takes, so the base branch need not be evaluated again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...sampler import masks
from ...sampler.separation import Branch
from .attention import Recorder
from .evaluation import Evaluation
from .gradient import require_maps
from .live import LiveView
from .take import SAME_SIGMA, Composition, Start, Take


class Moment(NamedTuple):
    """One of ComfyUI's calls for predictions."""

    sigma: float
    # The latent of the call, (batch, channels, height, width).
    x: Tensor
    # One per list of conditioning, of the shape of x.
    predictions: list[Tensor]
    # The base branch's attention, (batch, h, w, tokens); None unless the sampler itself called.
    maps: Tensor | None


@dataclass(frozen=True)
class PlainPicture:
    """The moments of a finished take, in the order of the calls."""

    moments: list[Moment]

    def claims(self, base: Branch) -> Tensor | None:
        """Return how strongly each concept's words claim each place, (batch, concepts, h, w), averaged over the take.

        None where nothing was sampled.
        """
        claims = [torch.stack([masks.claim(words) for words in moment], dim=1) for moment in self._words(base)]
        return torch.stack(claims).mean(dim=0) if claims else None

    def attention(self, base: Branch) -> Tensor | None:
        """Return the attention to each concept's words, (batch, concepts): the strongest word's, averaged over picture and take.

        None where nothing was sampled.
        """
        means = [
            torch.stack([words.amax(dim=1).mean(dim=(-2, -1)) for words in moment], dim=1)
            for moment in self._words(base)
        ]
        return torch.stack(means).mean(dim=0) if means else None

    def _words(self, base: Branch) -> Iterator[list[Tensor]]:
        """Yield, for each of the sampler's own calls, the maps of each concept's words, (batch, words, h, w)."""
        for *_, maps in self.moments:
            if maps is not None:
                yield [base.words(maps, concept) for concept in range(len(base.tokens))]

    def at(self, number: int, sigma: float, lists: int, by_sampler: bool) -> Moment:
        """Return the moment of call `number`. Raises RuntimeError where the take had none like it.

        lists: the number of lists of conditioning. by_sampler: whether the sampler itself calls. A sampler with adaptive step
        sizes may ask at another noise level than in the first take; between two levels the moment is interpolated
        linearly in σ, as an Euler step does.
        """

        def is_alike(moment: Moment) -> bool:
            return len(moment.predictions) == lists and (moment.maps is not None) == by_sampler

        for moment in self.moments[number : number + 1]:
            if is_alike(moment) and abs(moment.sigma - sigma) <= SAME_SIGMA * sigma:
                return moment
        others = list(filter(is_alike, self.moments))
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


class Seen(NamedTuple):
    """What an evaluation that the sampler itself asked for has given."""

    # Of each list of conditioning; None for one without branches.
    roles: list[str | None]
    predictions: list[Tensor]
    maps: Tensor


class PlainTake(Take):
    """The base branch alone. Between the steps that evaluate it (`plain_every`), its denoised prediction is held."""

    def __init__(self, composition: Composition, start: Start, view: LiveView | None):
        super().__init__(composition, start, view)
        self.moments: list[Moment] = []
        self.last: Seen | None = None

    def predict(self, evaluation: Evaluation, x: Tensor, recorder: Recorder | None) -> list[Tensor]:
        if recorder is None:
            predictions, maps = self._evaluate(evaluation, x, None), None
        else:
            if self._is_due(evaluation) or self.last is None:
                predictions = self._evaluate(evaluation, x, recorder)
                self.last = Seen(_roles(evaluation), predictions, require_maps(evaluation, recorder.maps(), [0])[0])
            _, predictions, maps = self.last
        self.moments.append(Moment(float(evaluation.sigma[0]), x.clone(), predictions, maps))
        return [prediction.clone() for prediction in predictions]  # other nodes may change them

    def _is_due(self, evaluation: Evaluation) -> bool:
        """Return whether to evaluate now, and not to hold the last prediction.

        The last step is always evaluated: there the picture gets its details.
        """
        step, last = self.start.step(float(evaluation.sigma[0])), len(self.start.sigmas) - 2
        in_turn = step % self.composition.settings.plain_every == 0 or step == last
        return (
            in_turn or self.is_compared(evaluation) or (self.last is not None and self.last.roles != _roles(evaluation))
        )

    def _evaluate(self, evaluation: Evaluation, x: Tensor, recorder: Recorder | None) -> list[Tensor]:
        return [prediction for (prediction,) in evaluation.predict(x, recorder, [0])]

    def show(self, view: LiveView, step: int, steps: int, denoised: Tensor) -> None:
        view.show(step, steps, self.start.guider.inner_model.latent_format, denoised, None, None, {})

    def picture(self) -> PlainPicture:
        """Return the finished take."""
        return PlainPicture(self.moments)


def _roles(evaluation: Evaluation) -> list[str | None]:
    return [call.role for call in evaluation.calls]
