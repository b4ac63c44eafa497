"""Load Concept LoRA: a LoRA with its words."""

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..loraclr_core.concept import Concept
from ..loraclr_core.host.errors import plain_errors
from ..loraclr_core.host.lora import adapters, file
from . import page
from .concepts import describe, files_of, load
from .types import CATEGORY, Concepts


class LoadConceptLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_LoadConceptLoRA",
            display_name="Load Concept LoRA",
            category=CATEGORY,
            description="Loads one concept: a character, person, pet or object that a LoRA was trained on, with the words"
            " for it. Chain one node per concept and connect the last one to CLoRA Attention Contrast Sampler (several"
            " in one picture) or LoRACLR Merge (one LoRA file).",
            search_aliases=["lora", "concept", "subject", "character", "loraclr"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list("loras"),
                    tooltip="The LoRA of one character, person, pet or object, from the loras folder. Choosing a file fills"
                    " in the trigger and class word if the file names them, and renames the concept in the prompt.",
                ),
                io.String.Input(
                    "trigger",
                    default="",
                    dynamic_prompts=False,
                    placeholder="sks cat",
                    tooltip="The phrase the LoRA was trained on, as you would write it in a prompt: “sks cat”. The page"
                    " you downloaded the LoRA from often names it. Leave empty to read it from the file or from"
                    " what a LoRA manager keeps beside it; the node shows what it found.",
                ),
                io.String.Input(
                    "class_word",
                    default="",
                    dynamic_prompts=False,
                    placeholder="cat",
                    tooltip="What it is without its name, in words that any model knows: cat, woman, red car. Leave empty"
                    " to use the last word of a longer trigger. Needed by the sampler, and by anchor_weight and"
                    " distillation_steps of the merge.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    dynamic_prompts=False,
                    placeholder="cat",
                    tooltip="What to call the concept in the sampler's prompt, between braces: {cat}. Each concept needs"
                    " another name. Leave empty to use the class word, or the trigger if there is none.",
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly to modify the diffusion model. Can be negative.",
                ),
                io.Float.Input(
                    "strength_clip",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly to modify the text encoder. Can be negative.",
                ),
                Concepts.Input(
                    "concepts",
                    optional=True,
                    tooltip="The concepts so far, from the previous Load Concept LoRA; this one is added at the end."
                    " Leave unconnected on the first node.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Connect a model to try this concept alone, with the MODEL output. Not needed otherwise.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Connect a text encoder to try this concept alone, with the CLIP output. Not needed"
                    " otherwise.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where to draw the concept: 1 there, 0 elsewhere. Connect one mask for the whole batch,"
                    " or one per picture. Only the sampler uses it; the merge ignores it.",
                ),
            ],
            outputs=[
                Concepts.Output(
                    display_name="concepts",
                    tooltip="All concepts so far. Connect to the next Load Concept LoRA, to LoRACLR Merge or to CLoRA"
                    " Attention Contrast Sampler.",
                ),
                io.Model.Output(tooltip="The model with this concept alone. Needs the model input."),
                io.Clip.Output(tooltip="The text encoder with this concept alone. Needs the clip input."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name, **kwargs):
        return files_of(lora_name)

    @classmethod
    @plain_errors()
    def execute(
        cls,
        lora_name: str,
        trigger: str,
        class_word: str,
        name: str,
        strength_model: float,
        strength_clip: float,
        concepts: list[Concept] | None = None,
        model: ModelPatcher | None = None,
        clip: CLIP | None = None,
        mask: Tensor | None = None,
    ) -> io.NodeOutput:
        loaded = load(lora_name, trigger, class_word, name, strength_model, strength_clip, concepts or [], mask)
        page.show_text("\n".join(describe(loaded)), cls.hidden.unique_id)
        if model is not None or clip is not None:  # only here are its tensors read: to try the concept alone
            tensors, _ = file.read(loaded.concept.path)
            model, clip = adapters.load_alone(lora_name, tensors, model, clip, strength_model, strength_clip)
        chain = [*(concepts or []), loaded.concept]
        return io.NodeOutput(chain, _block_missing(model, "model"), _block_missing(clip, "clip"))


def _block_missing(output, socket: str):
    if output is not None:
        return output
    return ExecutionBlocker(f"Load Concept LoRA gives {socket.upper()} only where its {socket} input is connected.")
