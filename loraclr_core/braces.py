r"""Names in braces within prompts, `{cat}`; literal braces are written `\{` and `\}`."""

import re

from .concept import Concept

MARK = re.compile(r"(?<!\\)\{([^{}]*)(?<!\\)\}")
BRACE = re.compile(r"(?<!\\)[{}]")


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


def select_named(prompt: str, concepts: list[Concept]) -> list[Concept]:
    """Return the concepts that a prompt names in braces, in the order of the chain; all for an empty prompt.

    Raises PromptError for a `{name}` that no concept has, a stray brace, or a prompt that names none.
    """
    if not prompt.strip():
        return concepts
    marks = ", ".join(f"{{{concept.name}}}" for concept in concepts)
    named = {mark[1].strip(): mark[0] for mark in MARK.finditer(prompt)}
    for name, mark in named.items():
        if name not in [concept.name for concept in concepts]:
            raise PromptError(
                f"The prompt “{prompt}” names {mark}, and no concept is called that. The concepts are: {marks}."
            )
    if not named or BRACE.search(MARK.sub("", prompt)):
        raise PromptError(
            f"The prompt “{prompt}” must name concepts in pairs of braces: {marks}. Leave it empty to merge all of them."
        )
    return [concept for concept in concepts if concept.name in named]
