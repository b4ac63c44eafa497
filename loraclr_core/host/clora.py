"""CLoRA (arXiv 2403.19776) inside the host's own sampling: branches, latent updates and fused predictions.

Branch 0 is the base prompt without a LoRA, branch k the prompt with trigger k and LoRA k. Their predictions are fused by
masks that come from their cross attention. Once per step, within the update range, the latent is first moved against
the gradient of the contrast between the concepts' attention maps, and the prediction is computed at the moved latent.

What a branch sees. In the published method every branch is run on the composed picture. A LoRA then meets subjects of the
others that it was never trained beside, and redraws them; the base meets nothing but strangers, and its layout drifts; and
a concept is drawn wherever its words look, more often than once. Here the base branch makes its own picture first, the
plain one of its prompt, from the same noise (`plain.py`). Its objects are the concepts' masks, and a concept's branch sees
the composed picture within its mask and the plain one around it. Both takes together run every branch once for each of the
sampler's evaluations, as the published loop does.

The move is kept as a displacement o of the latent, beside the sampler and not inside it: the model sees x + o, the
sampler gets the prediction minus o, and o is added to what it returns. In every sampler of the host the coefficients of
latent and prediction add up to one, so its path is the moved one minus o, whichever tensors it keeps and copies. Only
what a multi-step sampler remembers from before a move is off by that one move, in its correction terms; and the ancestral
samplers of flow models scale the latent before they add noise, which the displacement does not follow.
"""

import contextlib
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import comfy.model_management
import comfy.utils
import torch
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_execution.utils import ExecutionContext, get_executing_context
from torch import Tensor

from .. import contrast, masks, objects
from ..concept import Concept
from ..masks import Morphology, Overlap
from . import differentiable, given_masks
from .attention import JointLayers, Recorder, read_layers
from .branches import BranchAdapters
from .evaluation import KEY, Call, Evaluation
from .live import LiveView
from .patches import suspects
from .plain import SAME_SIGMA, PlainPicture
from .tags import Tags

UpdateUnit = Literal["relative", "absolute (paper)"]
UPDATE_UNITS: tuple[UpdateUnit, ...] = ("relative", "absolute (paper)")
GradientMemory = Literal["one branch at a time", "all at once"]
GRADIENT_MEMORY: tuple[GradientMemory, ...] = ("one branch at a time", "all at once")
Surroundings = Literal["plain", "composed (paper)"]
SURROUNDINGS: tuple[Surroundings, ...] = ("plain", "composed (paper)")

# How many finished runs a patched model remembers for CLoRA Attention Maps.
RECORDS = 8


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
    surroundings: the picture that a concept's branch sees around its own mask. With the plain one the masks are its objects;
    with the composed one, what the concepts' own words attend to in each step.
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
    plain: PlainPicture | None
    displacement: Tensor | None = None  # o, (batch, channels, h, w)
    placed: Tensor | None = None  # masks that do not change, empty where there is none; (batch, concepts, h, w)
    fixed: Tensor | None = None  # which of them do not, (batch, concepts, 1, 1)
    branch_masks: Tensor | None = None  # (batch, branches, h, w)
    seen_masks: Tensor | None = (
        None  # those of the sampler's last own call, within which branches see the composed picture
    )
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
    """The method for one set of concepts; `patch` puts it on a model, `tags` mark the conditioning that goes with it."""

    def __init__(
        self,
        concepts: list[Concept],
        positions: list[list[list[int]]],
        adapters: BranchAdapters,
        settings: Settings,
        view: LiveView | None = None,
        say: Callable[[str], None] | None = None,
    ):
        """positions: for each branch and concept, where its tokens stand in that branch's conditioning.

        say: tells the user, on the node, what may not be as asked.
        """
        self.tags = Tags(len(positions))
        self.concepts = concepts
        self.positions = positions
        self.branches = len(positions)
        self.adapters = adapters
        self.settings = settings
        self.view = view
        self.say = say
        self.sampled_by: ExecutionContext | None = None
        self.records: OrderedDict[str, Record] = OrderedDict()
        self.plain: PlainPicture | None = None
        self.run: _Run | None = None

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
        _put_outermost(patched, self._outer_sample)
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
        if guider.model_options.get("context_handler") is not None:
            raise ValueError("CLoRA cannot sample in context windows; remove that patch from the model.")
        self.tags.check(guider.conds)
        if noise.ndim != 4:
            raise ValueError(f"CLoRA samples pictures; this latent has the shape {tuple(noise.shape)}.")
        self._doubt_masks(noise.shape)
        before, conds = (self.run, self.plain), guider.conds
        try:
            self.plain = PlainPicture() if self.settings.surroundings == "plain" else None
            if self.plain is not None:
                _check_outermost(executor)
                # A whole run of the host's, so that all that keeps a state along the schedule starts anew in the second.
                guider.conds = {name: [entry.copy() for entry in entries] for name, entries in conds.items()}
                with torch.random.fork_rng():  # both pictures get the same noise, at every step
                    executor(noise, *args, **kwargs)
                self.plain.finished = True
                guider.conds = conds
            samples = executor(noise, *args, **kwargs)
            self._remember(samples)
        finally:
            self.run, self.plain = before
        return samples

    def _doubt_masks(self, shape: torch.Size) -> None:
        """Says, on the node and in the log, what may be wrong with the concepts' masks."""
        node = get_executing_context()
        found = given_masks.doubts(self.concepts, (shape[-2], shape[-1]), node, self.sampled_by)
        self.sampled_by = node
        for doubt in found:
            logging.warning("CLoRA: %s", doubt)
        if found and self.say is not None:
            self.say("\n".join(found))

    def _sampler_sample(
        self, executor, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
    ):
        self.run = run = _Run(guider, sigmas, denoise_mask, self.plain)

        def report(step, denoised, x, total):
            denoised = run.at(denoised)
            if self.view is not None:
                latent_format = guider.inner_model.latent_format
                heat = run.heat[-1] if run.heat else None
                self.view.show(step, total, latent_format, denoised, run.concept_masks, heat, run.losses)
            if callback is not None:
                callback(step, denoised, run.at(x), total)

        copies = guider.model_options.get("multigpu_clones", {}).values()
        with self.adapters.attached({guider.inner_model, *(patcher.model for patcher in copies)}):
            samples = executor(guider, sigmas, extra_args, report, noise, latent_image, denoise_mask, disable_pbar)
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
        calls = [self.tags.call(cond) for cond in conds]
        evaluation = Evaluation(executor, model, calls, sigma, model_options, self.adapters)
        # Of all calls for one prediction only the sampler's own, which comes first, moves the latent and makes masks.
        own = run.own_call and evaluation.main is not None
        run.own_call = run.own_call and not own
        recorder = Recorder(read_layers(model.diffusion_model, *x.shape[-2:]), stop=False) if own else None
        if run.plain is not None and not run.plain.finished:
            return self._plain(run.plain, evaluation, x, recorder)
        return self._composed(run, evaluation, x, recorder)

    def _plain(self, plain: PlainPicture, evaluation: Evaluation, x: Tensor, recorder: Recorder | None) -> list[Tensor]:
        """An evaluation of the first take, by the base branch alone."""
        predictions = [found for (found,) in evaluation.predict(x, recorder, [0])]
        maps = None if recorder is None else self._complete(evaluation, recorder.maps(), [0])[0]
        plain.add(float(evaluation.sigma[0]), x, predictions, maps)
        return predictions

    def _composed(self, run: _Run, evaluation: Evaluation, x: Tensor, recorder: Recorder | None) -> list[Tensor]:
        """An evaluation of the picture with the concepts; what is known of the plain one is not evaluated again."""
        sigma, own = float(evaluation.sigma[0]), recorder is not None
        step = run.step(sigma)
        if run.placed is None:
            self._place(run, step, x)
        moment, branches, known = None, range(self.branches), {}
        if run.plain is not None:
            moment = run.plain.next(sigma, len(evaluation.calls), own)
            if own or run.seen_masks is None:
                run.seen_masks = run.branch_masks
            evaluation.surround(moment.x, run.seen_masks)
            branches, known = branches[1:], {} if moment.maps is None else {0: moment.maps}
        if own:
            for _ in range(self._updates_due(run, evaluation.model, step, sigma)):
                comfy.model_management.throw_exception_if_processing_interrupted()
                change = self._update(self.gradient(evaluation, run.at(x), known), evaluation.sigma, evaluation.model)
                change = change * run.generated(evaluation.sigma, evaluation.options)
                run.displacement = change if run.displacement is None else run.displacement + change

        predictions = evaluation.predict(run.at(x), recorder, branches)
        if moment is not None:
            of_calls = zip(evaluation.calls, moment.predictions, predictions, strict=True)
            predictions = [found if call.role is None else [plain, *found] for call, plain, found in of_calls]
        if run.evaluations == 0:
            self.adapters.check_all_ran()
        run.evaluations += 1
        if recorder is not None:
            self._observe(run, self._complete(evaluation, known | recorder.maps()), step, x.shape[-2:])
        return [self._fused(run, call, found) for call, found in zip(evaluation.calls, predictions, strict=True)]

    def _running(self) -> _Run:
        if self.run is None:
            raise RuntimeError("A CLoRA model runs only inside a ComfyUI sampler.")
        return self.run

    # --- updates -----------------------------------------------------------------------------------------------------

    def _updates_due(self, run: _Run, model: BaseModel, step: int, sigma: float) -> int:
        settings, sampling = self.settings, model.model_sampling
        start, end = (sampling.percent_to_sigma(p) for p in (settings.update_start, settings.update_end))
        if settings.update_strength == 0 or step in run.updated or not start >= sigma > end:
            return 0
        run.updated.append(step)
        return 1 + (settings.refine_repeats if step in settings.refine_steps else 0)

    def gradient(self, evaluation: Evaluation, z: Tensor, known: dict[int, Tensor]) -> Tensor:
        """∇ of each sample's loss with respect to its latent. z: (batch, channels, h, w) -> the same shape.

        known: maps of branches that do not see this latent.
        """
        branches = [branch for branch in range(self.branches) if branch not in known]
        layers = read_layers(evaluation.model.diffusion_model, *z.shape[-2:])

        def maps_of(chosen: list[int]) -> dict[int, Tensor]:
            recorder = Recorder(layers, stop=True)
            evaluation.read(z, recorder, chosen)
            return self._complete(evaluation, recorder.maps(), chosen)

        with differentiable.gradients(isinstance(layers, JointLayers), "update_strength"):
            z = z.detach().clone().requires_grad_()
            known = {branch: found.clone() for branch, found in known.items()}  # no inference tensors
            if self.settings.gradient_memory == "all at once":
                with contextlib.suppress(comfy.model_management.OOM_EXCEPTION):
                    return torch.autograd.grad(self.loss(known | maps_of(branches)).sum(), z)[0]
                logging.warning("CLoRA: no memory for the gradients of all branches together, so one branch at a time.")
                comfy.model_management.soft_empty_cache()
            # The loss needs the maps of all branches, its gradient one branch's graph at a time: that of the first is kept.
            with torch.no_grad():
                maps = maps_of(branches[1:])
            maps |= maps_of(branches[:1])
            leaves = {branch: found.detach().requires_grad_() for branch, found in maps.items()}
            of_maps = torch.autograd.grad(self.loss(known | leaves).sum(), [leaves[branch] for branch in branches])
            gradient = torch.autograd.grad(maps[branches[0]], z, of_maps[0])[0]
            del maps
            for branch, of_map in zip(branches[1:], of_maps[1:], strict=True):
                comfy.model_management.throw_exception_if_processing_interrupted()
                gradient += torch.autograd.grad(maps_of([branch])[branch], z, of_map)[0]
            return gradient

    def loss(self, maps: dict[int, Tensor]) -> Tensor:
        """The contrast of the concepts' maps, (batch,). maps: for each branch (batch, h, w, tokens)."""
        chosen, labels = [], []
        for branch in range(self.branches):
            for concept, tokens in enumerate(self.positions[branch]):
                chosen.append(self._words(maps[branch], branch, concept).flatten(2))
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

    def _complete(
        self, evaluation: Evaluation, maps: dict[int, Tensor], branches: list[int] | None = None
    ) -> dict[int, Tensor]:
        wanted = range(self.branches) if branches is None else branches
        if any(branch not in maps for branch in wanted):
            others = evaluation.wrappers()
            raise ValueError(
                "The attention of a branch was not seen in this step. Remove timestep ranges and reference images from the"
                " positive conditioning, and patches that skip attention to text from the model."
                + (
                    f" {suspects(others)} may have kept the model from running: remove that node. LazyCache, which skips"
                    " whole steps, works."
                    if others
                    else ""
                )
            )
        return maps

    def _words(self, maps: Tensor, branch: int, concept: int) -> Tensor:
        """Maps of one branch, (batch, h, w, tokens) -> of a concept's tokens, (batch, its tokens, h, w)."""
        return maps[..., self.positions[branch][concept]].movedim(-1, 1)

    def _place(self, run: _Run, step: int, x: Tensor) -> None:
        """Where concepts are from the start: those with a mask there, and each other one at an object of the plain picture."""
        size = x.shape[-2:]
        given = [concept.mask is not None for concept in self.concepts]
        placed = x.new_zeros(x.shape[0], len(given), *size)
        for index, concept in enumerate(self.concepts):
            if concept.mask is not None:
                mask = masks.resize(concept.mask[:, None].to(x), size, "area")
                placed[:, index] = comfy.utils.repeat_to_batch_size(mask, x.shape[0])[:, 0]
        others = [index for index, is_given in enumerate(given) if not is_given]
        if run.plain is not None and others:
            each = [
                torch.stack([masks.claim(self._words(maps, 0, index)) for index in others], dim=1)
                for maps in run.plain.maps
            ]
            claims = torch.stack(each).mean(dim=0)
            taken = masks.resize(placed.amax(dim=1, keepdim=True), claims.shape[-2:], "area")
            found = objects.masks(claims * (taken == 0), self.settings.threshold, self.settings.morphology)
            placed[:, others] = masks.resize(found, size)
        fixed = placed.amax(dim=(-2, -1), keepdim=True) > 0
        fixed[:, given] = True
        run.placed, run.fixed = placed, fixed
        run.branch_masks = self._branch_masks(placed, step)

    def _observe(self, run: _Run, maps: dict[int, Tensor], step: int, size: torch.Size) -> None:
        """Masks, heat maps and loss from the attention of one evaluation. size: of the latent."""
        assert run.placed is not None
        assert run.fixed is not None
        own = [self._words(maps[index + 1], index + 1, index) for index in range(len(self.concepts))]
        claims = torch.stack([masks.claim(each) for each in own], dim=1)
        found = masks.resize(masks.concept_mask(claims, self.settings.threshold, self.settings.morphology), size)
        if run.plain is not None:
            found = found * (1 - run.placed.amax(dim=1, keepdim=True))
        run.concept_masks = torch.where(run.fixed, run.placed, found)
        if self.settings.overlap == "strongest":
            claims = masks.resize(masks.smooth(claims), size)
            claims[:, [concept.mask is not None for concept in self.concepts]] = 1
            run.claims = run.claims + claims
            run.concept_masks = masks.strongest(run.concept_masks, run.claims)
        run.branch_masks = self._branch_masks(run.concept_masks, step)
        heat = [contrast.scaled(each.mean(dim=1).flatten(1)).view_as(each[:, 0]) for each in own]
        run.heat.append(torch.stack(heat, dim=1).cpu())
        run.losses.setdefault(step, self.loss(maps).cpu())

    def _branch_masks(self, concept_masks: Tensor, step: int) -> Tensor:
        found = masks.branch_masks(concept_masks)
        return torch.ones_like(found) if step < self.settings.first_masked_step else found

    def _fused(self, run: _Run, call: Call, predictions: list[Tensor]) -> Tensor:
        """One prediction for the sampler from those of the branches, seen from where the sampler believes to be."""
        if call.branches == [None]:
            return predictions[0]
        if call.role is None:
            fused = predictions[0]
        else:
            assert run.branch_masks is not None
            fused = masks.fuse(torch.stack(predictions), run.branch_masks.to(predictions[0]))
        return fused if run.displacement is None else fused - run.displacement

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


def _put_outermost(model: ModelPatcher, outer_sample: Callable) -> None:
    """Puts a wrapper around those of all other nodes, upstream and behind: what it calls is a whole run to each of them."""
    wrappers = model.model_options["transformer_options"].setdefault("wrappers", {})  # run before `model.wrappers`
    wrappers[WrappersMP.OUTER_SAMPLE] = {KEY: [outer_sample], **wrappers.get(WrappersMP.OUTER_SAMPLE, {})}


def _check_outermost(executor: WrapperExecutor) -> None:
    """Raises ValueError where another node's wrapper would see both takes as one run."""
    outside = executor.wrappers[: executor.idx]
    if outside:
        raise ValueError(
            f"{suspects(outside)} runs around CLoRA's whole sampling, which samples twice: first the plain picture, then the one"
            " with the concepts. Put that node before CLoRA Attention Contrast Sampler, or set surroundings to “composed"
            " (paper)”."
        )


def _fingerprint(latent: Tensor) -> str:
    """The same for a latent before and after the sampler node has passed it on."""
    passed_on = latent.to("cpu", torch.half)  # as coarse as the host may pass it on
    return hashlib.sha256(passed_on.contiguous().numpy().tobytes()).hexdigest()
