"""Pictures that show several concepts at once, which a distillation teaches to the merged LoRA.

The concepts' own LoRAs are teachers of one concept each, so a merged model that follows them alone still mixes the concepts
up where a prompt asks for two. Pictures that show both, such as those of the sampler, teach it to draw both by itself.
"""

from typing import NamedTuple

import comfy.sample
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...braces import put_words
from ...concept import Concept


class Together(NamedTuple):
    """Pictures of one prompt."""

    # With the concepts' names in braces.
    prompt: str
    with_triggers: str
    with_class_words: str
    # As a sampler gives them, (pictures, channels, …).
    latents: Tensor


def read_together(
    model: ModelPatcher, latent: dict | None, text: str, steps: int, concepts: list[Concept]
) -> list[Together]:
    """Return the pictures of each line of a text; none where neither is given.

    Each line is that of an equal part of the latent's pictures. steps: of the distillation. Raises ValueError where one is
    given without the others, the lines do not divide the pictures, or the model cannot take them; PromptError for a line
    that names no concept.
    """
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if latent is None and not prompts:
        return []
    if latent is None:
        raise ValueError(
            "together_prompt says what pictures show, but none are connected: connect a latent to pictures_together, or empty"
            " together_prompt."
        )
    if not prompts:
        raise ValueError(
            "pictures_together is connected, but together_prompt is empty: write there, among the advanced inputs, what the"
            " pictures show, with the concepts' names in braces, such as “photo of {cat} and {dog}”."
        )
    if not steps:
        raise ValueError(
            "pictures_together is used by the distillation alone: set distillation_steps to 200, or disconnect it."
        )
    latents = _for_model(model, latent["samples"])
    if len(latents) % len(prompts):
        raise ValueError(
            f"pictures_together has {len(latents)} pictures and together_prompt {len(prompts)} lines: write one line for all"
            " pictures, or one for each equal part of them, in their order."
        )
    triggers, class_words = [each.trigger for each in concepts], [each.class_word for each in concepts]
    return [
        Together(prompt, put_words(prompt, concepts, triggers), put_words(prompt, concepts, class_words), part)
        for prompt, part in zip(prompts, latents.chunk(len(prompts)), strict=True)
    ]


def _for_model(model: ModelPatcher, latents: Tensor) -> Tensor:
    """Return latents in the shape that the model takes. Raises ValueError where they are of another model, or no pictures."""
    if not latents.any():
        raise ValueError(
            "pictures_together is an empty latent: connect finished pictures, such as a KSampler's output or VAE Encode's."
        )
    if not latents.isfinite().all():
        raise ValueError("pictures_together holds NaN or infinity: make its pictures anew.")
    latents = comfy.sample.fix_empty_latent_channels(model, latents)
    latent_format = model.get_model_object("latent_format")
    channels, dimensions = latent_format.latent_channels, latent_format.latent_dimensions
    if latents.shape[1] != channels or latents.ndim != dimensions + 2:
        raise ValueError(
            f"pictures_together holds latents of {latents.shape[1]} channels and {latents.ndim - 2} dimensions, and this"
            f" model's have {channels} and {dimensions}: make the pictures with this model, or VAE Encode them with its VAE."
        )
    return latents
