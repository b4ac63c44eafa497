"""The unit everything here works on."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor


class Concept(NamedTuple):
    """One subject: the LoRA that draws it, the words that call it, and how strongly.

    trigger: the phrase the LoRA was trained on; class_word: plain words for the same thing, "" where nobody gave any; name:
    what prompts call it.
    mask: (batch, height, width) in 0…1, where the concept belongs, or None for anywhere.
    """

    name: str
    trigger: str
    class_word: str
    lora_name: str
    path: Path
    sha256: str
    strength_model: float
    strength_clip: float
    mask: Tensor | None = None


def require_class_words(concepts: list[Concept], need: str) -> None:
    """Raise ValueError for a concept without a class word. need: what needs it, as a clause."""
    for concept in concepts:
        if not concept.class_word:
            raise ValueError(
                f"Concept “{concept.name}” ({concept.lora_name}) has no class word, but {need}: write plain words that the"
                " base model knows for the same thing, such as “cat”, into class_word of its Load Concept LoRA."
            )
