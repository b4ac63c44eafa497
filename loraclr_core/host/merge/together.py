"""Pictures that show several concepts at once, which a distillation teaches to the merged LoRA.

The concepts' own LoRAs are teachers of one concept each, so a merged model that follows them alone still mixes the concepts
up where a prompt asks for two. Pictures that show both, such as those of the sampler, teach it to draw both by itself.
"""

from typing import NamedTuple

import comfy.latent_formats
from torch import Tensor

from ...braces import put_words
from ...concept import Concept


class Together(NamedTuple):
    """Pictures, and what they show."""

    # As a sampler gives them, (pictures, channels, …).
    latents: Tensor
    # With the concepts' names in braces; each is that of an equal part of the pictures.
    prompts: tuple[str, ...]

    @classmethod
    def of(cls, latent: dict | None, text: str, steps: int) -> "Together | None":
        """Return the pictures of a latent and the lines of a text; None where there are none.

        steps: of the distillation. Raises ValueError where one is given without the others, or the lines do not divide the
        pictures.
        """
        prompts = tuple(line.strip() for line in text.splitlines() if line.strip())
        if latent is None and not prompts:
            return None
        if latent is None:
            raise ValueError(
                "together_prompt says what pictures show, but none are connected: connect a latent to pictures_together, or"
                " empty together_prompt."
            )
        if not prompts:
            raise ValueError(
                "pictures_together is connected, but together_prompt is empty: write what the pictures show, with the"
                " concepts' names in braces, such as “photo of {cat} and {dog}”."
            )
        if not steps:
            raise ValueError(
                "pictures_together is used by the distillation alone: set distillation_steps to 200, or disconnect it."
            )
        latents = latent["samples"]
        if len(latents) % len(prompts):
            raise ValueError(
                f"pictures_together has {len(latents)} pictures and together_prompt {len(prompts)} lines: write one line for all"
                " pictures, or one for each equal part of them, in their order."
            )
        return cls(latents, prompts)

    def with_triggers(self, concepts: list[Concept]) -> list[str]:
        """Return the prompts with the concepts' triggers. Raises PromptError."""
        return [put_words(prompt, concepts, [each.trigger for each in concepts]) for prompt in self.prompts]

    def with_class_words(self, concepts: list[Concept]) -> list[str]:
        """Return the prompts with the concepts' class words. Raises PromptError."""
        return [put_words(prompt, concepts, [each.class_word for each in concepts]) for prompt in self.prompts]

    def check(self, latent_format: comfy.latent_formats.LatentFormat) -> None:
        """Raise ValueError unless the model can take the latents."""
        channels, dimensions = latent_format.latent_channels, latent_format.latent_dimensions
        if self.latents.shape[1] != channels or self.latents.ndim != dimensions + 2:
            raise ValueError(
                f"pictures_together holds latents of {self.latents.shape[1]} channels and {self.latents.ndim - 2} dimensions, and"
                f" this model's have {channels} and {dimensions}: connect pictures of this model's own kind, or VAE Encode"
                " them with its VAE."
            )
