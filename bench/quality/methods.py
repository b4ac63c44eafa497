"""The methods that are compared on the shapes world, each through the nodes a user would take."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import comfy_extras.nodes_hooks as hooks
import demo_assets
import folder_paths
import nodes
import pack
import small_models
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from pack import World
from shapes.world import BACKGROUNDS, SIDE, ShapeConcept, prompt
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
SAMPLING = {"steps": 12, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "normal"}
LATENT = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}

Group = tuple[ShapeConcept, ...]  # the concepts a method is given
Conditioned = tuple  # MODEL, positive, negative
KINDS = ("own", "together", "kept")


class Ask(NamedTuple):
    """BATCH pictures of one prompt. named: which concepts of the group it names; plain: class words beside them."""

    group: Group
    named: Group
    plain: tuple[str, ...]
    background: str
    seed: int

    def text(self, called: str = "trigger") -> str:
        return prompt([*(getattr(each, called) for each in self.named), *self.plain], self.background)


class Method(NamedTuple):
    """prepare: a group -> what to sample an ask with. kinds: of pictures it is asked for. one_by_one: whether each picture is
    sampled by itself, with what an ask and its number give. steps: where not those of SAMPLING. The rest is what it depends on."""

    prepare: Callable[..., Callable[..., Conditioned]]
    kinds: tuple[str, ...]
    settings: dict = {}
    node: str = ""
    code: tuple[str, ...] = ()
    one_by_one: bool = False
    steps: int | None = None


def lora_name(concept: ShapeConcept) -> str:
    return f"loraclr_demo_{concept.name}.safetensors"


def encode(clip: CLIP, text: str) -> list:
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def conditioned(model: ModelPatcher, clip: CLIP, text: str) -> Conditioned:
    return model, encode(clip, text), encode(clip, "")


def chain(group: Group, file: Callable[[ShapeConcept], str] = lora_name) -> list:
    """The group in Load Concept LoRA nodes."""
    concepts: list = []
    for each in group:
        values = {"trigger": each.trigger, "class_word": each.class_word, "name": each.name}
        concepts = pack.run("LoRACLR_LoadConceptLoRA", lora_name=file(each), concepts=concepts or None, **values)[0]
    return concepts


def stacked(world: World, group: Group) -> tuple[ModelPatcher, CLIP]:
    model, clip = world.model, world.clip
    for each in group:
        model, clip = nodes.LoraLoader().load_lora(model, clip, lora_name(each), 1.0, 1.0)
    return model, clip


def base(world: World, group: Group):
    return lambda ask: conditioned(world.model, world.clip, ask.text())


def alone(world: World, group: Group):
    return lambda ask: conditioned(*stacked(world, ask.named), ask.text())


def stacking(world: World, group: Group):
    model, clip = stacked(world, group)
    return lambda ask: conditioned(model, clip, ask.text())


def merging(world: World, group: Group, **settings):
    values = {"model": world.model, "clip": world.clip, "concepts": chain(group), "latent": LATENT}
    model, clip, *_ = pack.run("LoRACLR_Merge", **values, **settings)
    return lambda ask: conditioned(model, clip, ask.text())


def merging_with_pictures(world: World, group: Group, prompts: int, seed: int, **settings):
    """The sampler paints pictures of every two of the group, of so many prompts at least, and the merge learns them."""
    pairs, backgrounds = [*itertools.combinations(group, 2)], [*BACKGROUNDS]
    asks = [
        Ask(group, pairs[number % len(pairs)], (), backgrounds[number % len(backgrounds)], seed + number)
        for number in range(max(prompts, len(pairs)))
    ]
    painted = []
    for ask in asks:
        model, positive, negative = clora(world, group)(ask)
        values = SAMPLING | {"positive": positive, "negative": negative}
        latent = {"samples": LATENT["samples"].expand(4, -1, -1, -1)}
        painted.append(nodes.KSampler().sample(model, ask.seed, latent_image=latent, **values)[0]["samples"])
    shown, texts = {"samples": torch.cat(painted)}, "\n".join(ask.text("braced") for ask in asks)
    return merging(world, group, pictures_together=shown, together_prompt=texts, **settings)


def merging_in_sequence(world: World, group: Group, **settings):
    """As published: the cross attention's keys and values are merged first, and the rest is captured on the merged ones."""
    values = {"clip": world.clip, "latent": LATENT} | settings
    model, *_ = pack.run("LoRACLR_Merge", model=world.model, concepts=chain(group, keys_and_values), **values)
    model, clip, *_ = pack.run("LoRACLR_Merge", model=model, concepts=chain(group, the_rest), **values)
    return lambda ask: conditioned(model, clip, ask.text())


def keys_and_values(concept: ShapeConcept) -> str:
    return part(concept, "keys_and_values", lambda layer: layer.endswith(("attn2.to_k", "attn2.to_v")))


def the_rest(concept: ShapeConcept) -> str:
    return part(concept, "the_rest", lambda layer: not layer.endswith(("attn2.to_k", "attn2.to_v")))


def part(concept: ShapeConcept, title: str, of_part: Callable[[str], bool]) -> str:
    """Name of a LoRA file with some of a concept's layers."""
    factors = {layer: pair for layer, pair in demo_assets.trained_factors(concept.name).items() if of_part(layer)}
    rank = next(iter(factors.values()))[0].shape[1]
    name = f"loraclr_demo_{concept.name}_{title}.safetensors"
    path = Path(folder_paths.get_folder_paths("loras")[0]) / name
    small_models.ensure(
        path, demo_assets.recipe_of(concept.name), lambda: (demo_assets.kohya(factors, float(rank)), {})
    )
    return name


def clora(world: World, group: Group, **settings):
    """The sampler takes just the concepts that a prompt names."""

    def prepare(ask: Ask) -> Conditioned:
        values = {"model": world.model, "clip": world.clip, "concepts": chain(ask.named), "prompt": ask.text("braced")}
        return pack.run("LoRACLR_CLoRASampler", **values, **settings)

    return prepare


def masked_hooks(world: World, group: Group):
    """By hand with the host's own nodes: each LoRA as a hook of its own prompt in a part of the picture of its own."""

    def prepare(ask: Ask) -> Conditioned:
        positive, negative = [], []
        for each, mask in zip(ask.named, parts_of_picture(len(ask.named)), strict=True):
            hook = hooks.CreateHookLora().create_hook(lora_name(each), 1.0, 1.0)[0]
            text = ask._replace(named=(each,)).text()
            pair = encode(world.clip, text), encode(world.clip, "")
            pair = hooks.PairConditioningSetProperties().set_properties(*pair, 1.0, "default", mask=mask, hooks=hook)
            positive, negative = positive + pair[0], negative + pair[1]
        rest = encode(world.clip, ask.text("class_word")), encode(world.clip, "")
        combine = hooks.PairConditioningSetDefaultAndCombine().set_default_and_combine
        return world.model, *combine(positive, negative, *rest)

    return prepare


def parts_of_picture(count: int) -> list[Tensor]:
    """Everything, halves, or quarters: masks (1, SIDE, SIDE)."""
    half = SIDE // 2
    left, top = torch.zeros(2, 1, SIDE, SIDE)
    left[..., :half], top[..., :half, :] = 1, 1
    quarters = [left * top, (1 - left) * top, left * (1 - top), (1 - left) * (1 - top)]
    return {1: [torch.ones(1, SIDE, SIDE)], 2: [left, 1 - left]}.get(count, quarters[:count])


SHARED = (encode, conditioned, chain, stacked, parts_of_picture)  # what methods have in common
# What a row's pictures depend on, by folder: what both methods use, and each one's own.
COMMON = ("loraclr_core/*.py", "loraclr_core/host/*.py", "loraclr_core/host/lora/*.py")
MERGE = ("loraclr_core/merge/*.py", "loraclr_core/host/merge/*.py")
SAMPLER = ("loraclr_core/sampler/*.py", "loraclr_core/host/sampler/*.py")
NO_PICTURE = {
    "report",
    "export",
    "live",
    "overlay",
    "labels",
    "clarity",
    "evidence",
    "notes",
}  # modules that no picture depends on
DISTILLATION = {"distillation", "differentiable"}  # modules that a merge without distillation does not run


def code(patterns: tuple[str, ...], without: set[str]) -> tuple[str, ...]:
    """Return the files that match, but for the modules named, as paths from the root."""
    paths = (path for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    return tuple(path.relative_to(ROOT).as_posix() for path in paths if path.stem not in without)


def merge_row(**settings) -> Method:
    """Return a row of LoRACLR Merge with these settings."""
    without = NO_PICTURE if settings.get("distillation_steps") else NO_PICTURE | DISTILLATION
    return Method(merging, KINDS, settings, "LoRACLR_Merge", code(COMMON + MERGE, without))


def together_row(**settings) -> Method:
    """Return a row of LoRACLR Merge with these settings that learns the sampler's pictures of two."""
    files = code(COMMON + MERGE + SAMPLER, NO_PICTURE)
    return merge_row(**settings)._replace(prepare=merging_with_pictures, code=files)


def clora_row(**settings) -> Method:
    """Return a row of CLoRA Attention Contrast Sampler with these settings."""
    return Method(clora, KINDS[1:2], settings, "LoRACLR_CLoRASampler", code(COMMON + SAMPLER, NO_PICTURE))


HEADLINE = {
    "alone": Method(alone, KINDS[:1]),
    "stacked": Method(stacking, KINDS),
    "adamw": merge_row(solver="adamw (paper)"),
    "exact": merge_row(),
    "distilled": merge_row(distillation_steps=200),
    "distilled-together": together_row(distillation_steps=200, prompts=4, seed=1000),
    "distilled-together-400": together_row(distillation_steps=400, prompts=4, seed=1000),
    "clora": clora_row(),
    "clora-in-turn": clora_row(concepts_per_step=1),
    "clora-fast": clora_row(concepts_per_step=1, plain_every=2),
    "clora-20-steps": clora_row()._replace(steps=20),
    "clora-fast-20-steps": clora_row(concepts_per_step=1, plain_every=2)._replace(steps=20),
    "clora-faster-20-steps": clora_row(concepts_per_step=1, plain_every=3)._replace(steps=20),
    "clora-30-steps": clora_row()._replace(steps=30),
    "clora-fast-30-steps": clora_row(concepts_per_step=1, plain_every=2)._replace(steps=30),
    "clora-updates": clora_row(update_strength=0.02),
    "clora-no-masks": clora_row(first_masked_step=10000),
    "masked-hooks": Method(masked_hooks, KINDS[1:2]),
}
VARIANTS = {
    "sum": merge_row(solver="sum (baseline)"),
    "exact-margin-0.5": merge_row(margin=0.5, margin_mode="relative"),
    "exact-margin-1": merge_row(margin=1.0, margin_mode="relative"),
    "exact-ridge-0.001": merge_row(ridge=0.001),
    "exact-ridge-0.01": merge_row(ridge=0.01),
    "exact-ridge-1": merge_row(ridge=1.0),
    "exact-anchor-0.1": merge_row(anchor_weight=0.1),
    "exact-anchor-1": merge_row(anchor_weight=1.0),
    "exact-steps-5": merge_row(capture_steps=5),
    "exact-steps-50": merge_row(capture_steps=50),
    "exact-in-sequence": merge_row()._replace(prepare=merging_in_sequence),
    "clora-composed-surroundings": clora_row(surroundings="composed (paper)"),
    "clora-overlap-averaged": clora_row(mask_overlap="average (paper)"),
    "clora-threshold-0.2": clora_row(mask_threshold=0.2),
    "clora-threshold-0.4": clora_row(mask_threshold=0.4),
    "clora-threshold-0.5": clora_row(mask_threshold=0.5),
    "clora-not-dilated": clora_row(mask_morphology="none"),
    "clora-updates-0.01": clora_row(update_strength=0.01),
    "clora-updates-0.05": clora_row(update_strength=0.05),
    "clora-updates-paper": clora_row(update_strength=20.0, update_unit="absolute (paper)"),
    "clora-updates-refined": clora_row(update_strength=0.02, refine_repeats=20),
}
