"""CLoRA (arXiv 2403.19776) inside the host's own sampling: branches, latent updates and fused predictions.

Branch 0 is the base prompt without a LoRA, branch k the prompt with trigger k and LoRA k. Their predictions are fused by
masks that come from their cross attention. Once per step, within the update range, the latent is first moved against
the gradient of the contrast between the concepts' attention maps, and the prediction is computed at the moved latent.

What a branch sees. In the published method every branch is run on the composed picture. A LoRA then meets subjects of the
others that it was never trained beside, and redraws them; the base meets nothing but strangers, and its layout drifts. Here
the base branch follows a picture of its own, the plain one of its prompt, from the same noise; and a concept's branch sees
the composed picture within its own mask and the plain one around it. It takes no further evaluation: what the plain picture
is beside the composed one, p, follows from the predictions of both (`_Run.follow_plain`).

The move is kept as a displacement o of the latent, beside the sampler and not inside it: the model sees x + o, the
sampler gets the prediction minus o, and o is added to what it returns. In every sampler of the host the coefficients of
latent and prediction add up to one, so its path is the moved one minus o, whichever tensors it keeps and copies. Only
what a multi-step sampler remembers from before a move is off by that one move, in its correction terms; and the ancestral
samplers of flow models scale the latent before they add noise, which the displacement does not follow.
"""

import contextlib
import hashlib
import logging
import uuid
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import comfy.model_management
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .. import contrast, masks
from ..concept import Concept
from ..masks import Morphology, Overlap
from . import differentiable
from .attention import JointLayers, Recorder, read_layers
from .branches import BranchAdapters
from .evaluation import KEY, Call, Evaluation, Role
from .live import LiveView

UpdateUnit = Literal["relative", "absolute (paper)"]
UPDATE_UNITS: tuple[UpdateUnit, ...] = ("relative", "absolute (paper)")
GradientMemory = Literal["one branch at a time", "all at once"]
GRADIENT_MEMORY: tuple[GradientMemory, ...] = ("one branch at a time", "all at once")
Surroundings = Literal["plain", "composed (paper)"]
SURROUNDINGS: tuple[Surroundings, ...] = ("plain", "composed (paper)")

# How many finished runs a patched model remembers for CLoRA Attention Maps.
RECORDS = 8
# Two sigmas this close, relatively, are one step of the schedule.
SAME_SIGMA = 1e-5


class Settings(NamedTuple):
    """update_strength: of one update, in one of two units.

    *relative*: root mean square of the update as a share of the latent's, which with its noise is of unit size to every
    model. It depends neither on the latent space nor on the size of the model's gradients.
    *absolute (paper)*: α in z ← z − α ∇L, z as the model sees it; 20 for SD1.5, 0.02 in a public SDXL port.

    update_start, update_end: the part of the schedule with updates, in the host's percents (0 first, 1 last noise level):
    the same noise levels whatever the scheduler, the steps and the denoise.
    refine_steps, refine_repeats: at these steps of a run (0 first) so many further updates, if the step has one.
    threshold: share of a token's strongest attention. overlap: what becomes of a place in several masks, by the claims of
    all steps so far; a mask that is given counts as the strongest claim.
    first_masked_step: before it every branch counts everywhere.
    surroundings: the picture that a concept's branch sees around its own mask.
    """

    update_strength: float
    update_unit: UpdateUnit
    update_start: float
    update_end: float
    refine_steps: tuple[int, ...]
    refine_repeats: int
    temperature: float
    threshold: float
    morphology: Morphology
    first_masked_step: int
    gradient_memory: GradientMemory
    overlap: Overlap
    surroundings: Surroundings


class Tag(NamedTuple):
    """Marks a conditioning entry with the sampler node that made it, its role and its branch."""

    owner: str
    role: Role
    branch: int


class Record(NamedTuple):
    """One finished run, on the CPU.

    masks: (batch, concepts, h, w) as used in the last step. heat: (batch, concepts, h, w), 0…1: attention of each
    concept's tokens in its own branch, mean over the steps. losses: (batch,) by step, after its updates.
    updated: the steps with updates.
    """

    concepts: list[str]
    masks: Tensor
    heat: Tensor
    losses: dict[int, Tensor]
    updated: list[int]


@dataclass
class _Run:
    """What a sampling run keeps between evaluations."""

    guider: object
    schedule: Tensor
    denoise_mask: Tensor | None
    displacement: Tensor | None = None  # o, (batch, channels, h, w)
    plain: Tensor | float = 0.0  # p, the base branch's own picture minus the composed one; as the latent
    departure: tuple[float, Tensor] | None = None  # σ of the last evaluation, D_base − D_composed
    views: Tensor | None = None  # what is added to the composed picture for each branch, (branches, *latent)
    branch_masks: Tensor | None = None  # (batch, branches, h, w)
    concept_masks: Tensor | None = None
    claims: Tensor | float = 0.0  # sum over the evaluations so far, (batch, concepts, h, w)
    heat: list[Tensor] = field(default_factory=list)
    losses: dict[int, Tensor] = field(default_factory=dict)
    updated: list[int] = field(default_factory=list)
    evaluations: int = 0
    own_call: bool = False

    def __post_init__(self):
        self.sigmas = self.schedule.tolist()

    def at(self, x: Tensor) -> Tensor:
        """The latent where the sampler believes to be at `x`."""
        return x if self.displacement is None else x + self.displacement

    def follow_plain(self, sigma: float) -> None:
        """Takes p to this noise level.

        A picture at σ is the clean one and its noise, and on the way to σ' it takes the share 1 − σ'/σ of the prediction
        in place of as much of itself (DDIM, Euler; flow models likewise): p' = σ'/σ p + (1 − σ'/σ) (D_base − D_composed).
        Samplers of higher order differ by their correction terms. Noise that they add is the same in both pictures.
        """
        if self.departure is not None and sigma < self.departure[0]:
            before, difference = self.departure
            kept = sigma / before
            self.plain = kept * self.plain + (1 - kept) * difference

    def step(self, sigma: float) -> int:
        """The step whose interval of the schedule holds `sigma`, which samplers that evaluate in between share."""
        reached = [i for i, start in enumerate(self.sigmas[:-1]) if start >= sigma * (1 - SAME_SIGMA)]
        return reached[-1] if reached else 0

    def generated(self, sigma: Tensor, model_options: dict) -> Tensor | float:
        """Where the picture is generated at this noise level, 0…1: all of it without a denoise mask."""
        if self.denoise_mask is None:
            return 1.0
        function = model_options.get("denoise_mask_function")
        if function is None:
            return self.denoise_mask
        return function(sigma, self.denoise_mask, extra_options={"model": self.guider, "sigmas": self.schedule})


class CLoRA:
    """The method for one set of concepts; `patch` puts it on a model, `tag` marks the conditioning that goes with it."""

    def __init__(
        self,
        concepts: list[Concept],
        positions: list[list[list[int]]],
        adapters: BranchAdapters,
        settings: Settings,
        view: LiveView | None = None,
    ):
        """positions: for each branch and concept, where its tokens stand in that branch's conditioning."""
        self.owner = uuid.uuid4().hex
        self.concepts = concepts
        self.positions = positions
        self.branches = len(positions)
        self.adapters = adapters
        self.settings = settings
        self.view = view
        self.records: OrderedDict[str, Record] = OrderedDict()
        self.run: _Run | None = None

    def tag(self, role: Role, branch: int) -> dict[str, Tag]:
        """What a conditioning entry of this branch carries."""
        return {KEY: Tag(self.owner, role, branch)}

    def patch(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of `model` that samples by this method. Raises ValueError for one that cannot, or does already."""
        if model.get_attachment(KEY) is not None:
            raise ValueError(
                "This model comes from a CLoRA Attention Contrast Sampler already. Connect the model from before it, and"
                " chain all concepts into one sampler."
            )
        read_layers(model.get_model_object("diffusion_model"), 64, 64)  # raises where there is nothing to read
        # Not the host's streamed weights, which come and go between operations: a backward pass needs them to stay.
        patched = model.clone(disable_dynamic=True)
        patched.set_attachments(KEY, self)
        patched.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self._outer_sample)
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, self._sampler_sample)
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, self._predict_noise)
        patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self._calc_cond_batch)
        return patched

    def record_of(self, latent: Tensor) -> Record:
        """The record of the run that made this latent. Raises ValueError where there is none."""
        record = self.records.get(_fingerprint(latent))
        if record is None:
            raise ValueError(
                "No record of this latent: it was not sampled with the MODEL connected here, or too many runs ago. Connect"
                " the LATENT output of a sampler that uses this MODEL, and run it again."
            )
        return record

    # --- the host's wrappers, outermost first ------------------------------------------------------------------------

    def _outer_sample(self, executor, noise, *args, **kwargs):
        guider = executor.class_obj
        self._check(guider.conds, guider.model_options)
        if noise.ndim != 4:
            raise ValueError(f"CLoRA samples pictures; this latent has the shape {tuple(noise.shape)}.")
        before = self.run
        try:
            samples = executor(noise, *args, **kwargs)
            self._remember(samples)
        finally:
            self.run = before
        return samples

    def _sampler_sample(
        self, executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
    ):
        self.run = run = _Run(guider, sigmas, denoise_mask)

        def callback_at_moved(step, denoised, x, total):
            denoised = run.at(denoised)
            if self.view is not None and run.concept_masks is not None:
                latent_format = guider.inner_model.latent_format
                self.view.show(step, total, latent_format, denoised, run.concept_masks, run.heat[-1], run.losses)
            if callback is not None:
                callback(step, denoised, run.at(x), total)

        copies = guider.model_options.get("multigpu_clones", {}).values()
        with self.adapters.attached({guider.inner_model, *(patcher.model for patcher in copies)}):
            samples = executor(
                *(guider, sigmas, extra_args, callback_at_moved),
                *(noise, latent_image, denoise_mask, disable_pbar),
            )
        if run.displacement is None:
            return samples
        return samples + guider.inner_model.model_sampling.inverse_noise_scaling(sigmas[-1], run.displacement)

    def _predict_noise(self, executor, *args, **kwargs):
        run = self._running()
        run.own_call = True
        try:
            return executor(*args, **kwargs)
        finally:
            run.own_call = False

    def _calc_cond_batch(self, executor, model, conds, x, sigma, model_options):
        run = self._running()
        calls = [self._call(cond) for cond in conds]
        evaluation = Evaluation(executor, model, calls, sigma, model_options, self.adapters)
        # Of all calls for one prediction only the sampler's own, which comes first, moves the latent and makes masks.
        own = run.own_call and evaluation.main is not None
        step = run.step(float(sigma[0]))
        if own:
            run.own_call = False
            run.follow_plain(float(sigma[0]))
            run.views = self._views(run, sigma, model_options)
        evaluation.views = run.views
        recorder = None
        if own:
            for _ in range(self._updates_due(run, model, step, float(sigma[0]))):
                comfy.model_management.throw_exception_if_processing_interrupted()
                change = self._update(self.gradient(evaluation, run.at(x)), sigma, model)
                change = change * run.generated(sigma, model_options)
                run.displacement = change if run.displacement is None else run.displacement + change
            recorder = Recorder(read_layers(model.diffusion_model, *x.shape[-2:]), stop=False)

        predictions = evaluation.predict(run.at(x), recorder)
        if run.evaluations == 0:
            self.adapters.check_all_ran()
        run.evaluations += 1
        if recorder is not None:
            self._observe(run, self._complete(recorder.maps()), step, x)
            if self.settings.surroundings == "plain":
                run.departure = float(sigma[0]), self._departure(run, calls, predictions)
        return [self._fused(run, call, found) for call, found in zip(calls, predictions, strict=True)]

    def _running(self) -> _Run:
        if self.run is None:
            raise RuntimeError("A CLoRA model runs only inside a ComfyUI sampler.")
        return self.run

    # --- conditioning ------------------------------------------------------------------------------------------------

    def _check(self, conds: dict[str, list[dict]], model_options: dict) -> None:
        """Raises ValueError where the sampler node was given anything but this sampler's conditioning."""
        if model_options.get("context_handler") is not None:
            raise ValueError("CLoRA cannot sample in context windows; remove that patch from the model.")
        for name, entries in conds.items():
            tags: list[Tag | None] = [entry.get(KEY) for entry in entries]
            if not any(tags) and name not in ("positive", "middle", "negative"):
                continue  # a guider's own addition, such as Perp-Neg's empty prompt: it runs on the plain model
            if any(tag is None or tag.owner != self.owner for tag in tags):
                raise ValueError(
                    f"The {name} conditioning is not from the CLoRA Attention Contrast Sampler that made this model."
                    " Connect that node's positive and negative outputs (through ControlNet or mask nodes if you like), and"
                    " put all text into its prompts."
                )
            missing = set(range(self.branches)) - {entry[KEY].branch for entry in entries}
            if missing:
                raise ValueError(
                    f"The {name} conditioning lacks {len(missing)} of {self.branches} branches: a node on the way dropped"
                    " them. Connect the output of CLoRA Attention Contrast Sampler without that node."
                )
            if any("area" in entry for entry in entries):
                raise ValueError(
                    f"The {name} conditioning is limited to an area, but CLoRA reads attention over the whole picture. Use"
                    " a mask instead (Conditioning Set Mask with set_cond_area “default”), or masks of the concepts."
                )

    def _call(self, cond: list[dict] | None) -> Call:
        tags = [entry.get(KEY) for entry in cond or []]
        if cond is None or not any(tags):
            return Call(None, [cond])
        if any(tag is None or tag.owner != self.owner for tag in tags):
            raise ValueError("Another node mixes conditioning of its own into a CLoRA run; remove that node.")
        branches = [[entry for entry in cond if entry[KEY].branch == branch] for branch in range(self.branches)]
        return Call(cond[0][KEY].role, [*branches])

    # --- what the branches see ---------------------------------------------------------------------------------------

    def _views(self, run: _Run, sigma: Tensor, model_options: dict) -> Tensor | None:
        """What each branch is to see beyond the composed picture: p, but not where it draws."""
        if run.departure is None:
            return None
        assert run.branch_masks is not None  # made by the evaluation that the departure is of
        around = 1 - run.branch_masks.movedim(1, 0)[:, :, None]
        around[0] = 1.0
        return around * run.plain * run.generated(sigma, model_options)

    def _departure(self, run: _Run, calls: list[Call], predictions: list[list[Tensor]]) -> Tensor:
        """The base branch's prediction minus the composed one, both under guidance by the sampler's CFG."""
        of_role = {
            call.role: found[0] - self._composed(run, found)
            for call, found in zip(calls, predictions, strict=True)
            if call.role is not None
        }
        positive = of_role["positive"]
        negative = of_role.get("negative", positive)
        return negative + (positive - negative) * getattr(run.guider, "cfg", 1.0)

    # --- updates -----------------------------------------------------------------------------------------------------

    def _updates_due(self, run: _Run, model: BaseModel, step: int, sigma: float) -> int:
        settings, sampling = self.settings, model.model_sampling
        start, end = (sampling.percent_to_sigma(p) for p in (settings.update_start, settings.update_end))
        if settings.update_strength == 0 or step in run.updated or not start >= sigma > end:
            return 0
        run.updated.append(step)
        return 1 + (settings.refine_repeats if step in settings.refine_steps else 0)

    def gradient(self, evaluation: Evaluation, z: Tensor) -> Tensor:
        """∇ of each sample's loss with respect to its latent. z: (batch, channels, h, w) -> the same shape."""
        branches = list(range(self.branches))
        layers = read_layers(evaluation.model.diffusion_model, *z.shape[-2:])

        def maps_of(chosen: list[int]) -> dict[int, Tensor]:
            recorder = Recorder(layers, stop=True)
            evaluation.read(z, recorder, chosen)
            return self._complete(recorder.maps(), chosen)

        with differentiable.gradients(isinstance(layers, JointLayers), "update_strength"):
            z = z.detach().clone().requires_grad_()
            if self.settings.gradient_memory == "all at once":
                with contextlib.suppress(comfy.model_management.OOM_EXCEPTION):
                    return torch.autograd.grad(self.loss(maps_of(branches)).sum(), z)[0]
                logging.warning("CLoRA: no memory for the gradients of all branches together, so one branch at a time.")
                comfy.model_management.soft_empty_cache()
            # The loss needs the maps of all branches, its gradient one branch's graph at a time: that of the first is kept.
            with torch.no_grad():
                maps = maps_of(branches[1:])
            maps |= maps_of(branches[:1])
            leaves = {branch: found.detach().requires_grad_() for branch, found in maps.items()}
            of_maps = torch.autograd.grad(self.loss(leaves).sum(), [leaves[branch] for branch in branches])
            gradient = torch.autograd.grad(maps[0], z, of_maps[0])[0]
            del maps
            for branch in branches[1:]:
                comfy.model_management.throw_exception_if_processing_interrupted()
                gradient += torch.autograd.grad(maps_of([branch])[branch], z, of_maps[branch])[0]
            return gradient

    def loss(self, maps: dict[int, Tensor]) -> Tensor:
        """The contrast of the concepts' maps, (batch,). maps: for each branch (batch, h, w, tokens)."""
        chosen, labels = [], []
        for branch in range(self.branches):
            for concept, tokens in enumerate(self.positions[branch]):
                chosen.append(maps[branch][..., tokens].flatten(1, 2).transpose(1, 2))
                labels += [concept] * len(tokens)
        joined = torch.cat(chosen, dim=1)
        return contrast.nt_xent(joined, torch.tensor(labels, device=joined.device), self.settings.temperature)

    def _update(self, gradient: Tensor, sigma: Tensor, model: BaseModel) -> Tensor:
        """What is added to the latent, in the sampler's scale."""
        # The model sees the latent as z / scale, of unit size.
        ones = torch.ones_like(gradient)
        scale = ones / model.model_sampling.calculate_input(sigma, ones)
        if self.settings.update_unit == "absolute (paper)":
            return gradient * scale.square() * -self.settings.update_strength
        size = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        # Nothing to tell apart (one concept alone) leaves no gradient and no update.
        direction = torch.where(size > 0, gradient / size, torch.zeros_like(gradient))
        return direction * scale * -self.settings.update_strength

    # --- masks and predictions ---------------------------------------------------------------------------------------

    def _complete(self, maps: dict[int, Tensor], branches: list[int] | None = None) -> dict[int, Tensor]:
        wanted = range(self.branches) if branches is None else branches
        if any(branch not in maps for branch in wanted):
            raise ValueError(
                "The attention of a branch was not seen in this step. Remove timestep ranges and reference images from the"
                " positive conditioning, and patches that skip attention to text from the model."
            )
        return maps

    def _observe(self, run: _Run, maps: dict[int, Tensor], step: int, x: Tensor) -> None:
        """Masks, heat maps and loss from the attention of one evaluation."""
        used, claims, heat = [], [], []
        for index, concept in enumerate(self.concepts):
            own = maps[index + 1][..., self.positions[index + 1][index]].movedim(-1, 1)
            if concept.mask is None:
                claim = masks.claim(own)
                mask = masks.concept_mask(claim, self.settings.threshold, self.settings.morphology)
                used.append(masks.resize(mask, x.shape[-2:]))
                claims.append(masks.resize(masks.smooth(claim), x.shape[-2:]))
            else:
                mask = masks.resize_given(concept.mask.to(own), x.shape[-2:])
                used.append(comfy.utils.repeat_to_batch_size(mask, x.shape[0]))
                claims.append(torch.ones_like(used[-1]))
            heat.append(contrast.scaled(own.mean(dim=1).flatten(1)).view_as(own[:, 0]))
        run.concept_masks = torch.stack(used, dim=1)
        if self.settings.overlap == "strongest":
            run.claims = run.claims + torch.stack(claims, dim=1)
            run.concept_masks = masks.strongest(run.concept_masks, run.claims)
        run.branch_masks = masks.branch_masks(run.concept_masks)
        if step < self.settings.first_masked_step:
            run.branch_masks = torch.ones_like(run.branch_masks)
        run.heat.append(torch.stack(heat, dim=1).cpu())
        run.losses.setdefault(step, self.loss(maps).cpu())

    def _fused(self, run: _Run, call: Call, predictions: list[Tensor]) -> Tensor:
        """One prediction for the sampler from those of the branches, seen from where the sampler believes to be."""
        if call.branches == [None]:
            return predictions[0]
        fused = predictions[0] if call.role is None else self._composed(run, predictions)
        return fused if run.displacement is None else fused - run.displacement

    def _composed(self, run: _Run, predictions: list[Tensor]) -> Tensor:
        if run.branch_masks is None:
            return torch.stack(predictions).mean(dim=0)
        return masks.fuse(torch.stack(predictions), run.branch_masks.to(predictions[0]))

    # --- records -----------------------------------------------------------------------------------------------------

    def _remember(self, samples: Tensor) -> None:
        run = self.run
        if run is None or run.concept_masks is None:
            return  # nothing was sampled
        self.records[_fingerprint(samples)] = Record(
            [concept.name for concept in self.concepts],
            run.concept_masks.cpu(),
            torch.stack(run.heat).mean(dim=0),
            run.losses,
            run.updated,
        )
        while len(self.records) > RECORDS:
            self.records.popitem(last=False)


def _fingerprint(latent: Tensor) -> str:
    """The same for a latent before and after the sampler node has passed it on."""
    passed_on = latent.to("cpu", torch.half)  # as coarse as the host may pass it on
    return hashlib.sha256(passed_on.contiguous().numpy().tobytes()).hexdigest()
