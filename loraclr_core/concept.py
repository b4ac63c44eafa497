"""A concept, the unit that both methods work on."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor


class Concept(NamedTuple):
    """One subject: the LoRA that draws it, its words, and its strengths."""

    # Its name in prompts.
    name: str
    # The phrase that the LoRA was trained on.
    trigger: str
    # Plain words for the same thing; "" where there are none.
    class_word: str
    lora_name: str
    path: Path
    sha256: str
    strength_model: float
    strength_clip: float
    # Where the concept belongs, (batch, height, width), 0…1; None for anywhere.
    mask: Tensor | None = None


def check_name(name: str, earlier: list[Concept], lora_name: str) -> None:
    """Raise ValueError where a concept of this name is in the chain already."""
    if name in [concept.name for concept in earlier]:
        raise ValueError(
            f"Two concepts are called “{name}”: give {lora_name} a name of its own in Load Concept LoRA, for"
            f" example “{name} {len(earlier) + 1}”."
        )


def require_class_words(concepts: list[Concept], need: str) -> None:
    """Raise ValueError for a concept without a class word. need: a clause on why it is needed."""
    for concept in concepts:
        if not concept.class_word:
            raise ValueError(
                f"Concept “{concept.name}” ({concept.lora_name}) has no class word, but {need}: write plain words that the"
                " base model knows for the same thing, such as “cat”, into class_word of its Load Concept LoRA."
            )
