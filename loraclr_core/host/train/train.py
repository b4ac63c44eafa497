"""Training a concept's LoRA with CAT (arXiv 2404.07554) as a whole: check, encode, descend, write."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...progress import Progress
from ...train.captions import INSTANCE_PROMPT
from .. import differentiable
from ..loaded import LoadedModel, encode, with_model
from ..lora import file, keys
from ..lora.layers import Layers
from . import data, output
from .data import Dataset, Given, Sources
from .layers import chosen_layers
from .learner import Learner, Losses
from .rows import SCALE, Conds, Rows
from .settings import RunSettings, TrainSettings

ENCODING_SHARE = 0.02  # of the progress
PREVIEW_STEPS = 12  # of a sampler


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained LoRA and how it was made."""

    # By the keys of the file.
    lora: dict[str, Tensor]
    path: Path
    settings: TrainSettings
    run: RunSettings
    sources: Sources
    layers: int
    losses: list[Losses]
    # What the user should know beside the figures.
    notes: list[str]
    seconds: float


def train(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    given: Given,
    settings: TrainSettings,
    run: RunSettings,
    path: Path,
    report: Callable[[str, float], None],
) -> Trained:
    """Train a LoRA for the concept in the pictures and write it to `path`; the model stays as it is.

    report(phase, share done) is called before every step and may raise to stop. Raises ValueError, with the remedy,
    where the pictures, captions or the model cannot be trained on.
    """
    start, progress = time.perf_counter(), Progress(report)
    sources = data.check(given, settings)
    # ComfyUI's streamed weights come and go between operations, but a backward pass needs them to stay.
    model = model.clone(disable_dynamic=True)
    layers = chosen_layers(model, settings.layers)
    dataset = data.encode(model, vae, sources, settings.resolution, progress.part(0.0, ENCODING_SHARE))
    learner = _descend(model, clip, layers, dataset, settings, run, progress.part(ENCODING_SHARE, 1.0))
    lora = output.tensors(layers, learner.result())
    header = output.metadata(path.stem, keys.architecture(model), settings, sources, learner.losses, "")
    file.write(path, lora, header, overwrite=True)
    return Trained(
        lora=lora,
        path=path,
        settings=settings,
        run=run,
        sources=sources,
        layers=len(layers),
        losses=learner.losses,
        notes=[],
        seconds=time.perf_counter() - start,
    )


def _descend(
    model: ModelPatcher,
    clip: CLIP,
    layers: Layers,
    dataset: Dataset,
    settings: TrainSettings,
    run: RunSettings,
    progress: Progress,
) -> Learner:
    """Return the learner after all steps."""
    in_place = not isinstance(model.get_model_object("diffusion_model"), UNetModel)
    models = [model.model, clip.cond_stage_model]
    with differentiable.gradients(in_place, "steps", models), torch.no_grad():
        progress("encoding captions", 0.0)
        conds: Conds = {prompt: encode(clip, prompt) for prompt in prompts(dataset, settings)}

        def work(loaded: LoadedModel) -> Learner:
            learner = Learner(layers, settings, loaded.noise.device)
            rows = Rows(loaded, dataset, conds, settings)
            while learner.step < run.steps:
                progress(_phase(learner, run), learner.step / run.steps)
                learner.descend(rows.add_gradients(learner.deltas, learner.step), SCALE)
            return learner

        latent = torch.zeros_like(max((picture.latent for picture in dataset.pictures), key=torch.numel))
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", PREVIEW_STEPS)
        try:
            return with_model(model, layers, list(conds.values()), latent, sigmas, "steps", work)
        except comfy.model_management.OOM_EXCEPTION as error:
            raise ValueError(
                "The device's memory is too small to train at this size. Set checkpointing to on, lower resolution or rank,"
                " or choose fewer layers."
            ) from error


def prompts(dataset: Dataset, settings: TrainSettings) -> list[str]:
    """Return every prompt that a step may need."""
    pictures = dataset.pictures
    texts = [text for picture in pictures for text in picture.caption]
    texts += [other.caption for other in dataset.others]
    return list(dict.fromkeys([*texts, INSTANCE_PROMPT.format(trigger=settings.trigger), ""]))


def _phase(learner: Learner, run: RunSettings) -> str:
    return f"training, step {learner.step + 1} of {run.steps}"
