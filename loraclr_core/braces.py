r"""Names in braces within prompts, `{cat}`; literal braces are written `\{` and `\}`."""

import re

from .concept import Concept

MARK = re.compile(r"(?<!\\)\{([^{}]*)(?<!\\)\}")
BRACE = re.compile(r"(?<!\\)[{}]")

_LITERALLY = "Braces that are meant literally are written \\{ and \\}."


class PromptError(ValueError):
    """A prompt that does not fit the concepts; the message quotes the prompt and explains how to correct it."""


def literal_marks(text: str) -> list[str]:
    """Return all texts in braces, braces included, in order."""
    return [mark[0] for mark in MARK.finditer(text)]


def named_in(text: str, names: list[str]) -> str:
    """Return the first `{name}` of one of the names, in any case; "" where there is none."""
    lowered = {name.casefold() for name in names}
    return next((mark[0] for mark in MARK.finditer(text) if mark[1].strip().casefold() in lowered), "")


def unescaped(text: str) -> str:
    """Return a text with its literal braces unescaped."""
    return text.replace("\\{", "{").replace("\\}", "}")


def split_at_names(prompt: str, concepts: list[Concept]) -> tuple[list[str], list[int]]:
    """Return the texts around the concepts' names in braces, and the number of the concept at each name.

    Raises PromptError for a `{name}` that no concept has, or a stray brace.
    """
    index = {concept.name: i for i, concept in enumerate(concepts)}
    plain, named = [], []
    end = 0
    for mark in MARK.finditer(prompt):
        name = mark[1].strip()
        if name not in index:
            raise PromptError(
                f"The prompt “{prompt}” names {mark[0]}, and no concept is called that. The concepts are:"
                f" {join_marks(concepts)}. {_LITERALLY}"
            )
        plain.append(prompt[end : mark.start()])
        named.append(index[name])
        end = mark.end()
    plain.append(prompt[end:])
    if any(BRACE.search(part) for part in plain):
        raise PromptError(
            f"The prompt “{prompt}” has a brace without its partner: write each concept as {join_marks(concepts)}. {_LITERALLY}"
        )
    return plain, named


def put_words(prompt: str, concepts: list[Concept], words: list[str]) -> str:
    """Return a prompt with the word of each concept in place of its name in braces. words: one per concept.

    Raises PromptError where it names none, and where `split_at_names` does.
    """
    plain, named = split_at_names(prompt, concepts)
    if not named:
        raise PromptError(f"The prompt “{prompt}” names no concept: write those it is about as {join_marks(concepts)}.")
    pieces = [unescaped(plain[0])]
    for number, text in zip(named, plain[1:], strict=True):
        pieces += [words[number], unescaped(text)]
    return "".join(pieces)


def select_named(prompt: str, concepts: list[Concept]) -> list[Concept]:
    """Return the concepts that a prompt names in braces, in the order of the chain; all for an empty prompt.

    Raises PromptError for a prompt that names none, and where `split_at_names` does.
    """
    if not prompt.strip():
        return concepts
    _, named = split_at_names(prompt, concepts)
    if not named:
        raise PromptError(
            f"The prompt “{prompt}” names no concept: write those to merge as {join_marks(concepts)}, or leave it empty to"
            " merge all of them."
        )
    return [concept for i, concept in enumerate(concepts) if i in named]


def join_marks(concepts: list[Concept]) -> str:
    """Return the concepts' names in braces."""
    return ", ".join(f"{{{concept.name}}}" for concept in concepts)
