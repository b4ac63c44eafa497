"""The inputs of CLoRA, made from concepts and one prompt: adapters, and conditioning for every branch."""

import comfy.model_management
import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...braces import literal_marks
from ...concept import Concept
from ...sampler.prompt import branch_prompts, negative_prompt
from ...sampler.separation import Branch
from ..lora import adapters
from ..lora.load import load
from ..lora.match import key_names
from . import given_masks, tokens
from .branches import BranchAdapters
from .clora import CLoRA
from .evaluation import Role
from .layers import read_layers
from .live import LiveView
from .notes import Notes
from .settings import Settings
from .tags import Tags
from .take import Composition


def compose(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    concepts: list[Concept],
    prompt: str,
    negative: str,
    settings: Settings,
    notes: Notes,
    view: LiveView | None = None,
    areas: Tensor | None = None,
) -> tuple[ModelPatcher, list, list]:
    """Return the patched model and its positive and negative conditioning, each with a tagged entry per branch.

    notes: where to say how the result differs from what was asked for. areas: masks in the concepts' order, which go before
    the concepts' own. Raises ValueError, with the remedy, where a prompt, a LoRA, the areas or the model do not fit.
    """
    if not concepts:
        raise ValueError("No concepts to compose: connect at least one Load Concept LoRA.")
    negative = _negative(negative, concepts, notes)
    given_areas = None if areas is None else given_masks.split(areas, concepts)
    read_layers(model.get_model_object("diffusion_model"), 64, 64)  # raises where there is nothing to read
    prompts = branch_prompts(prompt, concepts)
    device, names = comfy.model_management.get_torch_device(), key_names(model, clip)
    loaded = [load(concept, model, clip, names, device, with_clip=False) for concept in concepts]
    branch_adapters = BranchAdapters(model, loaded)

    # Each branch has its own text encoder; a LoRA without a part for it leaves it unchanged.
    clips = [clip, *(adapters.patched(clip, concept.lora, concept.concept.strength_clip) for concept in loaded)]
    positives, negatives, branches = [], [], []
    for number, (text_encoder, text) in enumerate(zip(clips, prompts, strict=True)):
        entries, places = tokens.encode(text_encoder, text)
        positives.append(entries)
        branches.append(Branch(None if number == 0 else number - 1, places))
        is_same = number > 0 and text_encoder is clip
        negatives.append(
            negatives[0] if is_same else text_encoder.encode_from_tokens_scheduled(text_encoder.tokenize(negative))
        )

    tags = Tags(len(branches))
    composition = Composition(concepts, branches, branch_adapters, tags, settings, given_areas)
    patched = CLoRA(composition, view, notes).patch(model)
    return patched, _tagged(tags, "positive", positives), _tagged(tags, "negative", negatives)


def _negative(text: str, concepts: list[Concept], notes: Notes) -> str:
    """Return the negative prompt of every branch; warn of braces in it that are taken literally."""
    if literal := literal_marks(text):
        notes.warn([f"The negative prompt has {', '.join(literal)}, which is taken as it stands."])
    return negative_prompt(text, concepts)


def _tagged(tags: Tags, role: Role, conditioning: list[list]) -> list:
    """Return all branches' entries, each with its branch's tag."""
    return [
        [text, extra | tags.of(role, branch)] for branch, entries in enumerate(conditioning) for text, extra in entries
    ]
