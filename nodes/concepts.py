"""Concepts from LoRA files, with the words that are typed or found."""

import logging
from pathlib import Path
from typing import NamedTuple

import folder_paths
from torch import Tensor

from ..loraclr_core import words
from ..loraclr_core.concept import Concept, check_name
from ..loraclr_core.host.lora import file
from ..loraclr_core.host.lora.file_words import FileWords, files_beside, read_words
from ..loraclr_core.sampler import masks
from ..loraclr_core.trained_words import TrainedWords

log = logging.getLogger("loraclr")


class ConceptError(ValueError):
    """A concept that cannot be made; the message says what to do."""


class LoadedConcept(NamedTuple):
    concept: Concept
    # Where its trigger was found; None where it was typed.
    trained: TrainedWords | None


def load(
    lora_name: str,
    trigger: str,
    class_word: str,
    name: str,
    strength_model: float,
    strength_clip: float,
    earlier: list[Concept],
    mask: Tensor | None = None,
    *,
    field: str = "the trigger field of Load Concept LoRA",
) -> LoadedConcept:
    """Return the concept of a file of the loras folders. Empty words are taken from the file, or from the other words.

    field: where the user writes triggers. Raises ConceptError where the file has no trigger, ValueError where the name is taken, LoRAFileError.
    """
    path = Path(folder_paths.get_full_path_or_raise("loras", lora_name))
    found = None if trigger.strip() else _read_words(lora_name, path, field)
    trigger = found.trained.trigger if found else trigger.strip()
    class_word = class_word.strip() or (found.class_word if found else words.class_word(trigger))
    name = name.strip() or words.concept_name(trigger, class_word)
    check_name(name, earlier, lora_name)
    digest = file.sha256(path)
    if digest in [concept.sha256 for concept in earlier]:
        log.warning("%s is loaded as a concept twice; it will count twice.", lora_name)
    mask = None if mask is None else masks.given(mask, f"The mask of concept “{name}”")
    concept = Concept(name, trigger, class_word, lora_name, path, digest, strength_model, strength_clip, mask)
    return LoadedConcept(concept, found.trained if found else None)


def files_of(lora_name: str) -> list[tuple[str, int, int]]:
    """Return name, time and size of a LoRA and of the files of words beside it: what its concept depends on."""
    path = folder_paths.get_full_path("loras", lora_name)
    files = [Path(path), *files_beside(Path(path))] if path else []
    return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]


def describe(loaded: LoadedConcept) -> list[str]:
    """Return, and log, which words were taken and which parts of them are not read as intended."""
    concept, trained = loaded
    lines = []
    if trained is not None:
        others = f" The file also names {_quote(trained.others)}." if trained.others else ""
        lines.append(f"Trigger “{concept.trigger}”, from {trained.source}.{others}")
    class_word = (
        f"Class word “{concept.class_word}”" if concept.class_word else "No class word, which the sampler needs"
    )
    lines.append(f"{class_word}. Prompts name it {{{concept.name}}}.")
    faults = [*words.remarks("trigger", concept.trigger), *words.remarks("class_word", concept.class_word)]
    if concept.mask is not None and not concept.mask.any():
        faults.append("The mask is empty: the sampler draws this concept nowhere.")
    for line in lines:
        log.info("%s: %s", concept.lora_name, line)
    for fault in faults:
        log.warning("%s: %s", concept.lora_name, fault)
    return [*lines, *faults]


def _read_words(lora_name: str, path: Path, field: str) -> FileWords:
    found = read_words(path)
    if not found.trained.trigger:
        hint = f" What it does say: {_quote(found.trained.others)}." if found.trained.others else ""
        raise ConceptError(
            f"{lora_name} does not say what it was trained on: write its trigger phrase (such as “sks cat”) into"
            f" {field}.{hint}"
        )
    return found


def _quote(phrases: list[str]) -> str:
    return ", ".join(f"“{phrase}”" for phrase in phrases)
