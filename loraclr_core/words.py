"""The words of a trigger without ComfyUI's prompt syntax: its class word, and its name in prompts.

In a ComfyUI prompt `(cat:1.2)` is a weight, `\\(` a literal parenthesis, `embedding:name` a file. Dynamic prompts
(`{red|blue}`) and LoRA tags (`<lora:name:1>`) belong to other programs; the pack's fields do not interpret them.
"""

import re

LEAD_IN = re.compile(
    r"^((an? |the )?(photo|photograph|picture|image|painting|drawing|rendering)s? of )?(an? |the )?", re.IGNORECASE
)
_LORA_TAG = re.compile(r"<[^<>:]*:[^<>]*>")
_EMBEDDING = re.compile(r"embedding:", re.IGNORECASE)
_WEIGHT = re.compile(r":\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*(?=\))")
_ESCAPED = re.compile(r"\\([()])")
_PARENTHESIS = re.compile(r"(?<!\\)[()]")
_SYNTAX = re.compile(rf"(?P<weighted>\([^()]*:\s*[+-]?[\d.]+\s*\))|{_PARENTHESIS.pattern}")
_SEPARATORS = re.compile(r"[,，、;\n]")
_EDGES = " \t.:!?\"'“”‘’。[]"


def class_word(trigger: str) -> str:
    """Return the last plain word of the first part that has several (“sks cat” → “cat”), or "" where there is none.

    A single word may be a rare one that only the LoRA knows, and so may a name with its origin (`saber \\(fate\\)`).
    """
    text = _WEIGHT.sub("", _LORA_TAG.sub(" ", trigger))
    for part in _SEPARATORS.split(text):
        words = _words(LEAD_IN.sub("", " ".join(_PARENTHESIS.sub(" ", part).split())))
        if any(not _EMBEDDING.match(word) for word in words[1:]):
            last = [word for word in words if not _EMBEDDING.match(word)][-1]
            return "" if "\\" in part or re.search(r"[{}|]", last) else last
    return ""


def concept_name(trigger: str, class_word: str) -> str:
    """Return the name in prompts of a concept to which the user gave none: its class word, else its trigger."""
    name = re.sub(r"[{}]", "", class_word or plain(trigger))
    return " ".join(name.split()) or "concept"


def plain(trigger: str) -> str:
    """Return a trigger without weights, escapes and LoRA tags: `(saber \\(fate\\):1.2),` → `saber (fate)`."""
    text = _PARENTHESIS.sub("", _WEIGHT.sub("", _LORA_TAG.sub("", trigger)))
    return _ESCAPED.sub(r"\1", text).strip(f" \t\n,，;{_EDGES}")


def prompt_syntax(words: str) -> str:
    """Return words from a file in prompt syntax: parentheses escaped except for weights, LoRA tags removed."""
    text = _SYNTAX.sub(lambda match: match[0] if match["weighted"] else f"\\{match[0]}", _LORA_TAG.sub("", words))
    return " ".join(text.split()).strip(" ,，;")


def remarks(field: str, text: str) -> list[str]:
    """Return sentences on the parts of a field that are not read as its writer may expect."""
    sentences = []
    if tag := _LORA_TAG.search(text):
        sentences.append(f"{field} holds {tag[0]}, which is read as words here: take it out.")
    if re.search(r"[{}]", text):
        sentences.append(f"{field} holds braces, of which no choice is made here: write one of the choices.")
    open_now = 0
    for parenthesis in _PARENTHESIS.findall(text):
        open_now += 1 if parenthesis == "(" else -1
        if open_now < 0:
            break
    if open_now:
        sentences.append(f"{field} has a parenthesis without its partner: write \\( or \\) where no weight is meant.")
    return sentences


def _words(text: str) -> list[str]:
    """Return the words that contain a letter, without the punctuation around them."""
    words = (word.strip(_EDGES) for word in text.split())
    return [word for word in words if any(character.isalpha() for character in word) or "{" in word]
