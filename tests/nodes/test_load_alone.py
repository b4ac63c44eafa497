"""Load Concept LoRA with a model connected takes what the merge takes, and gives what the stock loader gives."""

import architectures
import comfy.sd
import lora_files
import pytest
import torch
from lora_formats import CORPUS
from loraclr.loraclr_core.host.lora import file as lora_file
from running import load, weights, write_lora

LINEAR = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
CONNECTED = [("model", "clip"), ("model",), ("clip",)]
SHAPE = (320, 768)


def connected(model, sockets: set[str]) -> dict:
    return {socket: getattr(model, socket) for socket in sockets}


def patches_of(model, sockets: set[str]) -> list[dict]:
    return [getattr(getattr(model, socket), "patcher", getattr(model, socket)).patches for socket in sorted(sockets)]


@pytest.mark.parametrize("sockets", CONNECTED, ids="+".join)
@pytest.mark.parametrize("architecture", ["SDXL", "Wan"])
def test_a_lora_for_another_architecture_is_refused(sockets, architecture):
    """Whatever is connected, as long as the file has a part for it."""
    written = CORPUS["diffusers, PEFT", "Flux"].state(architectures.build("Flux"))
    written |= lora_files.lora("text_encoder_3.encoder.block.0.layer.0.SelfAttention.q", (32, 32))
    written = {key: tensor for key, tensor in written.items() if "text_encoder." not in key}
    model = architectures.build(architecture)
    name = write_lora("flux.safetensors", written)
    with pytest.raises(ValueError, match=r"flux\.safetensors matches 0 of its \d+ tensors"):
        load(name, "sks cat", **connected(model, sockets))


@pytest.mark.parametrize("kind", lora_files.LINEAR)
def test_shapes_that_do_not_fit_are_refused_and_nothing_is_patched(demo, kind):
    """The stock loader logs them and gives the model without the layer."""
    state = lora_files.lora(TEXT, (768, 768)) | lora_files.LINEAR[kind](LINEAR, (312, 776))
    name = write_lora("odd.safetensors", state)
    with pytest.raises(ValueError, match=r"odd\.safetensors.*attn2\.to_k"):
        load(name, "sks cat", model=demo.model, clip=demo.clip)
    assert patches_of(demo, ("model", "clip")) == [{}, {}]


def test_shapes_that_do_not_fit_the_text_encoder_are_refused(demo):
    name = write_lora("odd text.safetensors", lora_files.lora(TEXT, (640, 768)))
    with pytest.raises(ValueError, match=r"odd text\.safetensors.*mismatch at clip_l"):
        load(name, "sks cat", clip=demo.clip)


@pytest.mark.parametrize("sockets", CONNECTED, ids="+".join)
@pytest.mark.parametrize("kind", lora_files.LINEAR)
def test_a_lora_that_fits_is_what_the_stock_loader_makes_of_it(demo, kind, sockets):
    state = lora_files.LINEAR[kind](LINEAR, SHAPE) | lora_files.bias(
        LINEAR.replace("attn2.to_k", "attn2.to_out.0"), SHAPE
    )
    state |= lora_files.LINEAR[kind](TEXT, (768, 768))
    name = write_lora("fits.safetensors", state)
    concepts, *given = load(name, "sks cat", strength_model=0.7, strength_clip=-0.4, **connected(demo, sockets))
    tensors, _ = lora_file.read(concepts[0].path)
    stock = comfy.sd.load_lora_for_models(demo.model, demo.clip, tensors, 0.7, -0.4)
    for socket, ours, theirs in zip(("model", "clip"), given, stock, strict=True):
        if socket in sockets:
            expected, found = (weights(getattr(patched, "patcher", patched)) for patched in (theirs, ours))
            assert found.keys() == expected.keys() != set()
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_file_with_nothing_for_the_only_connected_side_leaves_it_as_it_is(demo):
    """Most LoRAs have no part for the text encoder."""
    name = write_lora("no text.safetensors", lora_files.lora(LINEAR, SHAPE))
    _, _, clip = load(name, "sks cat", clip=demo.clip)
    assert clip.patcher.patches == {}
