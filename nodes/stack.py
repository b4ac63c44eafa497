"""Concepts from LoRA Stack: the LoRAs of another pack's stack as concepts."""

from comfy_api.latest import io

from ..loraclr_core.concept import Concept
from ..loraclr_core.host.errors import plain_errors
from . import page
from .concepts import ConceptError, describe, files_of, load
from .types import CATEGORY, Concepts

LoraStack = io.Custom("LORA_STACK")  # list of (name, strength of the model, strength of the text encoder)
SEPARATOR = "|"


class ConceptsFromStack(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoRACLR_ConceptsFromStack",
            display_name="Concepts from LoRA Stack",
            category=CATEGORY,
            description="Makes a concept of each LoRA in a LORA_STACK, as the stackers of other packs give it, for the"
            " sampler and the merge.",
            search_aliases=["lora stack", "stacker", "lora manager", "loraclr"],
            inputs=[
                LoraStack.Input(
                    "lora_stack",
                    tooltip="The stack of another pack's LoRA stacker. A LoRA that is to apply to the whole picture, such"
                    " as a style, belongs into a LoRA loader before the sampler instead.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    placeholder=f"sks cat {SEPARATOR} cat",
                    tooltip="One line per LoRA, in the order of the stack: its trigger, or its trigger and class word with"
                    f" {SEPARATOR} between them. An empty or missing line takes them from the file.",
                ),
                Concepts.Input(
                    "concepts", optional=True, tooltip="The concepts so far; those of the stack are added at the end."
                ),
            ],
            outputs=[
                Concepts.Output(
                    display_name="concepts",
                    tooltip="All concepts so far. Connect to LoRACLR Merge or to CLoRA Attention Contrast Sampler.",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_stack=None, **kwargs):
        return [files_of(name) for name, *_ in lora_stack or []]

    @classmethod
    @plain_errors()
    def execute(cls, lora_stack: list, words: str, concepts: list[Concept] | None = None) -> io.NodeOutput:
        lines = words.strip("\n").split("\n")
        if len(lines) > max(1, len(lora_stack)):
            raise ConceptError(
                f"words has {len(lines)} lines and the stack {len(lora_stack)} LoRAs: write one line for each LoRA, in the"
                " order of the stack."
            )
        chain, said = list(concepts or []), []
        for number, (name, strength_model, strength_clip, *_) in enumerate(lora_stack):
            trigger, _, class_word = (lines[number] if number < len(lines) else "").partition(SEPARATOR)
            loaded = load(
                name, trigger, class_word, "", strength_model, strength_clip, chain, field="its line of words"
            )
            chain.append(loaded.concept)
            said += [f"{name}:", *describe(loaded)]
        page.show_text("\n".join(said) or "The stack is empty.", cls.hidden.unique_id)
        return io.NodeOutput(chain)
