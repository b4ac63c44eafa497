"""Capture Concept: captures concepts into files that any merge uses."""

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..loraclr_core.concept import Concept
from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.host.merge.merge import MergeSettings, capture_only
from ..loraclr_core.host.merge.target import CaptureSettings, latent_shape
from . import page
from .merge import capture_inputs, capture_templates
from .types import CATEGORY, Concepts


class CaptureConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_CaptureConcept",
            display_name="Capture Concept",
            category=CATEGORY,
            description="Captures concepts without merging them: one file each, from which LoRACLR Merge, with captures"
            " on disk and the same settings, merges any of them in any order.",
            search_aliases=["loraclr", "capture", "concept library"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that the concepts will be merged into."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                Concepts.Input(
                    "concepts", tooltip="The concepts to capture. Those that have a file are not captured again."
                ),
                *capture_inputs(),
            ],
            outputs=[
                Concepts.Output(display_name="concepts", tooltip="The concepts as they came, for LoRACLR Merge."),
                io.String.Output(display_name="report", tooltip="What was captured, and the names of the files."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @plain_errors()
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        concepts: list[Concept],
        capture_prompts: str,
        capture_steps: int,
        capture_seed: int,
        merge_text_encoder: bool,
        latent: dict | None = None,
    ) -> io.NodeOutput:
        capture = CaptureSettings(
            prompts=capture_templates(capture_prompts, concepts),
            steps=capture_steps,
            seed=capture_seed,
            latent_shape=latent_shape(model, latent),
        )
        settings = MergeSettings(capture=capture, merge_text_encoder=merge_text_encoder)
        report = capture_only(model, clip, concepts, settings, page.progress(cls.hidden.unique_id))
        page.show_text(report, cls.hidden.unique_id)
        return io.NodeOutput(concepts, report, ui={"text": (report,)})
