"""Both methods on a checkpoint of the SDXL family at its real size, from the stock loader to the saved LoRA and back.

KOALA-700M is the smallest that the host detects. Its weights are random; its two text encoders are SDXL's, at full size.

    merge_ratio           the merge of two concepts, all of it / the U-Net evaluations that its captures need
    extra_memory_mib      peak of the merge beyond the model
    reloaded              the share of weights that the saved LoRA, by the stock loader, makes just what they are in the merged model
    step_ratio            a step of CLoRA with an update, two concepts, no guidance / a plain step
    loss_ratio            the separation loss in the last step with updates / without
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import comfy.lora
import comfy.model_detection
import comfy.model_management
import comfy.sd
import folder_paths
import nodes
import pack
import torch
from capture import peak_memory
from comfy.model_patcher import CoreModelPatcher, ModelPatcher
from comfy.supported_models import KOALA_700M
from sd15 import fill, random_concept, say
from torch import Tensor

LATENT = (1, 4, 64, 96)  # 768×512 pixels
STEPS = 4
PROMPT = "a photo of {c0} and {c1} in a park"
# As the host's detection describes KOALA-700M.
UNET_CONFIG = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 2, 5],
    "transformer_depth_output": [0, 0, 2, 2, 5, 5],
    "transformer_depth_middle": -2,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}


def run() -> dict:
    with tempfile.TemporaryDirectory(prefix="loraclr-bench-") as name, loras_in(Path(name)):
        model, clip = checkpoint(Path(name) / "koala.safetensors")
        chain: list = []
        for index in range(2):
            concept = random_concept(model, clip, Path(name), index)
            values = {"trigger": concept.trigger, "class_word": concept.class_word, "name": concept.name}
            chain = pack.run("LoRACLR_LoadConceptLoRA", lora_name=concept.lora_name, concepts=chain or None, **values)[
                0
            ]
        plain = sampled(model, encoded(clip, "a photo of a thing in a park"), [])[1]
        return {"sdxl": merged(model, clip, chain, plain) | composed(model, clip, chain, plain)}


@contextlib.contextmanager
def loras_in(folder: Path) -> Iterator[None]:
    """A folder of LoRAs, and the first one, so that what is saved goes there."""
    paths, _ = folder_paths.folder_names_and_paths["loras"]
    paths.insert(0, str(folder))
    try:
        yield
    finally:
        paths.remove(str(folder))


def checkpoint(path: Path) -> tuple[ModelPatcher, comfy.sd.CLIP]:
    """Written by the host, and read by its stock loader."""
    say("building KOALA-700M with random weights")
    config = comfy.model_detection.model_config_from_unet_config(UNET_CONFIG, {})
    assert isinstance(config, KOALA_700M)
    config.set_inference_dtype(torch.float16, None)
    device = comfy.model_management.get_torch_device()
    model = CoreModelPatcher(config.get_model({}), load_device=device, offload_device=torch.device("cpu"))
    clip = comfy.sd.CLIP(config.clip_target())
    fill(0, model.model.diffusion_model, clip.cond_stage_model)
    comfy.sd.save_checkpoint(str(path), model, clip)
    del model, clip
    loaded = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)
    if not isinstance(loaded[0].model.model_config, KOALA_700M):
        raise RuntimeError(f"the host takes the checkpoint for {type(loaded[0].model.model_config).__name__}")
    parameters = sum(weight.numel() for weight in loaded[0].model.diffusion_model.parameters())
    print(f"\nKOALA-700M: {parameters / 1e6:.0f} million parameters in the U-Net, latent {LATENT}, {STEPS} steps")
    return loaded[0], loaded[1]


def encoded(clip: comfy.sd.CLIP, text: str) -> list:
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def sampled(model: ModelPatcher, positive: list, negative: list) -> tuple[dict, float]:
    """The latent, by the stock sampler, and seconds."""
    comfy.model_management.load_models_gpu([model])
    start = time.perf_counter()
    latent = nodes.KSampler().sample(
        model, 0, STEPS, 1.0, "euler", "normal", positive, negative, {"samples": torch.zeros(LATENT)}, 1.0
    )[0]
    if not latent["samples"].isfinite().all():
        raise RuntimeError("the sampled latent is not finite")
    return latent, time.perf_counter() - start


def merged(model: ModelPatcher, clip: comfy.sd.CLIP, chain: list, plain: float) -> dict:
    say("merging")
    values = {"model": model, "clip": clip, "concepts": chain, "latent": {"samples": torch.zeros(LATENT)}}
    start = time.perf_counter()
    with peak_memory() as memory:
        patched, patched_clip, lora, info, _ = pack.run("LoRACLR_Merge", capture_steps=STEPS, **values)
    ratio = (time.perf_counter() - start) / (len(chain) * plain)
    say("saving and loading the merge")
    name, _ = pack.run("LoRACLR_SaveMergedLoRA", lora=lora, merge_info=info, filename="merged")
    loaded, loaded_clip = nodes.LoraLoader().load_lora(model, clip, name, 1.0, 1.0)
    ours = weights(patched) | weights(patched_clip.patcher)
    stock = weights(loaded) | weights(loaded_clip.patcher)
    equal = sum(key in stock and torch.equal(stock[key], weight) for key, weight in ours.items()) / len(ours | stock)
    sampled(patched, encoded(patched_clip, "a photo of sks0 and sks1 in a park"), [])
    print(
        f"  merge of two: {ratio:.2f} of its evaluations, {memory[0]:.0f} MiB, {len(ours)} weights, {equal:.0%} reloaded"
    )
    return {"merge_ratio": round(ratio, 3), "extra_memory_mib": round(memory[0]), "reloaded": equal}


def weights(patcher: ModelPatcher) -> dict[str, Tensor]:
    result = {}
    for key in patcher.patches:
        (weight, _), *patches = patcher.get_key_patches(key)[key]
        result[key] = comfy.lora.calculate_weight(patches, weight.float().clone(), key)
    return result


def composed(model: ModelPatcher, clip: comfy.sd.CLIP, chain: list, plain: float) -> dict:
    losses, seconds = {}, 0.0
    for strength in (0.0, 0.02):
        say(f"composing, updates of {strength}")
        values = {"model": model, "clip": clip, "concepts": chain, "prompt": PROMPT}
        patched, *conditioning = pack.run(
            "LoRACLR_CLoRASampler", update_strength=strength, update_end=1.0, live_view=False, **values
        )
        latent, seconds = sampled(patched, *conditioning)
        losses[strength] = pack.run("LoRACLR_CLoRAMaps", model=patched, latent=latent)[2]["loss"][-1]
    step, loss = seconds / plain, losses[0.02] / losses[0.0]
    print(f"  CLoRA of two: a step {step:.1f} plain ones, separation loss {losses[0.0]:.3f} -> {losses[0.02]:.3f}")
    return {"step_ratio": round(step, 3), "loss_ratio": round(loss, 3)}
