r"""One prompt for all branches: `a photo of {cat} and {dog} in a park`.

Branch 0 reads every `{name}` as the concept's class word. Branch k reads concept k's as its trigger and the others' as
their class words. Braces that are meant literally are written `\{` and `\}`.
"""

import re
from typing import NamedTuple

from .concept import Concept

Span = tuple[int, int]

_MARK = re.compile(r"(?<!\\)\{([^{}]*)(?<!\\)\}")
_BRACE = re.compile(r"(?<!\\)[{}]")
_LITERALLY = "Braces that are meant literally are written \\{ and \\}."


class PromptError(ValueError):
    """A prompt that does not fit the concepts; the message shows the prompt and says what to write."""


class BranchPrompt(NamedTuple):
    """spans: for each concept, in the concepts' order, where its phrase stands in `text` (characters, end exclusive)."""

    text: str
    spans: list[list[Span]]


def branches(prompt: str, concepts: list[Concept]) -> list[BranchPrompt]:
    """The prompts of branch 0 (base) and of branches 1…K, one per concept.

    Raises PromptError for a `{name}` that no concept has, a concept the prompt never names, or a stray brace.
    """
    index = {concept.name: i for i, concept in enumerate(concepts)}
    plain, named = [], []
    end = 0
    for mark in _MARK.finditer(prompt):
        name = mark[1].strip()
        if name not in index:
            raise PromptError(
                f"The prompt “{prompt}” names {mark[0]}, and no concept is called that. The concepts are:"
                f" {_marks(concepts)}. {_LITERALLY}"
            )
        plain.append(prompt[end : mark.start()])
        named.append(index[name])
        end = mark.end()
    plain.append(prompt[end:])
    if any(_BRACE.search(part) for part in plain):
        raise PromptError(
            f"The prompt “{prompt}” has a brace without its partner: write each concept as {_marks(concepts)}. {_LITERALLY}"
        )
    missing = [concept for i, concept in enumerate(concepts) if i not in named]
    if missing:
        raise PromptError(
            f"The prompt “{prompt}” never names {_marks(missing)}: write it where the concept belongs, or take the concept"
            " out of the chain."
        )
    plain = [_unescaped(part) for part in plain]
    return [_branch(plain, named, concepts, own) for own in (None, *range(len(concepts)))]


def negative(text: str, concepts: list[Concept]) -> str:
    """Return the negative prompt of every branch. Raises PromptError where it names a concept in braces.

    Other braces stay as they are: `literal_marks` finds them.
    """
    if named := _naming(text, [concept.name for concept in concepts]):
        raise PromptError(
            f"The negative prompt “{text}” names {named}. It is the same for every concept and cannot name one: write plain"
            " words for what the picture must not show."
        )
    return _unescaped(text)


def literal_marks(text: str) -> list[str]:
    """Return what stands in braces, with them, in their order."""
    return [mark[0] for mark in _MARK.finditer(text)]


def check_capture(template: str, concepts: list[Concept]) -> None:
    """Raise PromptError for a capture prompt without `{trigger}`, or with other braces that would stand for a phrase."""
    if "{trigger}" not in template:
        raise PromptError(
            f"The capture prompt “{template}” lacks {{trigger}}: put it where the concept's trigger belongs."
        )
    others = template.replace("{trigger}", "")
    if named := _naming(others, ["trigger", *(concept.name for concept in concepts)]):
        raise PromptError(
            f"The capture prompt “{template}” has {named}, which stands for nothing there: write {{trigger}} for the trigger"
            " of each concept in turn, and plain words for the rest."
        )


def _naming(text: str, names: list[str]) -> str:
    """Return the first `{name}` of one of the names, whatever its case; empty where there is none."""
    known = {name.casefold() for name in names}
    return next((mark[0] for mark in _MARK.finditer(text) if mark[1].strip().casefold() in known), "")


def _unescaped(text: str) -> str:
    return text.replace("\\{", "{").replace("\\}", "}")


def _branch(plain: list[str], named: list[int], concepts: list[Concept], own: int | None) -> BranchPrompt:
    text = plain[0]
    spans: list[list[Span]] = [[] for _ in concepts]
    for i, following in zip(named, plain[1:], strict=True):
        phrase = concepts[i].trigger if i == own else concepts[i].class_word
        spans[i].append((len(text), len(text) + len(phrase)))
        text += phrase + following
    return BranchPrompt(text, spans)


def _marks(concepts: list[Concept]) -> str:
    return ", ".join(f"{{{concept.name}}}" for concept in concepts)
