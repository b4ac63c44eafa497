"""From concepts and one prompt to what CLoRA samples with: conditioning for every branch, adapters, token positions."""

from collections.abc import Callable

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from .. import prompt as branch_prompt
from ..concept import Concept
from . import adapters, lora_file, tokens
from .adapters import MatchedLoRA
from .branches import BranchAdapters
from .clora import CLoRA, Settings
from .evaluation import Role
from .live import LiveView


def compose(
    model: ModelPatcher,
    clip,
    concepts: list[Concept],
    prompt: str,
    negative: str,
    settings: Settings,
    view: LiveView | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[ModelPatcher, list, list]:
    """The patched model and its positive and negative conditioning, one tagged entry per branch in each.

    Raises ValueError, with what to do, where a prompt, a LoRA or the model does not fit.
    """
    if not concepts:
        raise ValueError("No concepts to compose: connect at least one Load Concept LoRA.")
    prompts = branch_prompt.branches(prompt, concepts)
    positions = [tokens.positions(clip, branch) for branch in prompts]

    device = comfy.model_management.get_torch_device()
    key_map = adapters.key_names(model, clip)
    matches = [adapters.match(c.lora_name, lora_file.read(c.path)[0], key_map) for c in concepts]
    effects = [
        (concept.lora_name, adapters.effect(match, model, concept.strength_model, device))
        for concept, match in zip(concepts, matches, strict=True)
    ]
    clora = CLoRA(concepts, positions, BranchAdapters(model, effects), settings, view, say)
    patched = clora.patch(model)

    clips = [clip, *(_with_lora(clip, m, c.strength_clip) for m, c in zip(matches, concepts, strict=True))]
    texts: dict[Role, list[str]] = {
        "positive": [branch.text for branch in prompts],
        "negative": [negative] * len(prompts),
    }
    conditioning: dict[Role, list] = {"positive": [], "negative": []}
    for branch, own_clip in enumerate(clips):  # role by role within, so that each LoRA is patched in once
        for role, entries in conditioning.items():
            tokenized = own_clip.tokenize(texts[role][branch])
            entries += own_clip.encode_from_tokens_scheduled(tokenized, add_dict=clora.tags.of(role, branch))
    return patched, conditioning["positive"], conditioning["negative"]


def _with_lora(clip, match: MatchedLoRA, strength: float):
    """The text encoder with the LoRA's part for it, as the stock loader patches it."""
    weights = clip.patcher.model_state_dict()
    patches = {
        (key, offset, function): patch
        for key, found in match.patches.items()
        if key in weights
        for patch, offset, function in found
    }
    if not patches or strength == 0:
        return clip
    patched = clip.clone()
    patched.add_patches(patches, strength)
    return patched
