"""FreeFuse (arXiv 2510.23515), as its own ComfyUI nodes run it, on the shapes world.

Its nodes are fetched for the measurement and never part of this pack:

    git clone https://github.com/yaoliliu/FreeFuse .host/FreeFuse && git -C .host/FreeFuse checkout 720644e

Three rows: as it ships; with the layers of a U-Net known by their names, which it looks up in another form than ComfyUI has,
so that LoRAs are masked at pictures' places and not at words; and its routing with this pack's masks, which tells its masks
from its routing. Its masks were made for SDXL and Flux, and this world is neither: what they do here says little about these.
"""

import asyncio
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.sample
import nodes
import pack
from comfy.model_patcher import ModelPatcher
from pack import World
from torch import Tensor

from .methods import LATENT, ROOT, SAMPLING, Ask, Conditioned, Group, Method, clora, clora_row, encode, lora_name

FOLDER = ROOT / ".host" / "FreeFuse" / "freefuse_comfyui"
# Of its masks: the step that is read, a third of all as in its workflow for SDXL, and the first block of the output half.
COLLECTING = {"collect_step": 4, "collect_tf_index": 0, "top_k_ratio": 0.1, "use_morphological_cleaning": False}
BIAS = {"bias_blocks": "all", "positive_bias_scale": 7.0}  # as in its workflow for SDXL
NAMES = {"input_blocks": "down_blocks", "middle_block": "mid_block", "output_blocks": "up_blocks"}

Masks = dict[str, Tensor]  # by concept, (h, w)


@functools.cache
def load() -> Callable:
    """Load its nodes by ComfyUI's own loader, and return its rule for which layers are masked."""
    if not FOLDER.exists():
        sys.exit(f"quality: {FOLDER} is missing; bench/quality/rivals.py says how to fetch it")
    if not asyncio.run(nodes.load_custom_node(str(FOLDER))):
        sys.exit(f"quality: ComfyUI could not load FreeFuse's nodes from {FOLDER}; see the log above")
    return hooks()._should_apply_spatial_mask


def hooks() -> type:
    """Return the class of its hooks on layers."""
    applicator = nodes.NODE_CLASS_MAPPINGS["FreeFuseMaskApplicator"]
    return sys.modules[applicator.__module__].MultiAdapterBypassForwardHook


def run(node: str, **values) -> tuple:
    """Return the outputs of one of its nodes."""
    made = nodes.NODE_CLASS_MAPPINGS[node]()
    return getattr(made, made.FUNCTION)(**values)


def freefuse(world: World, group: Group, named: bool = False, masks: str = "its own"):
    """Return what prepares an ask by its chain of nodes.

    named: whether its rule sees the layers' names in the form that it knows. masks: “its own” or “ours”.
    """
    rule = load()

    def prepare(ask: Ask, number: int) -> Conditioned:
        set_rule(rule, named)  # before every picture: its hooks are of one class, for all rows
        return conditioned(world, ask, number, our_masks(world, ask)[number] if masks == "ours" else None)

    return prepare


def set_rule(rule: Callable, named: bool) -> None:
    """Let its hooks see layers' names as they are or, named, in the form that they know."""

    def with_names(hook) -> bool:
        for name, known in NAMES.items():
            hook.module_key = hook.module_key.replace(name, known)
        return rule(hook)

    hooks()._should_apply_spatial_mask = with_names if named else rule


def conditioned(world: World, ask: Ask, number: int, given: Masks | None) -> Conditioned:
    """Return what one picture of a prompt is sampled with: its masks are those of one picture. given: in place of its own."""
    model, clip, data = world.model, world.clip, {"model_type": "sdxl"}
    words = {}
    for place, concept in enumerate(ask.named, start=1):
        values = {"model": model, "clip": clip, "lora_name": lora_name(concept), "adapter_name": concept.name}
        loaded = run("FreeFuseLoRALoader", **values, strength_model=1.0, strength_clip=1.0, freefuse_data=data)
        model, clip, data = loaded
        words |= {f"adapter_name_{place}": concept.name, f"concept_text_{place}": concept.trigger}
    words = {"adapter_name_1": "", "concept_text_1": ""} | words
    data = run("FreeFuseConceptMap", **words, background_text=ask.background, freefuse_data=data)[0]
    data = run("FreeFuseTokenPositions", clip=clip, prompt=ask.text(), freefuse_data=data)[0]
    positive, negative = encode(clip, ask.text()), encode(clip, "")
    if given is None:
        model, found = collect(model, positive, negative, data, ask.seed, number)
    else:
        found = {"masks": given}
    values = {"model": model, "masks": found, "freefuse_data": data, "latent": LATENT}
    return run("FreeFuseMaskApplicator", **values, **BIAS)[0], positive, negative


def collect(
    model: ModelPatcher, positive: list, negative: list, data: dict, seed: int, number: int
) -> tuple[ModelPatcher, dict]:
    """Return its masks of one picture of a batch, and the model it goes on with."""
    values = {"model": model, "conditioning": positive, "neg_conditioning": negative, "latent": LATENT}
    with noise_of(number):
        collected = run("FreeFusePhase1Sampler", **values, freefuse_data=data, seed=seed, **SAMPLING, **COLLECTING)
    return collected[:2]


@contextmanager
def noise_of(number: int) -> Iterator[None]:
    """Let a latent of one picture have the noise of one picture of a batch."""
    prepare_noise = comfy.sample.prepare_noise
    comfy.sample.prepare_noise = lambda latent, seed, indices=None: prepare_noise(latent, seed, [number])
    try:
        yield
    finally:
        comfy.sample.prepare_noise = prepare_noise


@functools.lru_cache(maxsize=1)  # the pictures of an ask follow each other
def our_masks(world: World, ask: Ask, count: int = 4) -> list[Masks]:
    """Return for each picture where CLoRA's sampler draws the concepts. count: of an ask's pictures."""
    model, positive, negative = clora(world, ask.group)(ask)
    latent = {"samples": LATENT["samples"].expand(count, -1, -1, -1)}
    values = SAMPLING | {"positive": positive, "negative": negative, "latent_image": latent}
    sampled = nodes.KSampler().sample(model, ask.seed, **values)[0]
    found = []
    for number in range(count):
        masks = pack.run("LoRACLR_CLoRAMaps", model=model, latent=sampled, batch_index=number)[0]
        found.append({concept.name: mask for concept, mask in zip(ask.named, masks, strict=True)})
    return found


CODE = ("bench/quality/rivals.py",)
TOGETHER = ("together",)
RIVALS = {
    "freefuse": Method(freefuse, TOGETHER, code=CODE, one_by_one=True),
    "freefuse-named": Method(freefuse, TOGETHER, {"named": True}, code=CODE, one_by_one=True),
    "freefuse-our-masks": Method(
        freefuse, TOGETHER, {"named": True, "masks": "ours"}, "LoRACLR_CLoRASampler", CODE + clora_row().code, True
    ),
}
