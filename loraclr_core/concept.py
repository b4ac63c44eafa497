"""The unit everything here works on."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor


class Concept(NamedTuple):
    """One subject: the LoRA that draws it, the words that call it, and how strongly.

    trigger: the phrase the LoRA was trained on; class_word: plain words for the same thing; name: what prompts call it.
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
