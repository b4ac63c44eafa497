"""Attention is read from the coarse layers of the real U-Nets, from conditional rows, and no further than needed."""

import comfy.model_detection
import pytest
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from host_sampler.sampling import clora, sample
from loraclr.loraclr_core.host.sampler.layers import UNetLayers, read_layers
from sd15 import UNET_CONFIG as SD15

SDXL = SD15 | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "context_dim": 2048,
    "use_linear_in_transformer": True,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "num_head_channels": 64,
}


def unet(config: dict):
    model = comfy.model_detection.model_config_from_unet_config(config, {}).get_model({}, device="meta")
    return model.diffusion_model


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (32, 32), (33, 47)])
def test_sd15_is_read_at_a_quarter_of_the_side(size):
    """16×16 maps at 512×512, as published: the third level."""
    expected = [("input", 7, 0), ("input", 8, 0), ("output", 3, 0), ("output", 4, 0), ("output", 5, 0)]
    assert read_layers(unet(SD15), *size) == UNetLayers(expected)


def test_sdxl_is_read_at_a_quarter_of_the_side():
    """32×32 maps at 1024×1024: sixty layers."""
    blocks = [("input", 7), ("input", 8), ("middle", 0), ("output", 0), ("output", 1), ("output", 2)]
    assert read_layers(unet(SDXL), 128, 128) == UNetLayers([(*block, i) for block in blocks for i in range(10)])


def test_a_model_without_cross_attention_is_refused():
    with pytest.raises(ValueError, match="LoRACLR Merge"):
        read_layers(torch.nn.Linear(1, 1), 64, 64)


def test_gradient_passes_stop_after_the_last_layer_they_need(demo, concepts, latent):
    """The last cross attention's own output, and all that follows, is not computed for a gradient."""
    with_gradients = {"attn2.to_k": 0, "ff.net.2": 0, "out.2": 0}
    unet = demo.model.model.diffusion_model
    last = next(m for m in reversed(list(unet.modules())) if isinstance(m, BasicTransformerBlock))
    watched = {"attn2.to_k": last.attn2.to_k, "ff.net.2": last.ff.net[2], "out.2": unet.out[2]}
    handles = []
    for name, module in watched.items():

        def count(module, args, output, name=name):
            with_gradients[name] += torch.is_grad_enabled()

        handles.append(module.register_forward_hook(count))
    try:
        sample(*clora(demo, concepts), latent, steps=1)
    finally:
        for handle in handles:
            handle.remove()
    assert with_gradients == {"attn2.to_k": 1, "ff.net.2": 0, "out.2": 0}
