"""Preservation Scores: what a concept's LoRA does to pictures with and without its trigger."""

import logging

import comfy.model_management
import comfy.utils
from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from torch import Tensor

from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.host.train import vision
from ..loraclr_core.host.train.preservation import Pictures, score_pictures
from ..loraclr_core.train import score_report
from ..loraclr_core.train.scores import Score
from . import page
from .types import CATEGORY

log = logging.getLogger("loraclr")


class PreservationScores(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_PreservationScores",
            display_name="Preservation Scores",
            category=CATEGORY,
            description="Scores a concept's LoRA by its pictures: does the trigger bring the concept, and does the rest"
            " of the model stay as it was? The similarity of pictures is measured by any CLIP vision model: CLIP,"
            " SigLIP or DINO.",
            search_aliases=["loraclr", "kps", "cat", "knowledge preservation", "clip score", "similarity", "evaluate"],
            is_output_node=True,
            is_input_list=True,
            inputs=_inputs(),
            outputs=[
                io.Float.Output(
                    display_name="kps",
                    tooltip="Knowledge Preservation Score: how far apart pictures with and without the trigger are."
                    " Higher is better. 1 − harmonic mean of (cos + 1) / 2, read from the figures in the paper (CAT).",
                ),
                io.Float.Output(
                    display_name="kept",
                    tooltip="How much pictures without the trigger are like the base model's: mean cosine similarity."
                    " 1: the LoRA leaves them as they were. Needs base.",
                ),
                io.Float.Output(
                    display_name="identity",
                    tooltip="How much pictures with the trigger are like the references: mean cosine similarity."
                    " Needs references.",
                ),
                io.Float.Output(
                    display_name="diversity",
                    tooltip="How far apart the pictures without the trigger are from one another: 1 − mean cosine"
                    " similarity. Needs two pictures or more.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="All scores in plain words and as a chart, with 95 % intervals, in Markdown. Connect to"
                    " Preview Any to read it.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @plain_errors()
    def execute(
        cls,
        clip_vision: list[ClipVisionModel],
        with_trigger: list[Tensor],
        without_trigger: list[Tensor],
        base: list[Tensor] | None = None,
        references: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        encoder = clip_vision[0]
        pictures = Pictures(with_trigger, without_trigger, base or [], references or [])
        bar = comfy.utils.ProgressBar(sum(pictures.counts()), node_id=cls.hidden.unique_id)

        def advance() -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(1)

        scores = score_pictures(encoder, pictures, advance)
        summary = score_report.summary(scores)
        log.info("Preservation Scores: %s", summary.replace("\n", ", "))
        page.show_text(summary, cls.hidden.unique_id)
        report = score_report.markdown(scores, vision.name(encoder.config), pictures.counts()[-1])
        return io.NodeOutput(
            scores.kps.value,
            _value(scores.kept, "kept needs pictures of the model without the LoRA: connect them to base."),
            _value(scores.identity, "identity needs pictures of the concept: connect them to references."),
            _value(scores.diversity, "diversity needs two pictures or more."),
            report,
            ui={"text": (report,)},
        )


def _inputs() -> list[io.Input]:
    return [
        io.ClipVision.Input(
            "clip_vision",
            tooltip="The encoder that compares pictures: CLIP, SigLIP or DINO, from Load CLIP Vision. Scores of different"
            " encoders cannot be compared.",
        ),
        io.Image.Input("with_trigger", tooltip="Pictures by the LoRA, of prompts with the trigger."),
        io.Image.Input(
            "without_trigger",
            tooltip="Pictures by the LoRA, of the same prompts with the class word in place of the trigger. As many as"
            " with_trigger, in the same order, with the same seeds.",
        ),
        io.Image.Input(
            "base",
            optional=True,
            tooltip="Pictures by the model without the LoRA, of the prompts and seeds of without_trigger. Needed for kept.",
        ),
        io.Image.Input(
            "references",
            optional=True,
            tooltip="Pictures of the concept, such as those it was trained on. Needed for identity.",
        ),
    ]


def _value(score: Score | None, missing: str) -> float | ExecutionBlocker:
    return ExecutionBlocker(missing) if score is None else score.value
