r"""Names in braces within prompts, `{cat}`; braces that are meant literally are written `\{` and `\}`."""

import re

MARK = re.compile(r"(?<!\\)\{([^{}]*)(?<!\\)\}")
BRACE = re.compile(r"(?<!\\)[{}]")


class PromptError(ValueError):
    """A prompt that does not fit the concepts; the message shows the prompt and says what to write."""


def literal_marks(text: str) -> list[str]:
    """Return what stands in braces, with them, in their order."""
    return [mark[0] for mark in MARK.finditer(text)]


def named_in(text: str, names: list[str]) -> str:
    """Return the first `{name}` of one of the names, whatever its case; empty where there is none."""
    known = {name.casefold() for name in names}
    return next((mark[0] for mark in MARK.finditer(text) if mark[1].strip().casefold() in known), "")


def unescaped(text: str) -> str:
    """Return a text with its literal braces as they are read."""
    return text.replace("\\{", "{").replace("\\}", "}")
