"""Distils the concepts, each with its own LoRA, into the merged one, by what the model as a whole predicts.

The solve makes every layer say what the concepts' own layers say, as nearly as one matrix can. What it leaves over adds up
from layer to layer, and with many concepts that loses them. From the solve's Δ this goes on over the whole model:

    min over Δ of  Σ_i E w(σ) ‖D_Δ(x, c_i, σ) − D_i(x, c_i, σ)‖²

D: the denoised prediction; i: a teacher, which is the model with one concept's LoRA alone or, for a class word and the empty
prompt, the plain model; x: what a teacher paints for its prompt c_i, with noise of level σ. Distillation from several teachers:
arXiv 1503.02531. w(σ), the signal-to-noise ratio within bounds: Min-SNR (arXiv 2303.09556); the lower bound because what is
where is decided where there is next to no signal.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..concept import Concept
from ..lowrank import LowRank
from . import differentiable
from .adapters import Effect, layer
from .capture import CaptureSettings, Target, empty_latent, encode, noise_levels, product, with_summed

PICTURES = 4  # that a teacher paints of each prompt
RATE = 0.03  # how far a step moves a factor's entries, relative to their root mean square; falls to nothing
WARMUP = 10  # steps: Adam's first ones are as long as any, in directions of one batch
JUDGED = 4  # noise levels that predictions are compared at, before and after
SNR = 0.1, 5.0  # bounds of w
PAINTING_SHARE = 0.1  # of the progress

Deltas = dict[str, LowRank]


class Agreement(NamedTuple):
    """How far predictions for a concept's prompt are from those with its LoRA alone, by the plain model, after the solve and
    after the distillation: means of what is minimised."""

    base: float
    solved: float
    distilled: float


@dataclass(eq=False)
class Teacher:
    """The model with `deltas` on one prompt. own, merged: this as its text encoder reads it, and as the merged one does.

    pictures: what it paints, (PICTURES, channels, …).
    """

    deltas: Deltas
    own: list
    merged: list
    pictures: Tensor = field(default_factory=lambda: torch.empty(0))


class Row(NamedTuple):
    """What a teacher is asked. x: (1, channels, …); sigma: (1,)."""

    teacher: Teacher
    x: Tensor
    sigma: Tensor


def distil(
    target: Target,
    deltas: Deltas,
    concepts: list[Concept],
    effects: list[tuple[Effect, Effect]],
    steps: int,
    settings: CaptureSettings,
    progress: Callable[[str, float], None],
) -> tuple[Deltas, list[Agreement]]:
    """`deltas` with those of the diffusion model's layers descended from, and what that did for each concept.

    Ranks stay, and so does the text encoder. settings: the teachers' prompts, latent and sampling steps. progress may raise
    to stop. Raises ValueError where memory is too small for the gradients, or a patch of the model refuses them.
    """
    # Not the host's streamed weights, which come and go between operations: a backward pass needs them to stay.
    model = with_summed(target.model.clone(disable_dynamic=True), *(of_model for of_model, _ in effects))
    merged = Effect({key: deltas[key] for key in target.clip_layers})
    clips = [of_clip for _, of_clip in effects]

    def teachers(phrase: str, templates: Sequence[str], of_model: Effect, of_clip: Effect) -> list[Teacher]:
        prompts = [template.replace("{trigger}", phrase) for template in templates]
        return [
            Teacher(of_model.merge, encode(target, prompt, of_clip), encode(target, prompt, merged, *clips))
            for prompt in prompts
        ]

    in_place = not isinstance(model.get_model_object("diffusion_model"), UNetModel)
    models = [model.model, target.clip.cond_stage_model]
    with differentiable.gradients(in_place, "distillation_steps", models), torch.no_grad():
        of_concepts = [teachers(c.trigger, settings.prompts, *e) for c, e in zip(concepts, effects, strict=True)]
        words = sorted({concept.class_word for concept in concepts})
        plain = [teacher for word in words for teacher in teachers(word, settings.prompts, Effect(), Effect())]
        (empty,) = teachers("", ("",), Effect(), Effect())
        start = {key: deltas[key] for key in target.model_layers}
        distillation = _Distillation(model, start, of_concepts, plain, empty, steps, settings, progress)
        try:
            distillation.run()
        except comfy.model_management.OOM_EXCEPTION as error:
            raise ValueError(
                "The device's memory is too small for the gradients of the whole model at this size. Connect a smaller latent"
                " to LoRACLR Merge, or set distillation_steps to 0."
            ) from error
    found = {key: LowRank(*(factor.detach().cpu() for factor in d)) for key, d in distillation.factors.items()}
    return deltas | found, distillation.agreements


class _Distillation(comfy.samplers.Sampler):
    """A “sampler”, so that the host loads the model and prepares all conditioning as for any run."""

    def __init__(
        self,
        patcher: ModelPatcher,
        deltas: Deltas,
        concepts: list[list[Teacher]],
        plain: list[Teacher],
        empty: Teacher,
        steps: int,
        settings: CaptureSettings,
        progress: Callable[[str, float], None],
    ):
        """deltas: where the descent starts. concepts: of each the teachers of its prompts; plain: of the class words."""
        self.patcher = patcher
        self.concepts, self.plain, self.empty = concepts, plain, empty
        self.painters = [teacher for group in (*concepts, plain) for teacher in group]
        self.steps, self.settings, self.progress = steps, settings, progress
        self.factors = {
            key: LowRank(*(factor.to(patcher.load_device, torch.float32, copy=True) for factor in delta))
            for key, delta in deltas.items()
        }
        self.active: Deltas = {}
        self.agreements: list[Agreement] = []
        self.generator = torch.Generator().manual_seed(settings.seed)

    def run(self) -> None:
        guider = comfy.samplers.CFGGuider(self.patcher)
        conds = [cond for teacher in (*self.painters, self.empty) for cond in (teacher.own, teacher.merged)]
        guider.inner_set_conds({str(id(cond)): cond for cond in conds})
        latent = empty_latent(self.patcher, self.settings.latent_shape)
        sigmas = noise_levels(self.patcher, self.settings)
        guider.sample(torch.zeros_like(latent), latent, self, sigmas, disable_pbar=True, seed=self.settings.seed)

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs) -> Tensor:
        """The host's call, with the model loaded and the conditioning ready."""
        self.model, self.conds, self.options = model_wrap.inner_model, model_wrap.conds, extra_args["model_options"]
        self.options["transformer_options"].setdefault("optimized_attention_override", differentiable.attention)
        differentiable.make_normal(self.model)
        differentiable.check_weights_stay(self.model, noise.device, "distillation_steps")
        with self._attached():
            for number, teacher in enumerate(self.painters):
                teacher.pictures = self._paint(number, sigmas, noise.shape[1:])
            rows = [[self._row(own[0], own[0], (i + 0.5) / JUDGED) for i in range(JUDGED)] for own in self.concepts]
            before = self._judge({}, rows), self._judge(self.factors, rows)
            self._descend()
            self.agreements = [
                Agreement(*found) for found in zip(*before, self._judge(self.factors, rows), strict=True)
            ]
        return noise

    def _paint(self, number: int, sigmas: Tensor, shape: torch.Size) -> Tensor:
        """Pictures by one of the painters, (PICTURES, *shape), as the model takes them."""
        painter = self.painters[number]
        done = PAINTING_SHARE * number / len(self.painters)

        def denoise(x: Tensor, sigma: Tensor, **_) -> Tensor:
            self.progress(f"distilling, teacher {number + 1} of {len(self.painters)} paints", done)
            return self._predict(painter.deltas, painter.own, x, sigma)

        noise = self._noise(PICTURES, *shape)
        start = self.model.model_sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), max_denoise=True)
        return comfy.k_diffusion.sampling.sample_euler(denoise, start, sigmas, disable=True)

    def _descend(self) -> None:
        leaves = [factor.requires_grad_() for delta in self.factors.values() for factor in delta if factor.numel()]
        sizes = [float(factor.square().mean().sqrt()) for factor in leaves]
        optimizer = torch.optim.Adam([{"params": [factor]} for factor in leaves])
        rng = random.Random(self.settings.seed)
        for step in range(self.steps):
            asked = [(teacher, teacher) for teacher in map(rng.choice, (*self.concepts, self.plain))]
            asked.append((self.empty, rng.choice(self.painters)))
            # One out of each of equal parts of the schedule, in random order: less noise than without the parts.
            levels = rng.sample(range(len(asked)), len(asked))
            for (teacher, painter), level in zip(asked, levels, strict=True):
                done = PAINTING_SHARE + (1 - PAINTING_SHARE) * step / self.steps
                self.progress(f"distilling, step {step + 1} of {self.steps}", done)
                row = self._row(teacher, painter, (level + rng.random()) / len(asked))
                with torch.enable_grad():
                    # The sum, not the mean, whose gradients half precision would lose; Adam does not mind.
                    self._errors(self.factors, row).sum().backward()
            for group, size in zip(optimizer.param_groups, sizes, strict=True):
                group["lr"] = RATE * size * min((step + 1) / WARMUP, 1 - step / self.steps)
            optimizer.step()
            optimizer.zero_grad()
        for key, delta in self.factors.items():
            if not all(bool(factor.isfinite().all()) for factor in delta):
                raise ValueError(
                    f"Distillation diverged at {key}. Set distillation_steps to 0, or lower the LoRAs' strengths."
                )

    def _row(self, teacher: Teacher, painter: Teacher, level: float) -> Row:
        """One of the painter's pictures with noise of a level from 0, the most, to 1."""
        number = int(torch.randint(PICTURES, (), generator=self.generator))
        picture = painter.pictures[number : number + 1]
        sigma = torch.full((1,), self.model.model_sampling.percent_to_sigma(level)).to(picture)
        noise = self._noise(*picture.shape)
        return Row(teacher, self.model.model_sampling.noise_scaling(sigma, noise, picture), sigma)

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.patcher.load_device)

    def _errors(self, deltas: Deltas, row: Row) -> Tensor:
        """What is minimised, of each value of the prediction."""
        with torch.no_grad():
            target = self._predict(row.teacher.deltas, row.teacher.own, row.x, row.sigma)
        found = self._predict(deltas, row.teacher.merged, row.x, row.sigma)
        return self._weight(row.sigma) * (found - target).square()

    def _weight(self, sigma: Tensor) -> float:
        """w(σ). How a model adds noise to a picture says how much of either is left."""
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        noise, signal = (
            float(self.model.model_sampling.noise_scaling(sigma, *of)) for of in ((one, zero), (zero, one))
        )
        return min(max((signal / noise) ** 2, SNR[0]), SNR[1])

    def _judge(self, deltas: Deltas, rows: list[list[Row]]) -> list[float]:
        """Of each concept, the mean over its rows."""
        return [sum(float(self._errors(deltas, row).mean()) for row in own) / len(own) for own in rows]

    def _predict(self, deltas: Deltas, cond: list, x: Tensor, sigma: Tensor) -> Tensor:
        self.active = deltas
        conds = [self.conds[str(id(cond))]]
        return comfy.samplers.calc_cond_batch(self.model, conds, x, sigma, self.options)[0]

    @contextlib.contextmanager
    def _attached(self) -> Iterator[None]:
        """Hooks that add to every layer what the active differences make of its input."""
        with contextlib.ExitStack() as hooks:
            for key in self.factors:
                hook = self._hook(key)
                hooks.callback(layer(self.patcher, key).register_forward_hook(hook, with_kwargs=True).remove)
            yield

    def _hook(self, key: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            delta = self.active.get(key)
            inputs = args[0] if args else kwargs["input"]
            return output if delta is None else output + product(module, delta.to(inputs), inputs)

        return hook
