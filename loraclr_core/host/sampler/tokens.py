"""Where a phrase's tokens stand in the text conditioning, found by its words.

ComfyUI's tokenizers do not report which characters a token came from. The prompt is therefore tokenised twice more with
the phrase replaced by a stand-in word; tokens that all three sequences share before and after it do not belong to the
phrase. Prompt weights, embeddings and repeated words around it are tokenised by ComfyUI as usual and cancel out.

A token's index among the tokens need not be its index in the conditioning: an encoder may return only pooled text, or
cut its template off, and a model may pad the text on the left. Each encoder is therefore watched while it runs and
yields one row per token. Those rows are looked up in the conditioning, and the conditioning's rows in the text that the
model gets (`first_row`).

Anima alone makes its text itself: one row for each token of a second tokenizer, whose numbers lie beside the conditioning.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from ...braces import PromptError
from ...sampler.prompt import BranchPrompt, Span

# Two words: a phrase that shares a token with one differs from the other. Letters, because punctuation beside the
# phrase would be tokenised together with any other character.
STAND_INS = ("qzx", "wvk")

# Words that every prompt must leave room for, because a stand-in may be longer than the phrase.
FURTHER = " " + " ".join(4 * STAND_INS)

# The key of Anima's own token numbers beside the conditioning, and the name of their tokenizer.
TEXT_IDS, TEXT_TOKENIZER = "t5xxl_ids", "t5xxl"

Id = int | Tensor  # a token's number in the vocabulary, or the vector of an embedding


class Token(NamedTuple):
    """A token of a prompt."""

    id: Id
    # Index among all tokens of its encoder, including start, end and padding.
    number: int
    is_word: bool


class Watched(NamedTuple):
    """One run of a text encoder."""

    # The tokens of each chunk.
    tokens: list[list[Id]]
    # (chunks, tokens, width)
    rows: Tensor


def encode(clip, prompt: BranchPrompt) -> tuple[list, list[list[int]]]:
    """Return the prompt's conditioning and, for each concept in order, the positions of its tokens on the token axis.

    With several text encoders the positions are their union, because their conditionings lie side by side along that
    axis. Raises PromptError where a phrase has no token of its own there, ValueError where its tokens' places cannot be
    determined.
    """
    tokens = _tokens(clip, prompt.text)
    with _watching(clip) as watched:
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text))
    (text, *_), extras = conditioning[0]
    if TEXT_IDS in extras:
        places = {TEXT_TOKENIZER: {n: n for n in range(len(extras[TEXT_IDS]))}}
    else:
        places = _locate_all(clip, tokens, watched, text)
    words = {encoder: _words(tokens[encoder]) for encoder in places}
    _check_room(clip, prompt.text, words)
    positions = []
    for spans in prompt.spans:
        numbers = set()
        for span in spans:
            phrase = _locate_span(clip, prompt.text, span, words)
            more = {places[encoder][n] for encoder, n in phrase if n in places[encoder]}
            if not more:
                raise PromptError(
                    f"“{prompt.text[slice(*span)]}” leaves no token in the prompt “{prompt.text}”: the text encoder drops"
                    " it. Check the concept's trigger and class word, and that an embedding named there exists."
                )
            numbers |= more
        positions.append(sorted(numbers))
    return conditioning, positions


def first_row(part: Tensor, whole: Tensor) -> int | None:
    """Return where the rows of `part` stand in `whole`, one after the other. None if nowhere, or in several places."""
    if len(part) > len(whole):
        return None
    alike = (whole[: len(whole) - len(part) + 1] == part[0]).all(dim=-1)
    starts = [start for start in alike.nonzero().flatten().tolist() if torch.equal(whole[start:][: len(part)], part)]
    return starts[0] if len(starts) == 1 else None


# --- a phrase's tokens -----------------------------------------------------------------------------------------------


def _tokens(clip, text: str) -> dict[str, list[Token]]:
    """Return each text encoder's tokens, chunk after chunk."""
    result = {}
    for encoder, chunks in clip.tokenize(text, return_word_ids=True).items():
        flat = [token for chunk in chunks for token in chunk]
        # Word 0 marks start, end and padding; some tokenizers give no word to the tokens of their template.
        result[encoder] = [Token(token, number, word != [0]) for number, (token, _, *word) in enumerate(flat)]
    return result


def _words(tokens: list[Token]) -> list[Token]:
    return [token for token in tokens if token.is_word]


def _check_room(clip, text: str, words: dict[str, list[Token]]) -> None:
    """Raise PromptError where an encoder truncates the prompt.

    Its end would be lost, and phrases could not be told apart.
    """
    longer = _tokens(clip, text + FURTHER)
    if any(len(_words(longer[encoder])) < len(tokens) + len(FURTHER.split()) for encoder, tokens in words.items()):
        raise PromptError(f"The prompt “{text}” is too long: the text encoder cuts its end off. Shorten it.")


def _locate_span(clip, text: str, span: Span, words: dict[str, list[Token]]) -> set[tuple[str, int]]:
    """Return (encoder, number) of each of a phrase's tokens."""
    start, stop = span
    changed = [_tokens(clip, text[:start] + word + text[stop:]) for word in STAND_INS]
    numbers = set()
    for encoder, prompt_words in words.items():
        others = [_words(tokens[encoder]) for tokens in changed]
        before = min(_count_common(prompt_words, other) for other in others)
        after = min(_count_common(prompt_words[::-1], other[::-1]) for other in others)
        numbers |= {(encoder, token.number) for token in prompt_words[before : len(prompt_words) - after]}
    return numbers


def _count_common(one: list[Token], other: list[Token]) -> int:
    """Return the length of the common prefix."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if not _equal(a.id, b.id):
            break
        count += 1
    return count


def _equal(a, b) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return a == b


# --- and their places in the conditioning ----------------------------------------------------------------------------


@contextlib.contextmanager
def _watching(clip) -> Iterator[list[Watched]]:
    """Collect every run of a text encoder within the context.

    The rows are the tensor in which ComfyUI applies prompt weights afterwards.
    """
    watched = []
    with contextlib.ExitStack() as hooks:
        for module in clip.cond_stage_model.modules():
            if isinstance(module, SDClipModel):
                handle = module.register_forward_hook(
                    lambda _, args, output: watched.append(Watched(args[0], output[0]))
                )
                hooks.callback(handle.remove)
        yield watched


def _locate_all(
    clip, tokens: dict[str, list[Token]], watched: list[Watched], text: Tensor
) -> dict[str, dict[int, int]]:
    """Return, for each text encoder found in the conditioning, the position there of each token by its number.

    text: the conditioning, (tokens, width). Raises ValueError where it holds no encoder's tokens.
    """
    by_encoder = {}
    for encoder, sequence in tokens.items():
        for run in watched:
            if places := _locate(sequence, run, text):
                by_encoder[encoder] = places
    # Other packs change the encoders' output; then the length is all there is to compare.
    same_length = {
        encoder: {n: n for n in range(len(sequence))}
        for encoder, sequence in tokens.items()
        if len(sequence) == len(text)
    }
    if not by_encoder and not same_length:
        raise ValueError(
            f"The text encoder {type(clip.cond_stage_model).__name__} takes {_join(map(len, tokens.values()))} tokens and"
            f" gives {len(text)}, and nothing shows which are which, so CLoRA cannot find the concepts' words. Use LoRACLR"
            " Merge with this model."
        )
    return by_encoder or same_length


def _locate(tokens: list[Token], run: Watched, text: Tensor) -> dict[int, int]:
    """Return the position of each token in the conditioning, by its number.

    Empty if this run was not made from `tokens`, or is not in the conditioning.
    """
    rows = run.rows[:, 0] if run.rows.ndim == 4 else run.rows  # several layers lie side by side in the conditioning
    length, width = rows.shape[1:]
    ids = [token for chunk in run.tokens for token in chunk][: len(tokens)]  # prompt weights append an empty chunk
    if any(len(chunk) != length for chunk in run.tokens) or width > text.shape[-1] or len(ids) < len(tokens):
        return {}
    if not all(_equal(token.id, other) for token, other in zip(tokens, ids, strict=True)):
        return {}
    rows = rows.flatten(0, 1)[: len(tokens)].to(text)
    shifts = [_shift(rows, part) for part in (text[:, :width], text[:, -width:])]  # SDXL's lie side by side
    shift = next((shift for shift in shifts if shift is not None), None)
    if shift is None:
        return {}
    places, row = {}, 0
    for token in tokens:
        if token.number % length == 0:
            row = token.number
        if isinstance(token.id, Tensor) and token.id.shape[-1] != width:
            continue  # ComfyUI drops an embedding that was made for another encoder, and later tokens move up
        places[token.number] = row + shift
        row += 1
    return {number: place for number, place in places.items() if 0 <= place < len(text)}


def _shift(rows: Tensor, text: Tensor) -> int | None:
    """Return how much further down an encoder's rows stand in the conditioning, None if nowhere.

    Either it lacks some of them, such as a template's, or other encoders' stand before or behind them (SD3).
    """
    if len(rows) <= len(text):
        return first_row(rows, text)
    start = first_row(text, rows)
    return None if start is None else -start


def _join(numbers) -> str:
    return " and ".join(str(number) for number in numbers)
