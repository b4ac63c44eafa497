"""The words of a LoRA: from its file, and from those that LoRA managers and A1111 keep beside it. Nothing is downloaded."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ... import words
from ...trained_words import TrainedWords, class_word_in, trained_words
from . import file

log = logging.getLogger("loraclr")

# The end of a file's name in place of the LoRA's, and where it keeps the words.
BESIDE = {
    ".json": ("activation text",),  # A1111
    ".metadata.json": ("civitai", "trainedWords"),  # Lora Manager
    ".civitai.info": ("trainedWords",),  # Civitai Helper
}
LARGEST = 16 * 2**20  # bytes; files of words are far smaller


class FileWords(NamedTuple):
    trained: TrainedWords
    # In ComfyUI's prompt syntax; "" where it is not known.
    class_word: str


def read_words(lora: Path) -> FileWords:
    """Return the trigger, or none, and the class word of a LoRA. Raises LoRAFileError."""
    metadata = file.read_metadata(lora)
    trained = trained_words({**_read_beside(lora), **metadata})
    return FileWords(trained, class_word_in(metadata) or words.class_word(trained.trigger))


def files_beside(lora: Path) -> list[Path]:
    """Return the files of words beside a LoRA."""
    return [path for ending in BESIDE if (path := lora.with_name(lora.stem + ending)).is_file()]


def _read_beside(lora: Path) -> dict[str, str]:
    """Return the fields of trigger words beside a LoRA: “<field> of <file>”. What cannot be read is logged and left out."""
    fields = {}
    for path in files_beside(lora):
        keys = BESIDE[path.name.removeprefix(lora.stem)]
        try:
            phrases = _read(path, keys)
        except (OSError, ValueError, RecursionError) as error:
            log.warning("Words beside a LoRA are left out: %s cannot be read: %s", path, error)
            continue
        if isinstance(phrases, str | list):
            fields[f"{keys[-1]} of {path.name}"] = phrases if isinstance(phrases, str) else json.dumps(phrases)
    return fields


def _read(path: Path, keys: tuple[str, ...]) -> object:
    if path.stat().st_size > LARGEST:
        raise ValueError("it is too large for a file of words")
    value = json.loads(path.read_text("utf-8-sig"))
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
