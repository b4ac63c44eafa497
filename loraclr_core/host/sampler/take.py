"""One run of ComfyUI's sampler that evaluates the model with the branches of a composition."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import comfy.samplers
from comfy.model_base import BaseModel
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...concept import Concept
from ...sampler.separation import Branch
from . import own_text
from .attention import Recorder
from .branches import BranchAdapters
from .evaluation import KEY, Evaluation
from .layers import read_layers
from .live import LiveView
from .settings import Settings
from .tags import Tags

# Two sigmas this close, relatively, are the same noise level.
SAME_SIGMA = 1e-5


@dataclass(frozen=True)
class Composition:
    """The concepts to compose, and how."""

    concepts: list[Concept]
    # The base branch first, then one for each concept.
    branches: list[Branch]
    adapters: BranchAdapters
    tags: Tags
    settings: Settings
    # Masks that go before the concepts' own, (pictures, concepts, height, width), empty where they do not; None for none.
    areas: Tensor | None = None


class Start(NamedTuple):
    """The arguments with which ComfyUI starts a sampler."""

    guider: comfy.samplers.CFGGuider
    sigmas: Tensor
    denoise_mask: Tensor | None
    # On the sampling device, (batch, channels, height, width).
    noise: Tensor

    def step(self, sigma: float) -> int:
        """Return the step whose interval of the schedule holds `sigma`; samplers that evaluate in between share it."""
        sigmas = self.sigmas.tolist()
        reached = [step for step, start in enumerate(sigmas[:-1]) if start >= sigma * (1 - SAME_SIGMA)]
        return reached[-1] if reached else 0


class Take(ABC):
    """A run of the sampler. Subclasses define how to predict, and where the latent really is."""

    def __init__(self, composition: Composition, start: Start, view: LiveView | None):
        self.composition = composition
        self.start = start
        self.view = view
        self.others_ask = False  # whether another node has asked for predictions in this run

    @abstractmethod
    def predict(self, evaluation: Evaluation, x: Tensor, recorder: Recorder | None) -> list[Tensor]:
        """Return a prediction like `x` for each list of conditioning.

        recorder: reads the attention; None where another node asks, rather than the sampler itself.
        """

    @abstractmethod
    def show(self, view: LiveView, step: int, steps: int, denoised: Tensor) -> None:
        """Show the state after a step, counted from 0."""

    def is_compared(self, evaluation: Evaluation) -> bool:
        """Return whether other nodes compare predictions of their own with this one, as perturbed-attention guidance does.

        Then no prediction of an earlier step may stand for one of this step: both must be of one noise level.
        """
        return self.others_ask or any(call.role is None and call.branches != [None] for call in evaluation.calls)

    def moved(self, x: Tensor) -> Tensor:
        """Return the latent that the model sees while the sampler is at `x`."""
        return x

    def finish(self, samples: Tensor) -> Tensor:
        """Return the sampler's result, moved to where the latent really is."""
        return samples

    def run(self, executor: Callable, extra_args: dict, callback: Callable | None, latent_image: Tensor, disable_pbar):
        """Run ComfyUI's sampler, as a SAMPLER_SAMPLE wrapper."""
        guider = self.start.guider
        set_wrapper(guider.model_options, WrappersMP.PREDICT_NOISE, self._predict_noise)
        set_wrapper(extra_args["model_options"], WrappersMP.CALC_COND_BATCH, self._calc_cond_batch)

        def report(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            denoised = self.moved(denoised)
            if self.view is not None:
                self.show(self.view, step, total, denoised)
            if callback is not None:
                callback(step, denoised, self.moved(x), total)

        copies = guider.model_options.get("multigpu_clones", {}).values()
        models = {guider.inner_model, *(patcher.model for patcher in copies)}
        with self.composition.adapters.attached(models):
            guider.conds = own_text.encoded(guider, self.composition.adapters)
            samples = executor(
                guider,
                self.start.sigmas,
                extra_args,
                report,
                self.start.noise,
                latent_image,
                self.start.denoise_mask,
                disable_pbar,
            )
        return self.finish(samples)

    def _predict_noise(self, executor: Callable, x: Tensor, sigma: Tensor, model_options: dict, seed: int | None):
        # Other nodes may ask for predictions on the way; the sampler's own call is the first with our conditioning.
        own_call = iter((True,))
        return executor(x, sigma, {**model_options, KEY: own_call}, seed)

    def _calc_cond_batch(
        self, executor: Callable, model: BaseModel, conds: list, x: Tensor, sigma: Tensor, model_options: dict
    ) -> list[Tensor]:
        calls = [self.composition.tags.call(cond) for cond in conds]
        evaluation = Evaluation(executor, model, calls, sigma, model_options, self.composition.adapters)
        own = evaluation.main is not None and next(model_options.get(KEY, iter(())), False)
        recorder = Recorder(read_layers(model.diffusion_model, *x.shape[-2:]), stop=False) if own else None
        self.others_ask = self.others_ask or not own
        return self.predict(evaluation, x, recorder)


def set_wrapper(options: dict, kind: str, wrapper: Callable) -> None:
    """Set our wrapper of a kind in model options, replacing our earlier one, if any."""
    wrappers = options["transformer_options"].setdefault("wrappers", {})
    wrappers[kind] = {**wrappers.get(kind, {}), KEY: [wrapper]}
