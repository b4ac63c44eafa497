"""What saved workflows and the page rely on."""

import inspect
import json
import re
import tomllib
from pathlib import Path

import host
import nodes
import pytest

ROOT = Path(__file__).parents[2]

# Saved workflows store widget values by position: this list may only ever grow at the end.
WIDGETS = {
    "LoRACLR_LoadConceptLoRA": ["lora_name", "trigger", "class_word", "name", "strength_model", "strength_clip"],
    "LoRACLR_ConceptArea": ["area", "left", "top", "width", "height"],
    "LoRACLR_ConceptsFromStack": ["words"],
    "LoRACLR_Merge": [
        *("solver", "margin", "margin_mode", "ridge", "anchor_weight", "capture_prompts", "capture_steps"),
        *("capture_seed", "merge_text_encoder", "captures", "distillation_steps", "prompt", "together_prompt"),
    ],
    "LoRACLR_SaveMergedLoRA": ["filename", "folder", "if_exists", "precision", "max_rank"],
    "LoRACLR_CLoRASampler": [
        *("prompt", "negative", "update_strength", "update_unit", "update_start", "update_end", "refine_steps"),
        *("refine_repeats", "temperature", "mask_threshold", "mask_morphology", "first_masked_step", "gradient_memory"),
        *("live_view", "mask_overlap", "surroundings", "concepts_per_step", "if_unclear", "plain_every"),
    ],
    "LoRACLR_CLoRAMaps": ["batch_index"],
    "LoRACLR_ClearCaptures": [],
    "LoRACLR_CaptureConcept": ["capture_prompts", "capture_steps", "capture_seed", "merge_text_encoder"],
    "LoRACLR_TrainConcept": [
        *(
            "trigger",
            "class_word",
            "name",
            "steps",
            "learning_rate",
            "rank",
            "preservation",
            "beside",
            "preserve_prompts",
        ),
        *("preserve_every", "outside", "weighting", "batch", "layers", "ema", "caption_dropout", "flip", "resolution"),
        *("checkpointing", "save_every", "keep", "preview_every", "preview_prompts", "training_seed", "if_there"),
    ],
    "LoRACLR_PreservationScores": [],
}
OUTPUTS = {
    "LoRACLR_LoadConceptLoRA": ["LORACLR_CONCEPTS", "MODEL", "CLIP"],
    "LoRACLR_ConceptArea": ["MASK"],
    "LoRACLR_ConceptsFromStack": ["LORACLR_CONCEPTS"],
    "LoRACLR_Merge": ["MODEL", "CLIP", "LORA_MODEL", "LORACLR_MERGE_INFO", "STRING"],
    "LoRACLR_SaveMergedLoRA": ["STRING", "STRING"],
    "LoRACLR_CLoRASampler": ["MODEL", "CONDITIONING", "CONDITIONING"],
    "LoRACLR_CLoRAMaps": ["MASK", "IMAGE", "LOSS_MAP"],
    "LoRACLR_ClearCaptures": ["STRING"],
    "LoRACLR_CaptureConcept": ["LORACLR_CONCEPTS", "STRING"],
    "LoRACLR_TrainConcept": ["LORA_MODEL", "LOSS_MAP", "STRING", "LORACLR_CONCEPTS", "STRING"],
    "LoRACLR_PreservationScores": ["FLOAT", "FLOAT", "FLOAT", "FLOAT", "STRING"],
}
WIDGET_TYPES = {"COMBO", "STRING", "FLOAT", "INT", "BOOLEAN"}


@pytest.mark.parametrize("node_id", WIDGETS)
class TestNode:
    def test_widgets_and_outputs_keep_their_order(self, node_id):
        schema = nodes.NODE_CLASS_MAPPINGS[node_id].define_schema()
        widgets = [i for i in schema.inputs if i.get_io_type() in WIDGET_TYPES and not i.force_input]
        assert [i.id for i in widgets] == WIDGETS[node_id]
        assert [output.get_io_type() for output in schema.outputs] == OUTPUTS[node_id]

    def test_execute_takes_exactly_the_inputs(self, node_id):
        node = nodes.NODE_CLASS_MAPPINGS[node_id]
        parameters = inspect.signature(node.execute).parameters
        inputs = node.define_schema().inputs
        assert list(parameters) == [i.id for i in inputs]
        optional = {i.id for i in inputs if i.optional}
        assert optional == {name for name, p in parameters.items() if p.default is not inspect.Parameter.empty}

    def test_everything_has_a_tooltip(self, node_id):
        schema = nodes.NODE_CLASS_MAPPINGS[node_id].define_schema()
        assert schema.description
        assert all(part.tooltip for part in [*schema.inputs, *schema.outputs])

    @pytest.mark.parametrize("locale", ["zh", "ja"])
    def test_every_text_is_translated(self, node_id, locale):
        schema = nodes.NODE_CLASS_MAPPINGS[node_id].define_schema()
        texts = json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text("utf-8"))[node_id]
        assert texts.keys() == {"display_name", "description", "inputs", "outputs"}
        assert list(texts["inputs"]) == [part.id for part in schema.inputs]
        assert list(texts["outputs"]) == [str(index) for index in range(len(schema.outputs))]
        for part in (*texts["inputs"].values(), *texts["outputs"].values()):
            assert part.keys() == {"name", "tooltip"}
            assert all(part.values())

    def test_the_page_neither_rewrites_texts_nor_rolls_seeds(self, node_id):
        for part in nodes.NODE_CLASS_MAPPINGS[node_id].define_schema().inputs:
            assert part.id not in ("seed", "noise_seed")
            if part.get_io_type() == "STRING":
                assert part.dynamic_prompts is False


def test_the_pack_registers_these_nodes_and_no_others():
    assert {name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("LoRACLR_")} == WIDGETS.keys()


@pytest.mark.parametrize("locale", ["", "zh", "ja"])
def test_every_node_has_a_help_page_that_names_its_widgets(locale):
    """By the names that the node shows, with the ids that files and messages have; or by the ids alone."""
    for node_id, widgets in WIDGETS.items():
        name = f"{node_id}/{locale}.md" if locale else f"{node_id}.md"
        page = (ROOT / "web" / "docs" / name).read_text("utf-8")
        names = shown_names(node_id, locale)
        assert [
            widget
            for widget in widgets
            if f"**{widget}**" not in page
            and not re.search(rf"\*\*{re.escape(names[widget])}\*\* ?[(（]`{widget}`", page)
        ] == []


def shown_names(node_id: str, locale: str) -> dict[str, str]:
    """The inputs' names on the node, by id."""
    if locale:
        inputs = json.loads((ROOT / "locales" / locale / "nodeDefs.json").read_text("utf-8"))[node_id]["inputs"]
        return {name: texts["name"] for name, texts in inputs.items()}
    return {part.id: part.display_name or part.id for part in nodes.NODE_CLASS_MAPPINGS[node_id].define_schema().inputs}


def test_the_oldest_comfyui_declared_is_the_oldest_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={next(iter(host.SOURCES))}"
