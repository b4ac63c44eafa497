"""Training a concept's LoRA with CAT (arXiv 2404.07554) as a whole: check, encode, descend, save."""

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...progress import Progress
from ...train.captions import INSTANCE_PROMPT
from .. import differentiable
from ..content import NotStorableError
from ..loaded import LoadedModel, changes_in_place, encode, with_model
from ..lora import keys
from ..lora.layers import Layers
from . import beside, data, output, painting
from .checkpointing import checkpointed
from .data import Dataset, Given, Sources
from .identity import Identity, identify
from .layers import chosen_layers
from .learner import DivergedError, Learner, Losses
from .rows import SCALE, Conds, Rows
from .saves import Saves
from .settings import RunSettings, TrainSettings
from .view import TrainView

log = logging.getLogger("loraclr")
T = TypeVar("T")

ENCODING_SHARE = 0.02  # of the progress


class Models(NamedTuple):
    model: ModelPatcher
    clip: CLIP
    vae: VAE


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained LoRA and how it was made."""

    # By the keys of the file.
    lora: dict[str, Tensor]
    path: Path
    settings: TrainSettings
    sources: Sources
    layers: int
    losses: list[Losses]
    # What the user should know beside the figures.
    notes: list[str]
    seconds: float


def train(
    models: Models,
    given: Given,
    settings: TrainSettings,
    run: RunSettings,
    path: Path,
    report: Callable[[str, float], None],
    view: TrainView,
) -> Trained:
    """Train a LoRA for the concept in the pictures and write it to `path`; the model stays as it is.

    report(phase, share done) is called before every step and may raise to stop: the LoRA and the state so far are then
    written first. Raises ValueError, with the remedy, where the pictures, captions or the model cannot be trained on,
    and OSError where the files cannot be written.
    """
    start, progress = time.perf_counter(), Progress(report)
    sources = data.check(given, settings)
    # ComfyUI's streamed weights come and go between operations, but a backward pass needs them to stay.
    model = models.model.clone(disable_dynamic=True)
    layers = chosen_layers(model, settings.layers)
    progress("reading the model", 0.0)
    identity, notes = _identity(models, sources, settings)
    others = beside.names(settings)
    if settings.outside == 0 and not others and any(subject is not None for subject in sources.subjects):
        notes.append("The masks have no effect: outside is 0, and nothing is shown beside the concept.")
    if settings.beside and settings.preservation > 0 and not settings.class_word:
        notes.append("Nothing is shown beside the concept, as there is no class word to find it by: write one.")

    def make(learner: Learner) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = output.tensors(layers, learner.result())
        digest = identity.digest if identity else ""
        family = keys.architecture(model)
        return tensors, output.metadata(saves.path.stem, family, settings, sources, learner.losses, digest)

    saves = Saves(path, identity, run.keep, make)
    with torch.inference_mode(False):  # in which the executor runs nodes, and whose tensors autograd refuses
        learner = Learner(layers, settings)
        saves.check_folders(learner)
        if run.if_there == "go on":
            notes += saves.restore(learner)
        if learner.step > run.steps:
            notes.append(
                f"Nothing was trained: {learner.step} steps are taken already, and steps is {run.steps}. Raise steps, or set"
                " if_there to anew."
            )
    dataset = data.encode(model, models.vae, sources, settings.resolution, progress.part(0.0, ENCODING_SHARE))
    for note in notes:
        log.warning("Train Concept LoRA: %s", note)
    # Said before the first step, too: the report comes hours later, or never.
    descent = _Descent(learner, settings, run, saves, notes, view, progress.part(ENCODING_SHARE, 1.0))
    _descend(models._replace(model=model), layers, sources, dataset, descent)
    saves.now(learner)
    return Trained(
        lora=make(learner)[0],
        path=saves.path,
        settings=settings,
        sources=sources,
        layers=len(layers),
        losses=learner.losses,
        notes=[*notes, *learner.notes()],
        seconds=time.perf_counter() - start,
    )


def _identity(models: Models, sources: Sources, settings: TrainSettings) -> tuple[Identity | None, list[str]]:
    """Return the identity of a training, or a note on why it has none."""
    try:
        return identify(*models, sources, settings), []
    except NotStorableError as error:
        return None, [f"This training cannot go on later, as its model cannot be known again: {error}."]


def _descend(models: Models, layers: Layers, sources: Sources, dataset: Dataset, descent: "_Descent") -> None:
    """Take all steps on the loaded model."""
    if descent.is_done():
        return
    (model, clip, vae), settings = models, descent.settings
    latents = [*(picture.latent for picture in dataset.pictures), *(other.latent for other in dataset.others)]
    latent = torch.zeros_like(max(latents, key=torch.numel))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", painting.STEPS)

    def on_model(prompts: list[str], work: Callable[[LoadedModel, Conds], T]) -> T:
        descent.progress("encoding captions", 0.0)
        # All prompts stay where the text encoder leaves them, in RAM; a step moves its own to the device.
        conds: Conds = {prompt: encode(clip, prompt) for prompt in dict.fromkeys(prompts)}
        longest = max(conds.values(), key=lambda cond: cond[0][0].numel())
        return with_model(model, layers, [longest], latent, sigmas, lambda loaded: work(loaded, conds))

    with (
        differentiable.gradients(changes_in_place(model.model), "", [model.model, clip.cond_stage_model]),
        torch.no_grad(),
    ):
        try:
            if scenes := beside.scenes(dataset, settings):
                found = on_model(
                    beside.prompts(dataset, scenes, settings),
                    lambda loaded, conds: beside.find(loaded, conds, dataset, scenes, settings, descent.progress),
                )
                composed = beside.compose(model, vae, sources, scenes, found, settings)
                others = [*dataset.others, *beside.preserved(scenes, found, composed)]
                dataset = dataset._replace(beside=composed, others=others)
            on_model(descent.prompts(dataset), lambda loaded, conds: descent.run_on(loaded, dataset, conds))
        except comfy.model_management.OOM_EXCEPTION as error:
            raise ValueError(
                "The device's memory is too small to train at this size. Set checkpointing to on, lower resolution or rank,"
                " choose fewer layers, or start ComfyUI with --reserve-vram 4, which keeps more of the model in RAM."
            ) from error


class _Descent:
    """The steps of a training on a loaded model, with all that goes on beside them."""

    def __init__(
        self,
        learner: Learner,
        settings: TrainSettings,
        run: RunSettings,
        saves: Saves,
        notes: list[str],
        view: TrainView,
        progress: Progress,
    ):
        self.learner, self.settings, self.run = learner, settings, run
        self.saves, self.notes, self.view, self.progress = saves, notes, view, progress
        self.preview_prompts = painting.preview_prompts(settings, run)

    def is_done(self) -> bool:
        return self.learner.step >= self.run.steps

    def prompts(self, dataset: Dataset) -> list[str]:
        """Return every prompt that a step or a preview may need."""
        texts = [text for picture in (*dataset.pictures, *dataset.beside) for text in picture.caption]
        texts += [other.caption for other in dataset.others]
        instance = INSTANCE_PROMPT.format(trigger=self.settings.trigger)
        return [*texts, instance, "", *self.preview_prompts]

    def run_on(self, model: LoadedModel, dataset: Dataset, conds: Conds) -> None:
        """Take the steps that are left. Where anything stops them, what was learned is saved first."""
        self.learner.to(model.noise.device)
        rows = Rows(model, dataset, conds, self.settings)
        start, first = time.perf_counter(), self.learner.step
        with contextlib.ExitStack() as checkpointing:
            if self.run.checkpointing == "on":
                checkpointing.enter_context(checkpointed(model.inner.diffusion_model, model.in_place))
            try:
                while not self.is_done():
                    taken = self.learner.step - first
                    seconds = (time.perf_counter() - start) / taken if taken else None
                    self._tell(seconds)
                    self._step(rows, checkpointing)
                    self._save_and_show(model, conds)
            except DivergedError:
                raise  # to go on from here would end the same way
            except BaseException:  # ComfyUI's interrupt is no Exception
                if self.learner.step > 0:
                    self.saves.now(self.learner)
                self.view.show(self.learner, self.run.steps, None, last=True)
                raise
        self.view.show(self.learner, self.run.steps, 0.0, last=True)

    def _step(self, rows: Rows, checkpointing: contextlib.ExitStack) -> None:
        """Take a step; where memory runs out, checkpoint from now on."""
        learner, losses = self.learner, None
        try:
            losses = rows.add_gradients(learner.deltas, learner.step)
        except comfy.model_management.OOM_EXCEPTION:
            if self.run.checkpointing != "automatic":
                raise
        if losses is None:  # only here does nothing hold the tensors of the step that failed
            learner.optimizer.zero_grad()
            comfy.model_management.soft_empty_cache()
            checkpointing.enter_context(checkpointed(rows.model.inner.diffusion_model, rows.model.in_place))
            losses = rows.add_gradients(learner.deltas, learner.step)
        learner.descend(losses, SCALE)

    def _tell(self, seconds_per_step: float | None) -> None:
        """Report the progress, which may raise, and send a frame."""
        step, steps = self.learner.step, self.run.steps
        left = None if seconds_per_step is None else seconds_per_step * (steps - step)
        words = [f"training, step {step + 1} of {steps}"]
        if self.learner.losses:
            losses = self.learner.losses[-1]
            words += [f"{name} {value:.3g}" for name, value in losses._asdict().items() if value is not None]
        if left is not None:
            words.append(f"{_duration(left)} left")
        self.progress("\n".join([", ".join(words), *self.notes, *self.learner.notes()]), step / steps)
        self.view.show(self.learner, steps, left)

    def _save_and_show(self, model: LoadedModel, conds: Conds) -> None:
        """Save and draw previews where they are due after this step."""
        run, learner = self.run, self.learner
        if run.save_every and learner.step % run.save_every == 0 and not self.is_done():
            self.saves.on_the_way(learner)
        if run.preview_every and learner.step % run.preview_every == 0:
            prompts, seed = self.preview_prompts, self.settings.seed
            deltas = learner.shown()
            self.view.draw(lambda: painting.previews(model, deltas, conds, prompts, seed, learner.step))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
