"""Errors at a node's edge: the page shows a class before the words, by its module's path unless it is built in."""

import lora_files
import pytest
from loraclr.loraclr_core.host.lora.match import AdapterError
from loraclr.loraclr_core.host.merge import store
from loraclr.nodes import NODES
from pack import node, run
from running import load, write_lora


def test_an_error_is_built_in_and_begins_with_the_sentence(demo):
    name = write_lora("odd text.safetensors", lora_files.lora("lora_te_text_model_encoder_layers_0_mlp_fc1", (7, 7)))
    with pytest.raises(ValueError, match=r"^LoRA odd text\.safetensors") as error:
        load(name, "sks cat", clip=demo.clip)
    assert type(error.value) is ValueError
    assert isinstance(error.value.__cause__, AdapterError)  # for the log


class OddError(ValueError):
    """Of a class of its own, as those of the pack are."""


class Trap:
    """Cannot be used in any way."""

    def spring(self, *_):
        raise OddError("sprung")

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __hash__ = __fspath__ = spring


@pytest.mark.parametrize("node_id", [node.define_schema().node_id for node in NODES])
def test_every_node_s_errors_are_built_in(node_id, monkeypatch):
    monkeypatch.setattr(store, "clear", Trap().spring)
    inputs = [each for each in node(node_id).define_schema().inputs if getattr(each, "default", None) is None]
    with pytest.raises(ValueError, match="sprung") as error:
        run(node_id, **{each.id: Trap() for each in inputs})
    assert type(error.value) is ValueError
