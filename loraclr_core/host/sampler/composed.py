"""The picture with all concepts (arXiv 2403.19776): the latent is moved, and the branches' predictions are fused."""

import comfy.model_management
import torch
from torch import Tensor

from ...sampler import contrast, masks, separation
from ...sampler.areas import Areas
from ...sampler.displacement import Displacement
from ...sampler.separation import Maps
from ...sampler.turns import Turns
from . import given_masks
from .attention import Recorder
from .evaluation import Call, Evaluation
from .gradient import gradient, require_maps
from .live import LiveView
from .records import Record
from .surroundings import Prepared, Surroundings
from .take import Composition, Start, Take


class ComposedTake(Take):
    """A take with all branches.

    From step to step it keeps areas, displacement and the branches' last results, and the attention for the record.
    """

    def __init__(self, composition: Composition, start: Start, view: LiveView | None, surroundings: Surroundings):
        super().__init__(composition, start, view)
        self.branches = composition.branches
        self.surroundings = surroundings
        self.others_ask = surroundings.others_ask
        self.displacement = Displacement()
        self.areas = Areas(
            *given_masks.place(composition.concepts, composition.areas, start.noise),
            plain_claims=surroundings.plain_claims(composition.branches[0]),
            settings=composition.settings.areas,
        )
        self.turns = Turns(composition.settings.concepts_per_step)
        self.heat: list[Tensor] = []
        self.losses: dict[int, Tensor] = {}
        self.updated: list[int] = []
        self.evaluated = False

    def predict(self, evaluation: Evaluation, x: Tensor, recorder: Recorder | None) -> list[Tensor]:
        """Move the latent, predict with every branch, read the attention and fuse the predictions."""
        step = self.start.step(float(evaluation.sigma[0]))
        prepared = self.surroundings.prepare(evaluation, self.areas, by_sampler=recorder is not None)
        if recorder is not None:
            self._separate(evaluation, x, prepared.maps, step)
        predictions, maps = self._evaluate(evaluation, x, recorder, prepared, step)
        if recorder is not None:
            self._observe(require_maps(evaluation, prepared.maps | maps, range(len(self.branches))), step)
        return [
            self._fuse(call, [*before, *after])
            for call, before, after in zip(evaluation.calls, prepared.predictions, predictions, strict=True)
        ]

    def moved(self, x: Tensor) -> Tensor:
        return self.displacement.moved(x)

    def finish(self, samples: Tensor) -> Tensor:
        sampling = self.start.guider.inner_model.model_sampling
        last = self.start.sigmas[-1]
        return self.displacement.finish(samples, lambda total: sampling.inverse_noise_scaling(last, total))

    def show(self, view: LiveView, step: int, steps: int, denoised: Tensor) -> None:
        latent_format = self.start.guider.inner_model.latent_format
        heat = self.heat[-1] if self.heat else None
        areas = self.areas.concepts if self.heat else None
        view.show(step, steps, latent_format, denoised, areas, heat, self.losses)

    def record(self) -> Record | None:
        """Return attention and areas of the finished take; None where nothing was sampled."""
        if not self.heat:
            return None
        return Record(
            concepts=[concept.name for concept in self.composition.concepts],
            masks=self.areas.concepts.cpu(),
            heat=torch.stack(self.heat).mean(dim=0),
            losses=self.losses,
            updated=self.updated,
        )

    def _evaluate(
        self, evaluation: Evaluation, x: Tensor, recorder: Recorder | None, prepared: Prepared, step: int
    ) -> tuple[list[list[Tensor]], Maps]:
        """Return each list's predictions by the missing branches, and their attention where the sampler itself asks.

        Only the sampler's own calls take turns: other nodes may ask at another latent.
        """
        z, branches = self.displacement.moved(x), prepared.missing
        if recorder is None:
            predictions = evaluation.predict(z, None, branches)
            self._check_first_evaluation()
            return predictions, {}
        roles = [call.role for call in evaluation.calls]
        due = branches if self.is_compared(evaluation) else self.turns.due(branches, step, roles)
        if self._are_negatives_known(evaluation, prepared, z):
            predictions = evaluation.predict(z, recorder, due, ["positive"])
            predictions = [
                plain * len(due) if role == "negative" else own
                for role, plain, own in zip(roles, prepared.predictions, predictions, strict=True)
            ]
        else:
            predictions = evaluation.predict(z, recorder, due)
        self._check_first_evaluation()
        self.turns.hold(due, roles, predictions, require_maps(evaluation, recorder.maps(), due))
        completed = [
            predictions[number] if role is None else self.turns.predictions(branches, number)
            for number, role in enumerate(roles)
        ]
        return completed, self.turns.maps(branches)

    def _are_negatives_known(self, evaluation: Evaluation, prepared: Prepared, z: Tensor) -> bool:
        """Return whether the plain picture's negative prediction stands for those of concepts that take turns.

        It does where a run begins, at the plain picture's own latent: a LoRA changes a negative prediction little there. Patches
        that see rows are left the negative ones, as ComfyUI's NAG does nothing without them.
        """
        if self.is_compared(evaluation) or evaluation.has_row_patches() or not self.turns.are_first(prepared.missing):
            return False
        return prepared.latent is not None and torch.equal(z, prepared.latent)

    def _separate(self, evaluation: Evaluation, x: Tensor, prepared_maps: Maps, step: int) -> None:
        """Move the latent against the gradient of the separation loss, as often as is due in this step."""
        settings = self.composition.settings.updates
        for _ in range(self._updates_due(evaluation, step)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            to_loss = gradient(evaluation, self.displacement.moved(x), self.branches, prepared_maps, settings)
            # The model sees the latent as z / scale, of unit size.
            ones = torch.ones_like(to_loss)
            scale = ones / evaluation.model.model_sampling.calculate_input(evaluation.sigma, ones)
            move = separation.step(to_loss, scale, settings.strength, settings.unit)
            self.displacement.shift(move * self._locate_generated(evaluation))

    def _updates_due(self, evaluation: Evaluation, step: int) -> int:
        settings = self.composition.settings.updates
        to_sigma = evaluation.model.model_sampling.percent_to_sigma
        in_range = to_sigma(settings.start) >= float(evaluation.sigma[0]) > to_sigma(settings.end)
        if settings.strength == 0 or step in self.updated or not in_range:
            return 0
        self.updated.append(step)
        return 1 + (settings.refine_repeats if step in settings.refine_steps else 0)

    def _locate_generated(self, evaluation: Evaluation) -> Tensor | float:
        """Return where the picture is generated at this noise level, 0…1: everywhere unless there is a denoise mask."""
        mask, change = self.start.denoise_mask, evaluation.options.get("denoise_mask_function")
        if mask is None or change is None:
            return 1.0 if mask is None else mask
        extra_options = {"model": self.start.guider, "sigmas": self.start.sigmas}
        return change(evaluation.sigma, mask, extra_options=extra_options)

    def _check_first_evaluation(self) -> None:
        if not self.evaluated:
            self.composition.adapters.check_all_ran()
        self.evaluated = True

    def _observe(self, maps: Maps, step: int) -> None:
        """Update the areas by the attention of one evaluation, and keep heat maps and loss."""
        word_maps = separation.own_words(self.branches, maps)
        self.areas.update(torch.stack([masks.claim(words) for words in word_maps], dim=1), step)
        heat = [contrast.scaled(words.mean(dim=1).flatten(1)).view_as(words[:, 0]) for words in word_maps]
        self.heat.append(torch.stack(heat, dim=1).cpu())
        if step not in self.losses:
            self.losses[step] = separation.loss(
                self.branches, maps, self.composition.settings.updates.temperature
            ).cpu()

    def _fuse(self, call: Call, predictions: list[Tensor]) -> Tensor:
        """Fuse the predictions of the branches into one, as the sampler at its unmoved latent must get it."""
        if call.branches == [None]:
            return predictions[0]
        if call.role is None:
            return self.displacement.unmoved(predictions[0])
        fused = masks.fuse(torch.stack(predictions), self.areas.branches.to(predictions[0]))
        return self.displacement.unmoved(fused)
