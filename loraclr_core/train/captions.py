"""Captions with the trigger, and the same without it."""

import re
from typing import NamedTuple

from .. import words

INSTANCE_PROMPT = "photo of a {trigger}"
# Beside a trigger that is a word of its own stands no letter or digit, unless of a script without spaces, and no hyphen or
# angle bracket.
_LETTER = r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_BEFORE, _AFTER = rf"(?<!{_LETTER})(?<![-<>])", rf"(?!{_LETTER})(?![-<>])"


class Caption(NamedTuple):
    # With the trigger.
    concept: str
    # With the class word in its place, or without it.
    plain: str


class CaptionError(ValueError):
    """A trigger, class word or caption that training would learn nothing from; the message says what to write."""


def class_word_of(trigger: str, class_word: str) -> str:
    """Return the class word that is given, or the last word of a longer trigger. Raises CaptionError."""
    if not trigger:
        raise CaptionError("trigger is empty: write the words that shall name the concept, such as “sks cat”.")
    found = class_word or words.class_word(trigger)
    if find_trigger(trigger, found):
        raise CaptionError(
            f"The class word “{found}” has the trigger “{trigger}” in it, so what is to be learned and what is to be kept"
            " would have the same name: use a rare word in the trigger, such as “sks cat” for the class word “cat”."
        )
    return found


def captions(texts: list[str], count: int, trigger: str, class_word: str) -> list[Caption]:
    """Return the caption of each of `count` pictures. texts: one for each, one for all, or none.

    The trigger is put before captions that lack it. Raises CaptionError where the counts differ or removing the trigger
    leaves a caption as it is.
    """
    if len(texts) not in (0, 1, count):
        raise CaptionError(
            f"There are {count} images and {len(texts)} captions: connect one caption for each image, or one for all."
        )
    texts = [words.prompt_syntax(text) for text in texts] or [""]
    return [_caption(text, trigger, class_word) for text in (texts * count if len(texts) == 1 else texts)]


def _caption(text: str, trigger: str, class_word: str) -> Caption:
    if not text:
        text = INSTANCE_PROMPT.format(trigger=trigger)
    elif trigger.lower() not in text.lower():
        text = f"{trigger}, {text}"
    elif not find_trigger(trigger, text):
        raise CaptionError(
            f"The caption “{text}” has the trigger “{trigger}” only as a part of another word, so removing it would leave"
            " the caption unchanged: write the trigger as the captions have it."
        )
    return Caption(text, without_trigger(text, trigger, class_word))


def without_trigger(text: str, trigger: str, class_word: str) -> str:
    """Return `text` with the class word for the trigger; without one, the trigger and the comma after it removed."""
    after = "" if class_word else r"\s*,?\s*"
    replaced = re.sub(f"{_pattern(trigger)}{after}", lambda _: class_word, text, flags=re.IGNORECASE)
    return " ".join(replaced.split())


def find_trigger(trigger: str, text: str) -> bool:
    """Return whether `text` has the trigger as words of their own."""
    return re.search(_pattern(trigger), text, re.IGNORECASE) is not None


def _pattern(trigger: str) -> str:
    return f"{_BEFORE}{re.escape(trigger)}{_AFTER}"
