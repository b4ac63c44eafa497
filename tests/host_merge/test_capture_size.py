"""Captures, and the distillation after them, are of the size that the stock sampler would give the connected latent."""

import contextlib
import functools

import architectures
import comfy_extras.nodes_lt as ltxv
import lora_files
import nodes
import pytest
import torch
from loraclr.loraclr_core.host.merge import cache as captures
from running import load, merge, write_lora

COARSE = "Wan 2.2"  # 48 channels and frames; a cell of its latents is of 16×16 pixels
LAYERS = {
    COARSE: "diffusion_model.blocks.0.self_attn.q",
    "SD1.5": "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q",
}


@functools.cache
def concepts(name: str) -> list:
    """Two concepts of one layer."""
    chain = None
    for concept, trigger in (("cat", "sks cat"), ("dog", "zwx dog")):
        lora_name = write_lora(f"{name} {concept} small.safetensors", lora_files.lora(LAYERS[name], (64, 64)))
        chain, *_ = load(lora_name, trigger, chain)
    assert chain
    return chain


@contextlib.contextmanager
def watching(model):
    """The shapes that the diffusion model is called with."""
    seen = set()
    module = model.model.model.diffusion_model
    hook = module.register_forward_pre_hook(lambda _, args: seen.add(tuple(args[0].shape)))
    try:
        yield seen
    finally:
        hook.remove()


def shapes(name: str, latent: dict | None, **inputs) -> set[tuple[int, ...]]:
    """Those of a merge."""
    captures.forget()
    with watching(architectures.build(name)) as seen:
        merge(architectures.build(name), concepts(name), latent=latent, capture_steps=1, **inputs)
    return seen


def stock_shape(latent: dict) -> tuple[int, ...]:
    """That of one picture of the latent by the stock sampler."""
    model = architectures.build(COARSE)
    cond = model.clip.encode_from_tokens_scheduled(model.clip.tokenize("photo of a sks cat"))
    with watching(model) as seen:
        nodes.common_ksampler(model.model, 0, 1, 1.0, "euler", "normal", cond, [], latent)
    ((_, *shape),) = seen
    return (1, *shape)


def image(width: int, height: int, batch: int = 1) -> dict:
    return nodes.EmptyLatentImage().generate(width, height, batch)[0]


LATENTS = {
    "a picture": lambda: image(128, 192),
    "an odd size": lambda: image(136, 104),
    "a batch with a mask": lambda: image(128, 192, batch=3) | {"noise_mask": torch.ones(3, 1, 192, 128)},
    "another model's video": lambda: ltxv.EmptyLTXVLatentVideo.execute(128, 192, 17).args[0],
    "frames of another rate": lambda: {"samples": torch.zeros(1, 48, 2, 8, 8), "downscale_ratio_temporal": 8},
    "an encoded picture": lambda: {"samples": torch.ones(1, 48, 1, 6, 8)},
    "one put into an empty latent": lambda: {"samples": torch.ones(1, 48, 1, 6, 8), "downscale_ratio_spacial": 8},
}


@pytest.mark.parametrize("latent", LATENTS)
def test_the_size_is_that_of_the_stock_sampler(latent):
    latent = LATENTS[latent]()
    assert shapes(COARSE, latent) == {stock_shape(latent)}


def test_the_pixels_are_those_of_the_empty_latent_in_captures_and_distillation():
    assert shapes(COARSE, image(128, 192)) == {(1, 48, 1, 12, 8)}
    distilled = shapes(COARSE, image(128, 192), distillation_steps=1)
    assert {shape[1:] for shape in distilled} == {(48, 1, 12, 8)}


@pytest.mark.parametrize(("name", "shape"), [(COARSE, (1, 48, 1, 32, 32)), ("SD1.5", (1, 4, 64, 64))])
def test_without_a_latent_it_is_512_pixels_whatever_the_vae(name, shape):
    assert shapes(name, None) == {shape}


def test_the_channels_of_an_encoded_picture_do_not_matter():
    """Only its size counts, also of one by another VAE, which the sampler would refuse."""
    assert shapes(COARSE, {"samples": torch.ones(1, 4, 6, 8)}) == {(1, 48, 1, 6, 8)}
