r"""Names in braces within prompts, `{cat}`; literal braces are written `\{` and `\}`."""

import re

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
