"""The gradients of one step: the terms of objective.py, one picture and one prompt at a time.

ComfyUI's `calc_cond_batch` runs every prompt on every row, and its memory estimate is for inference; so each evaluation
has one row. Where a term needs the model without the LoRA, that is evaluated first, without autograd: what is active in
the model must be the same while a checkpointed block is computed again.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...train import objective
from ...train.captions import INSTANCE_PROMPT
from ...train.draws import Draw, draws
from ..loaded import Deltas, LoadedModel
from ..lora import active
from .data import Dataset, Picture
from .learner import Losses
from .settings import TrainSettings

# Gradients are computed of the loss times this power of two, or half precision would lose the small ones of a mean.
SCALE = 2.0**14
EMPTY_SHARE = 0.25  # of preserved prompts that are empty
OTHERS_SHARE = 0.5  # of preserved rows that show others, where there are any
BESIDE_SHARE = 0.5  # of preserved rows that show the subject beside other things, where there are such pictures
# Weight of all but the subject in these rows, times preservation. With 1, the other things were often missing.
BESIDE_OUTSIDE = 4.0

Conds = dict[str, list]  # by the prompt


class Rows:
    """Adds up the gradients of steps on a loaded model."""

    def __init__(self, model: LoadedModel, data: Dataset, conds: Conds, settings: TrainSettings):
        self.model, self.data, self.conds, self.settings = model, data, conds, settings

    def add_gradients(self, deltas: Deltas, step: int) -> Losses:
        """Add the gradients of a step, counted from 0, times SCALE, and return its losses."""
        settings = self.settings
        rows = draws(settings.seed, step, settings.batch, len(self.data.pictures))
        preserves = settings.preservation > 0 and step % settings.preserve_every == 0
        terms: dict[str, list[float]] = {"concept": [], "preservation": [], "outside": [], "beside": []}
        for draw in rows:
            for name, value in self._row(deltas, draw, preserves).items():
                terms[name].append(value)
        means = {name: sum(values) / len(values) for name, values in terms.items() if values}
        return Losses(**means)

    def _row(self, deltas: Deltas, draw: Draw, preserves: bool) -> dict[str, float]:
        settings, picture = self.settings, self.data.pictures[draw.picture]
        x, sigma = self._noisy(picture.latent, draw)
        caption = picture.caption
        prompt = caption.concept
        if draw.drop_caption < settings.caption_dropout:
            prompt = INSTANCE_PROMPT.format(trigger=settings.trigger)
        shown, preserved = self._preserved(draw, picture)
        bounded = settings.outside > 0 and picture.subject is not None
        base_plain = self._base(caption.plain, x, sigma) if bounded else None
        terms = self._concept(deltas, prompt, x, sigma, picture, base_plain)
        if preserves and self.data.beside and draw.beside < BESIDE_SHARE:
            terms |= self._beside(deltas, self.data.beside[draw.other % len(self.data.beside)], draw)
        elif preserves:
            if shown is not picture.latent:
                x, sigma = self._noisy(shown, draw)
            same = base_plain if shown is picture.latent and preserved == caption.plain else None
            base = self._base(preserved, x, sigma) if same is None else same
            terms |= self._preservation(deltas, preserved, x, sigma, base)
        return terms

    def _concept(
        self, deltas: Deltas, prompt: str, x: Tensor, sigma: Tensor, picture: Picture, base: Tensor | None
    ) -> dict[str, float]:
        """Add the gradients of the first term, and of the one outside of the subject where `base` is given."""
        weight = self._weight(sigma)
        latent = picture.latent.to(x)

        def loss(prediction: Tensor) -> dict[str, tuple[float, Tensor]]:
            if base is None or picture.subject is None:
                return {"concept": (1.0, weight * objective.concept_loss(prediction, latent))}
            subject = picture.subject.to(x)
            return {
                "concept": (1.0, weight * objective.concept_loss(prediction, latent, subject)),
                "outside": (self.settings.outside, weight * objective.outside_loss(prediction, base, subject)),
            }

        return self._backward(deltas, prompt, x, sigma, loss)

    def _preservation(self, deltas: Deltas, prompt: str, x: Tensor, sigma: Tensor, base: Tensor) -> dict[str, float]:
        weight = self._weight(sigma)

        def loss(prediction: Tensor) -> dict[str, tuple[float, Tensor]]:
            error = weight * objective.preservation_loss(prediction, base)
            return {"preservation": (self.settings.preservation, error)}

        return self._backward(deltas, prompt, x, sigma, loss)

    def _beside(self, deltas: Deltas, picture: Picture, draw: Draw) -> dict[str, float]:
        """Add the gradients of the term of the subject beside another thing."""
        x, sigma = self._noisy(picture.latent, draw)
        base, weight = self._base(picture.caption.plain, x, sigma), self._weight(sigma)
        assert picture.subject is not None
        latent, subject = picture.latent.to(x), picture.subject.to(x)

        def loss(prediction: Tensor) -> dict[str, tuple[float, Tensor]]:
            inside = objective.concept_loss(prediction, latent, subject)
            outside = objective.outside_loss(prediction, base, subject)
            return {"beside": (1.0, weight * (inside + BESIDE_OUTSIDE * self.settings.preservation * outside))}

        return self._backward(deltas, picture.caption.concept, x, sigma, loss)

    def _backward(
        self,
        deltas: Deltas,
        prompt: str,
        x: Tensor,
        sigma: Tensor,
        loss: Callable[[Tensor], dict[str, tuple[float, Tensor]]],
    ) -> dict[str, float]:
        """Add the gradients of the weighted sum of `loss(prediction)`, and return its terms without weights."""
        # The LoRA stays active until the end: a checkpointed block is computed again in the backward pass.
        with torch.enable_grad(), active.differentiable(self.model.layers, deltas):
            terms = loss(self.model.evaluate(self.conds[prompt], x, sigma))
            total = torch.stack([weight * term for weight, term in terms.values()]).sum()
            (total * (SCALE / self.settings.batch)).backward()
        return {name: float(term) for name, (_, term) in terms.items()}

    def _base(self, prompt: str, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the prediction of the model without the LoRA."""
        with torch.no_grad():
            return self.model.evaluate(self.conds[prompt], x, sigma)

    def _preserved(self, draw: Draw, picture: Picture) -> tuple[Tensor, str]:
        """Return the latent and the prompt on which the model is to stay as it is."""
        latent, prompt = picture.latent, picture.caption.plain
        if self.data.others and draw.use_other < OTHERS_SHARE:
            latent, prompt = self.data.others[draw.other % len(self.data.others)]
        if self.settings.preserve_prompts == "class, one in four empty" and draw.empty_prompt < EMPTY_SHARE:
            prompt = ""
        return latent, prompt

    def _noisy(self, latent: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return a latent with the draw's noise, and σ."""
        sampling, device = self.model.inner.model_sampling, self.model.noise.device
        latent = latent.to(device)
        sigma = torch.full((1,), sampling.percent_to_sigma(draw.level)).to(latent)
        return sampling.noise_scaling(sigma, draw.noise(tuple(latent.shape)).to(device), latent), sigma

    def _weight(self, sigma: Tensor) -> float:
        return objective.weight(self.settings.weighting, self.model.signal_to_noise(sigma))
