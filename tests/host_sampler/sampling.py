"""Running the CLoRA nodes in process, as the executor does."""

import functools

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import nodes
import torch
from pack import run

# Quick settings; `plain` switches off everything that makes CLoRA differ from plain sampling of its branches' mean.
CLORA = {
    "prompt": "a photo of {cat} and {dog} in a park",
    "negative": "blurry",
    "update_strength": 0.05,
    "update_end": 1.0,
    "refine_steps": "",
    "mask_threshold": 0.9,
    "gradient_memory": "all at once",
}
PLAIN = {"update_strength": 0.0, "first_masked_step": 1000}
TRIGGERS = {"cat": "sks cat", "dog": "zwx dog", "bird": "qvk bird"}


def concept(demo_name: str, concepts=None, **inputs) -> list:
    """A demo concept at the end of a chain; its name, trigger and class word are those of the demo unless given."""
    values = {
        "lora_name": f"loraclr_random_{demo_name}.safetensors",
        "trigger": TRIGGERS[demo_name],
        "class_word": demo_name,
        "name": demo_name,
    }
    return run("LoRACLR_LoadConceptLoRA", concepts=concepts, **(values | inputs))[0]


def compose(demo, concepts, **inputs):
    """Outputs of the CLoRA sampler node: MODEL, positive, negative."""
    values = {"model": demo.model, "clip": demo.clip, "concepts": concepts} | CLORA | inputs
    return run("LoRACLR_CLoRASampler", **values)


_COMPOSED: dict[tuple, tuple] = {}


def clora(demo, concepts, **inputs):
    """The same, composed once for all tests that ask for it: encoding its prompts takes as long as sampling. MODEL is a clone."""
    key = (id(demo.model), id(demo.clip), id(concepts), *sorted(inputs.items()))
    if key not in _COMPOSED:
        _COMPOSED[key] = demo, concepts, compose(demo, concepts, **inputs)  # kept, so that no other gets their id
    *_, (model, positive, negative) = _COMPOSED[key]
    return model.clone(), positive, negative


def maps(model, latent, **inputs):
    """Outputs of the maps node: masks, heat maps, loss."""
    return run("LoRACLR_CLoRAMaps", model=model, latent=latent, **inputs)


@functools.cache
def encode(clip, text: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample(model, positive, negative, latent, sampler="euler", scheduler="normal", steps=2, cfg=5.0, seed=3, **inputs):
    """The stock KSampler: LATENT."""
    return nodes.common_ksampler(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, **inputs)[0]


def sample_guided(guider, latent, steps=2) -> tuple[dict, dict]:
    """The stock SamplerCustomAdvanced: LATENT, and the denoised one."""
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    sampler = comfy.samplers.sampler_object("euler")
    noise = custom_sampler.Noise_RandomNoise(3)
    return custom_sampler.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent).args


def plain(demo, latent, positive="a photo of cat and dog in a park", negative="blurry", **inputs):
    """The same by the host alone."""
    return sample(demo.model, encode(demo.clip, positive), encode(demo.clip, negative), latent, **inputs)


def assert_same(found: dict, expected: dict, tolerance: float) -> None:
    """Latents equal to `tolerance` of their size."""
    scale = float(expected["samples"].abs().max())
    torch.testing.assert_close(found["samples"], expected["samples"], rtol=0, atol=tolerance * scale)
