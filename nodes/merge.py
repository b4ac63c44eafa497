"""LoRACLR Merge: several concept LoRAs into one model and one LoRA."""

import contextlib
from collections.abc import Iterator

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ..loraclr_core.braces import select_named
from ..loraclr_core.concept import Concept
from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.host.merge import export, report
from ..loraclr_core.host.merge.merge import FORMER_KEEPING, KEEPINGS, SOLVERS, Keeping, MergeSettings, Solver, merge
from ..loraclr_core.host.merge.target import CaptureSettings, latent_shape
from ..loraclr_core.host.merge.together import read_together
from ..loraclr_core.merge.objective import Margin, MarginMode
from ..loraclr_core.merge.templates import check_template
from . import page
from .types import CATEGORY, Concepts, MergeInfo

MARGIN_MODES: dict[str, MarginMode] = {"absolute (paper)": "absolute", "relative": "relative"}


def capture_inputs() -> list[io.Input]:
    """Return the inputs that say how concepts are captured."""
    return [
        io.String.Input(
            "capture_prompts",
            display_name="capture prompts",
            default="photo of a {trigger}",
            multiline=True,
            dynamic_prompts=False,
            advanced=True,
            tooltip="Before it merges, the node samples each concept with its own LoRA and keeps what every layer"
            " sees: a capture. One prompt per line; {trigger} stands for the concept's trigger. Each line adds one"
            " sampling run per concept.",
        ),
        io.Int.Input(
            "capture_steps",
            display_name="capture steps",
            default=20,
            min=1,
            max=1000,
            advanced=True,
            tooltip="Sampling steps per capture prompt. Fewer steps are faster but capture less of each concept.",
        ),
        io.Int.Input(
            "capture_seed",
            display_name="capture seed",
            default=0,
            min=0,
            max=0xFFFFFFFF,
            control_after_generate=False,
            advanced=True,
            tooltip="Seed for the noise and the choice of tokens in the captures. All concepts share it.",
        ),
        io.Boolean.Input(
            "merge_text_encoder",
            display_name="merge text encoder",
            default=True,
            advanced=True,
            tooltip="Merges the text-encoder parts of the LoRAs, too. Turn off to leave the text encoder"
            " unchanged and drop those parts.",
        ),
        io.Latent.Input(
            "latent",
            optional=True,
            tooltip="The picture size to sample the concepts at before merging; its content is ignored. Connect an"
            " Empty Latent Image of the size you work in, 1024×1024 for SDXL. 512×512 if not connected.",
        ),
    ]


def _inputs() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model to merge into. LoRAs loaded before this node count as part of it."),
        io.Clip.Input("clip", tooltip="The model's text encoder."),
        Concepts.Input("concepts", tooltip="The concepts to merge. Connect the last Load Concept LoRA of the chain."),
        io.Combo.Input(
            "solver",
            options=list(SOLVERS),
            default="exact",
            tooltip="How to merge. exact: finds the best weights in seconds. adamw (paper): runs the published"
            " optimiser, for comparison; keeps 400 tokens per layer and concept in memory (0.6"
            " GB per SD1.5 concept). sum (baseline): plain stacking.",
        ),
        io.Float.Input(
            "margin",
            default=0.5,
            min=0.0,
            max=1000.0,
            step=0.05,
            advanced=True,
            tooltip="How far to keep each concept from the features of the others. The paper's absolute 0.5"
            " is hardly ever active; the report shows how often. To see an effect, set the margin unit"
            " to relative and try 0.5 to 1.",
        ),
        io.Combo.Input(
            "margin_mode",
            display_name="margin unit",
            options=list(MARGIN_MODES),
            default="absolute (paper)",
            advanced=True,
            tooltip="Unit of the margin. absolute (paper): a distance between features. relative: a fraction"
            " of the mean distance between two concepts; try 0.5 to 1.",
        ),
        io.Float.Input(
            "ridge",
            default=0.1,
            min=1e-6,
            max=10.0,
            step=0.001,
            round=1e-6,
            advanced=True,
            tooltip="How closely the merge keeps to plain stacking where the captures say little. Lower values keep"
            " concepts further apart but weaken them on prompts unlike the capture prompts. Used by exact only.",
        ),
        io.Float.Input(
            "anchor_weight",
            display_name="anchor weight",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="How strongly to preserve the plain model's output on the class words. 1 counts as much"
            " as one concept. Above 0, takes one more capture per class word. Used by exact only.",
        ),
        *capture_inputs(),
        io.Combo.Input(
            "captures",
            display_name="keep captures",
            options=list(KEEPINGS),
            default="in memory",
            optional=True,
            advanced=True,
            tooltip="Where to keep captures (what each LoRA did while it was sampled). With them, a new ridge takes"
            " only seconds, and a concept added at the end one capture. in memory: while the model stays loaded. on disk: one"
            " file per concept, for any merge of any of them, after a restart, too, up to 16 GiB in loraclr_captures in ComfyUI's user folder; the least recently"
            " used are deleted first. Clear Captures deletes all of them.",
        ),
        io.Int.Input(
            "distillation_steps",
            display_name="distillation steps",
            default=0,
            min=0,
            max=10000,
            optional=True,
            tooltip="Fine-tunes the merged LoRA for this many steps to match each concept's own LoRA. Try 200"
            " for many or similar concepts. Takes minutes, and memory for the gradients of one picture of the"
            " latent's size. 0: no fine-tuning.",
        ),
        io.String.Input(
            "prompt",
            default="",
            multiline=True,
            dynamic_prompts=False,
            optional=True,
            advanced=True,
            tooltip="Merges only the concepts that this prompt names in braces, such as {cat} and {dog}; the rest of the"
            " chain is ignored. Empty: all concepts.",
        ),
        io.Latent.Input(
            "pictures_together",
            display_name="pictures together",
            optional=True,
            tooltip="Pictures that show several of the concepts at once, such as 8 to 24 by the CLoRA sampler. The"
            " fine-tuning then also teaches the merged LoRA to draw them together; several prompts with"
            " different surroundings are better than one. Needs distillation steps, and together prompt among the advanced inputs.",
        ),
        io.String.Input(
            "together_prompt",
            display_name="together prompt",
            default="",
            multiline=True,
            dynamic_prompts=False,
            optional=True,
            advanced=True,
            tooltip="What pictures together show, with the concepts' names in braces: photo of {cat} and {dog}. One line"
            " for all pictures, or one for each equal part of them, in their order.",
        ),
    ]


class LoRACLRMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_Merge",
            display_name="LoRACLR Merge",
            category=CATEGORY,
            description="Merges several concept LoRAs into one model, and into one LoRA file. It finds weights that do for"
            " each concept what its own LoRA does (LoRACLR, arXiv 2412.09622). Name the concepts by their triggers"
            " in prompts of the merged model.",
            search_aliases=["merge lora", "loraclr", "combine lora", "merge characters"],
            inputs=_inputs(),
            outputs=[
                io.Model.Output(tooltip="The model with all concepts merged in."),
                io.Clip.Output(tooltip="The text encoder with all concepts merged in."),
                io.LoraModel.Output(display_name="lora", tooltip="The merge as one LoRA. Connect to Save Merged LoRA."),
                MergeInfo.Output(
                    display_name="merge_info",
                    tooltip="Concepts, triggers and settings of the merge. Connect to Save Merged LoRA to write them"
                    " into the file.",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="Report on the merge, in Markdown. Connect to Preview Any to read it.",
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, captures: str | None = None) -> bool | str:
        if captures is None or captures in (*KEEPINGS, FORMER_KEEPING):
            return True
        return f"captures is “{captures}”: choose {' or '.join(KEEPINGS)}."

    @classmethod
    @plain_errors()
    def execute(
        cls,
        model: ModelPatcher,
        clip: CLIP,
        concepts: list[Concept],
        solver: Solver,
        margin: float,
        margin_mode: str,
        ridge: float,
        anchor_weight: float,
        capture_prompts: str,
        capture_steps: int,
        capture_seed: int,
        merge_text_encoder: bool,
        latent: dict | None = None,
        captures: Keeping = "in memory",
        distillation_steps: int = 0,
        prompt: str = "",
        pictures_together: dict | None = None,
        together_prompt: str = "",
    ) -> io.NodeOutput:
        capture = CaptureSettings(
            prompts=capture_templates(capture_prompts, concepts),
            steps=capture_steps,
            seed=capture_seed,
            latent_shape=latent_shape(model, latent),
        )
        named = select_named(prompt, concepts)
        settings = MergeSettings(
            solver=solver,
            margin=Margin(margin, MARGIN_MODES[margin_mode]),
            ridge=ridge,
            anchor_weight=anchor_weight,
            capture=capture,
            merge_text_encoder=merge_text_encoder,
            captures=captures,
            distillation_steps=distillation_steps,
            together=read_together(model, pictures_together, together_prompt, distillation_steps, named),
        )
        progress = page.progress(cls.hidden.unique_id)
        with _saying_when_cancelled(cls.hidden.unique_id):
            result = merge(model, clip, named, settings, progress)
        progress(f"merged in {sum(result.seconds.values()):.0f} s", 1.0)
        return io.NodeOutput(
            result.model,
            result.clip,
            result.lora,
            export.info(result),
            report.markdown(result),
            ui={"loraclr_merge": [report.panel(result) | page.source(cls.hidden)]},
        )


def capture_templates(text: str, concepts: list[Concept]) -> tuple[str, ...]:
    """Return the lines of a text as capture prompts. Raises PromptError or ValueError where they are none."""
    prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
    for prompt in prompts:
        check_template(prompt, concepts)
    if not prompts:
        raise ValueError("No capture prompts: write at least one line, such as “photo of a {trigger}”.")
    return prompts


@contextlib.contextmanager
def _saying_when_cancelled(node_id: str) -> Iterator[None]:
    """Say so under the node, where the last phase would stay otherwise."""
    try:
        yield
    except comfy.model_management.InterruptProcessingException:
        page.show_text("Cancelled: nothing was merged.", node_id)
        raise
