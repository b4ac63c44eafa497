"""Distillation of the concepts' own LoRAs into the merged one, by the predictions of the whole model.

The solve makes every layer reproduce the outputs of the concepts' own layers as closely as one matrix can. The
remaining errors add up from layer to layer, and with many concepts these lose their identity. Starting from the solve's
Δ, this descends over the whole model:

    min over Δ of  Σ_i E w(σ) ‖D_Δ(x, c_i, σ) − D_i(x, c_i, σ)‖²

D is the denoised prediction. i is a teacher: the model with one concept's LoRA alone or, for a class word and the empty
prompt, the plain model. x is a picture that a teacher paints for its prompt c_i, with noise of level σ. Distillation
from several teachers is from arXiv 1503.02531. w(σ) is that of min_snr.py.

Pictures that show several concepts (together.py) are trained on directly: x is such a picture with noise, and the target is
the picture itself. Beside them the plain model is a teacher for the same prompt with class words in place of triggers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import comfy.model_management
import torch
from torch import Tensor

from ... import min_snr
from ...lowrank import LowRank
from ...progress import Progress
from .. import differentiable
from ..loaded import Deltas, LoadedModel, changes_in_place, with_model
from ..lora.active import with_summed
from ..lora.adapters import Effect, layer
from ..lora.load import Loaded
from .target import CaptureSettings, Target, empty_latent, encode_with, noise_levels
from .together import Together

PICTURES = 4  # painted by a teacher for each prompt
RATE = 0.03  # how far a step moves a factor's entries, relative to their root mean square; decays to zero
WARMUP = 10  # steps: Adam's first ones are as long as later ones, but follow a single batch
JUDGED = 4  # noise levels at which predictions are compared, before and after
PAINTING_SHARE = 0.1  # share of the progress
# Rows of a step on pictures of several concepts: with the picture as the target, and with the plain model as the teacher.
ON_PICTURES, ON_PLAIN = 4, 2


class Agreement(NamedTuple):
    """The mean objective on a concept's prompt: how far predictions are from those with its LoRA alone."""

    # By the plain model.
    base: float
    # After the solve.
    solved: float
    # After the distillation.
    distilled: float


class Distilled(NamedTuple):
    deltas: Deltas
    # One per concept.
    agreements: list[Agreement]


@dataclass(frozen=True, eq=False)
class Teacher:
    """The model with `deltas` on one prompt."""

    deltas: Deltas
    # The prompt's conditioning by the teacher's own text encoder.
    own: list
    # The same by the merged text encoder.
    merged: list


@dataclass(frozen=True, eq=False)
class Shown:
    """A prompt of several concepts and the pictures of it."""

    # (pictures, channels, …), in the model's own scale.
    pictures: Tensor
    # The prompt's conditioning by the merged text encoder.
    cond: list
    # The plain model on the same prompt with class words.
    plain: Teacher


class Row(NamedTuple):
    """A noisy picture, and the denoised prediction that the merged model should make of it."""

    cond: list
    # (1, channels, …)
    x: Tensor
    # (1,)
    sigma: Tensor
    # As x.
    wanted: Tensor


def distil(
    target: Target,
    deltas: Deltas,
    loaded: list[Loaded],
    steps: int,
    settings: CaptureSettings,
    together: list[Together],
    progress: Progress,
) -> Distilled:
    """Return `deltas` with those of the diffusion model's layers distilled, and each concept's agreement.

    Ranks and the text encoder stay as they are. settings: the teachers' prompts, latent and sampling steps. together:
    pictures of several concepts. progress may raise to stop. Raises ValueError where memory is too small for the gradients,
    or a patch of the model cannot be differentiated.
    """
    # ComfyUI's streamed weights come and go between operations, but a backward pass needs them to stay.
    model = with_summed(target.model.clone(disable_dynamic=True), *(each.model for each in loaded))
    in_place = changes_in_place(model.model)
    models = [model.model, target.clip.cond_stage_model]
    with differentiable.gradients(in_place, "distillation_steps", models), torch.no_grad():
        teachers = _teachers(target, deltas, loaded, settings)
        shown = [_shown(target, deltas, loaded, each) for each in together]
        start = {key: deltas[key] for key in target.model_layers}
        layers = {key: layer(model, key) for key in target.model_layers}

        def work(model: LoadedModel) -> Distilled:
            return _Distillation(model, teachers, shown, start, steps, settings, progress).run()

        try:
            everyone = [*teachers.all(), *(each.plain for each in shown)]
            conds = [cond for teacher in everyone for cond in (teacher.own, teacher.merged)]
            conds += [each.cond for each in shown]
            latent, sigmas = empty_latent(model, settings.latent_shape), noise_levels(model, settings)
            distilled = with_model(model, layers, conds, latent, sigmas, work)
        except comfy.model_management.OOM_EXCEPTION as error:
            raise ValueError(
                "The device's memory is too small for the gradients of the whole model at this size. Connect a smaller latent,"
                " and smaller pictures_together if any, to LoRACLR Merge, or set distillation_steps to 0."
            ) from error
    return Distilled(deltas | distilled.deltas, distilled.agreements)


class Teachers(NamedTuple):
    """All teachers of a merge."""

    # For each concept, the teachers of its prompts.
    concepts: list[list[Teacher]]
    # The teachers of the class words.
    plain: list[Teacher]
    # The teacher of the empty prompt.
    empty: Teacher

    def painters(self) -> list[Teacher]:
        """Return the teachers whose pictures are used for training."""
        return [teacher for group in (*self.concepts, self.plain) for teacher in group]

    def all(self) -> list[Teacher]:
        return [*self.painters(), self.empty]


def _teachers(target: Target, deltas: Deltas, loaded: list[Loaded], settings: CaptureSettings) -> Teachers:
    """Return all teachers, their prompts encoded."""
    merged = Effect({key: deltas[key] for key in target.clip_layers})
    clips = [each.clip for each in loaded]

    def teachers(phrase: str, templates: Sequence[str], of_model: Effect, of_clip: Effect) -> list[Teacher]:
        prompts = [template.replace("{trigger}", phrase) for template in templates]
        return [
            Teacher(of_model.merge, encode_with(target, prompt, of_clip), encode_with(target, prompt, merged, *clips))
            for prompt in prompts
        ]

    nothing = Effect()
    words = sorted({each.concept.class_word for each in loaded})
    (empty,) = teachers("", ("",), nothing, nothing)
    return Teachers(
        concepts=[teachers(each.concept.trigger, settings.prompts, each.model, each.clip) for each in loaded],
        plain=[teacher for word in words for teacher in teachers(word, settings.prompts, nothing, nothing)],
        empty=empty,
    )


def _shown(target: Target, deltas: Deltas, loaded: list[Loaded], together: Together) -> Shown:
    """Return a prompt of several concepts, encoded, with its pictures."""
    merged, nothing = Effect({key: deltas[key] for key in target.clip_layers}), Effect()
    clips, plain = [each.clip for each in loaded], together.with_class_words
    return Shown(
        target.model.model.process_latent_in(together.latents.float()),
        encode_with(target, together.with_triggers, merged, *clips),
        Teacher(nothing.merge, encode_with(target, plain, nothing), encode_with(target, plain, merged, *clips)),
    )


class _Distillation:
    """The descent on a loaded model. deltas: its starting point."""

    def __init__(
        self,
        model: LoadedModel,
        teachers: Teachers,
        shown: list[Shown],
        deltas: Deltas,
        steps: int,
        settings: CaptureSettings,
        progress: Progress,
    ):
        self.model, self.teachers, self.shown = model, teachers, shown
        self.steps, self.settings, self.progress = steps, settings, progress
        self.factors = {
            key: LowRank(*(factor.to(model.noise.device, torch.float32, copy=True) for factor in delta))
            for key, delta in deltas.items()
        }
        self.generator = torch.Generator().manual_seed(settings.seed)

    def run(self) -> Distilled:
        """Paint the teachers' pictures, descend, and judge before and after."""
        pictures = {painter: self._paint(number) for number, painter in enumerate(self.teachers.painters())}
        rows = [
            [self._row(own[0], pictures[own[0]], (level + 0.5) / JUDGED) for level in range(JUDGED)]
            for own in self.teachers.concepts
        ]
        base, solved = self._judge({}, rows), self._judge(self.factors, rows)
        self._descend(pictures)
        judged = zip(base, solved, self._judge(self.factors, rows), strict=True)
        found = {key: LowRank(*(factor.detach().cpu() for factor in delta)) for key, delta in self.factors.items()}
        return Distilled(found, [Agreement(*errors) for errors in judged])

    def _paint(self, number: int) -> Tensor:
        """Return pictures by one of the painters, (PICTURES, channels, …), in the model's own scale."""
        painters = self.teachers.painters()
        painter, done = painters[number], PAINTING_SHARE * number / len(painters)

        def denoise(x: Tensor, sigma: Tensor, **_) -> Tensor:
            self.progress(f"distilling, teacher {number + 1} of {len(painters)} paints", done)
            return self.model.predict(painter.deltas, painter.own, x, sigma)

        return self.model.paint(denoise, self._noise(PICTURES, *self.model.noise.shape[1:]))

    def _descend(self, pictures: dict[Teacher, Tensor]) -> None:
        """Train the factors with Adam. Raises ValueError where they diverge."""
        leaves = [factor.requires_grad_() for delta in self.factors.values() for factor in delta if factor.numel()]
        sizes = [float(factor.square().mean().sqrt()) for factor in leaves]
        optimizer = torch.optim.Adam([{"params": [factor]} for factor in leaves])
        rng = random.Random(self.settings.seed)
        for step in range(self.steps):
            self._add_gradients(step, pictures, rng)
            for group, size in zip(optimizer.param_groups, sizes, strict=True):
                group["lr"] = RATE * size * min((step + 1) / WARMUP, 1 - step / self.steps)
            optimizer.step()
            optimizer.zero_grad()
        for key, delta in self.factors.items():
            if not all(bool(factor.isfinite().all()) for factor in delta):
                raise ValueError(
                    f"Distillation diverged at {key}. Set distillation_steps to 0, or lower the LoRAs' strengths."
                )

    def _add_gradients(self, step: int, pictures: dict[Teacher, Tensor], rng: random.Random) -> None:
        """Add the gradients of one step: a prompt of each concept, one of the class words, the empty one, and those on pictures
        of several concepts."""
        painters = self.teachers.painters()
        asked = [(teacher, teacher) for teacher in map(rng.choice, (*self.teachers.concepts, self.teachers.plain))]
        asked.append((self.teachers.empty, rng.choice(painters)))
        # One level from each of equal parts of the schedule, in random order: gradients are less noisy than without
        # parts.
        levels = rng.sample(range(len(asked)), len(asked))
        for (teacher, painter), level in zip(asked, levels, strict=True):
            done = PAINTING_SHARE + (1 - PAINTING_SHARE) * step / self.steps
            self.progress(f"distilling, step {step + 1} of {self.steps}", done)
            row = self._row(teacher, pictures[painter], (level + rng.random()) / len(asked))
            self._add_gradient(row)
        if self.shown:
            for number in range(ON_PICTURES):
                self._add_gradient(self._shown_row((number + rng.random()) / ON_PICTURES, rng, plain=False))
            for number in range(ON_PLAIN):
                self._add_gradient(self._shown_row((number + rng.random()) / ON_PLAIN, rng, plain=True))

    def _add_gradient(self, row: Row) -> None:
        with torch.enable_grad():
            # The sum: half precision would lose gradients of the mean, and Adam does not depend on their scale.
            self._errors(self.factors, row).sum().backward()

    def _row(self, teacher: Teacher, pictures: Tensor, level: float) -> Row:
        """Return one of the pictures at random, with noise, for the teacher. level: from 0, the most noise, to 1."""
        number = int(torch.randint(PICTURES, (), generator=self.generator))
        x, sigma = self._add_noise(pictures[number : number + 1], level)
        return self._taught(teacher, x, sigma)

    def _shown_row(self, level: float, rng: random.Random, plain: bool) -> Row:
        """Return one of the pictures of several concepts, with noise. plain: for the plain model; else for itself."""
        shown = rng.choice(self.shown)
        number = rng.randrange(len(shown.pictures))
        picture = shown.pictures[number : number + 1].to(self.model.noise)
        x, sigma = self._add_noise(picture, level)
        return self._taught(shown.plain, x, sigma) if plain else Row(shown.cond, x, sigma, picture)

    def _add_noise(self, picture: Tensor, level: float) -> tuple[Tensor, Tensor]:
        """Return the picture with noise, and σ."""
        sampling = self.model.inner.model_sampling
        sigma = torch.full((1,), sampling.percent_to_sigma(level)).to(picture)
        return sampling.noise_scaling(sigma, self._noise(*picture.shape), picture), sigma

    def _taught(self, teacher: Teacher, x: Tensor, sigma: Tensor) -> Row:
        return Row(teacher.merged, x, sigma, self.model.predict(teacher.deltas, teacher.own, x, sigma))

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.model.noise.device)

    def _errors(self, deltas: Deltas, row: Row) -> Tensor:
        """Return the objective for each value of the prediction."""
        found = self.model.predict(deltas, row.cond, row.x, row.sigma)
        return min_snr.weight(self.model.signal_to_noise(row.sigma)) * (found - row.wanted).square()

    def _judge(self, deltas: Deltas, rows: list[list[Row]]) -> list[float]:
        """Return the mean error over the rows of each concept."""
        return [sum(float(self._errors(deltas, row).mean()) for row in own) / len(own) for own in rows]
