"""CLoRA (arXiv 2403.19776) as a patch of a model, for every sampler of ComfyUI.

Branch 0 is the base prompt without a LoRA; branch k is the prompt with trigger k and LoRA k. Their predictions are
fused by areas that come from their cross attention. With updates, the latent is first moved against the gradient of the
contrast between the concepts' attention maps, once per step, and the prediction is computed at the moved latent.

With the plain picture around the concepts, a run has two takes from the same noise. In the first, the base branch alone
makes the plain picture; in the second, the concepts are composed in it. Both takes together evaluate every branch once
for each of the sampler's evaluations, as the published loop does; less often where concepts take turns.
"""

from collections.abc import Callable

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_execution.utils import ExecutionContext, get_executing_context
from torch import Tensor

from ...sampler import clarity
from ..errors import plain_errors
from . import evidence, given_masks
from .composed import ComposedTake
from .evaluation import KEY
from .live import LiveView
from .notes import Notes
from .patches import suspects
from .plain import PlainPicture, PlainTake
from .records import Records
from .surroundings import ComposedSurroundings, PlainSurroundings
from .take import Composition, Start, Take, set_wrapper

STOPPED = "This is the plain picture: the run has stopped before the concepts, because if_unclear is “stop after the plain take”."


class CLoRA:
    """The method for one composition. records: attention and areas of finished runs."""

    def __init__(self, composition: Composition, view: LiveView | None, notes: Notes):
        """Prepare for `patch`. view: shows a run while it lasts."""
        self.composition = composition
        self.view = view
        self.notes = notes
        self.records = Records()
        self.sampled_by: ExecutionContext | None = None  # the node's run that sampled last

    def patch(self, model: ModelPatcher) -> ModelPatcher:
        """Return a clone of `model` that samples by this method. Raises ValueError if `model` does so already."""
        if model.get_attachment(KEY) is not None:
            raise ValueError(
                "This model comes from a CLoRA Attention Contrast Sampler already. Connect the model from before it, and"
                " chain all concepts into one sampler."
            )
        # ComfyUI's streamed weights come and go between operations, but a backward pass needs them to stay.
        patched = model.clone(disable_dynamic=True)
        patched.set_attachments(KEY, self)
        _put_outermost(patched, self._outer_sample)
        for kind in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE, WrappersMP.CALC_COND_BATCH):
            patched.add_wrapper_with_key(kind, KEY, _refuse)  # a take replaces it by its own
        return patched

    @plain_errors()
    def _outer_sample(self, executor: WrapperExecutor, noise: Tensor, *args, **kwargs) -> Tensor:
        self.notes.start()
        self._check(executor.class_obj, noise)
        if self.view is not None:
            self.view.start()

        def sample(make_take: Callable[[Start], Take]) -> tuple[Tensor, Take]:
            return _sample(lambda: executor(noise, *args, **kwargs), executor.class_obj, make_take)

        if self.composition.settings.surroundings == "composed (paper)":
            around = ComposedSurroundings(len(self.composition.branches))
        else:
            plain_samples, picture = self._sample_plain(executor, sample)
            if self._is_over(picture, plain_samples):
                return plain_samples
            around = PlainSurroundings(len(self.composition.branches), picture)
        samples, take = sample(lambda start: ComposedTake(self.composition, start, self.view, around))
        if (record := take.record()) is not None:
            self.records.keep(samples, record)
        return samples

    def _check(self, guider: comfy.samplers.CFGGuider, noise: Tensor) -> None:
        """Raise ValueError for input that cannot be sampled; warn where the result differs from what was asked for."""
        if guider.model_options.get("context_handler") is not None:
            raise ValueError("CLoRA cannot sample in context windows; remove that patch from the model.")
        self.composition.tags.check(guider.conds)
        if noise.ndim not in (4, 5) or noise.shape[2:-2].numel() != 1:
            raise ValueError(
                f"CLoRA samples pictures, and this latent, of the shape {tuple(noise.shape)}, is not one: connect a latent with"
                " one frame."
            )
        node, before = get_executing_context(), self.sampled_by
        self.sampled_by = node
        given = given_masks.by_name(self.composition.concepts, self.composition.areas)
        self.notes.warn(given_masks.doubts(given, noise.shape, node, before))

    def _sample_plain(self, executor: WrapperExecutor, sample: Callable) -> tuple[Tensor, PlainPicture]:
        """Return the samples of the plain picture, and how it came about."""
        _check_outermost(executor)
        guider = executor.class_obj
        conds = guider.conds
        # The first take is a run of its own: whatever keeps a state along the schedule starts anew in the second.
        guider.conds = {name: [entry.copy() for entry in entries] for name, entries in conds.items()}
        try:
            with torch.random.fork_rng():  # both takes get the same noise, at every step
                samples, take = sample(lambda start: PlainTake(self.composition, start, self.view))
        finally:
            guider.conds = conds
        return samples, take.picture()

    def _is_over(self, picture: PlainPicture, samples: Tensor) -> bool:
        """Say where each concept goes, and return whether the run ends with the plain picture. samples: of that picture."""
        shown = evidence.gather(self.composition, picture, samples)
        if shown is None:
            return False
        unclear = clarity.warnings(self.composition.concepts, shown)
        is_over = bool(unclear) and self.composition.settings.if_unclear == "stop after the plain take"
        self.notes.warn([*unclear, *([STOPPED] if is_over else [])])
        self.notes.tell(clarity.sizes(self.composition.concepts, shown))
        if is_over:
            self.records.keep(samples, evidence.record(self.composition, shown))
        return is_over


def _sample(run: Callable[[], Tensor], guider: comfy.samplers.CFGGuider, make_take: Callable[[Start], Take]):
    """Return the samples of `run`, and the take that made them."""
    takes: list[Take] = []

    def sampler_sample(
        executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ) -> Tensor:
        takes.append(make_take(Start(guider, sigmas, denoise_mask, noise)))
        return takes[-1].run(executor, extra_args, callback, latent_image, disable_pbar)

    set_wrapper(guider.model_options, WrappersMP.SAMPLER_SAMPLE, sampler_sample)
    samples = run()
    return samples, takes[-1]


def _put_outermost(model: ModelPatcher, outer_sample: Callable) -> None:
    """Add a wrapper outside those of all other nodes, upstream and downstream: to them, each of its calls is a run."""
    wrappers = model.model_options["transformer_options"].setdefault("wrappers", {})  # run before `model.wrappers`
    wrappers[WrappersMP.OUTER_SAMPLE] = {KEY: [outer_sample], **wrappers.get(WrappersMP.OUTER_SAMPLE, {})}


def _check_outermost(executor: WrapperExecutor) -> None:
    """Raise ValueError where another node's wrapper would see both takes as one run."""
    outside = executor.wrappers[: executor.idx]
    if outside:
        raise ValueError(
            f"{suspects(outside)} runs around CLoRA's whole sampling, which samples twice: first the plain picture, then the one"
            " with the concepts. Put that node before CLoRA Attention Contrast Sampler, or set surroundings to “composed"
            " (paper)”."
        )


def _refuse(*args, **kwargs) -> None:
    raise RuntimeError("A CLoRA model runs only inside a ComfyUI sampler.")
