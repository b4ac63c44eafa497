"""Where a phrase's tokens stand in the text conditioning, found by its words.

The host's tokenizers do not say which characters a token came from. So the prompt is tokenised twice more with the
phrase replaced by a stand-in word: what the token sequences have in common before and after it is not the phrase.
Prompt weights, embeddings and repeated words around it are tokenised by the host as ever and cancel out.

A token's place among the tokens need not be its place in the conditioning: an encoder may give only a pooled text, or cut
its template off, and a model may fill the text up on the left. So each encoder is watched while it runs, one row for each
token, and its rows are looked for in the conditioning; the conditioning's, in what the model gets (`first_row`).
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from comfy.sd1_clip import SDClipModel
from torch import Tensor

from ...braces import PromptError
from ...sampler.prompt import BranchPrompt, Span

# Two words, so that a phrase which shares a token with the one differs from the other. Letters, because punctuation
# beside the phrase would be tokenised together with any other character.
STAND_INS = ("qzx", "wvk")

# Words that any prompt must have room for: a stand-in may be longer than the phrase.
FURTHER = " " + " ".join(4 * STAND_INS)

Id = int | Tensor  # of a token, or the vector of an embedding


class Token(NamedTuple):
    """number: among all of its encoder's, start, end and padding included."""

    id: Id
    number: int
    is_word: bool


class Watched(NamedTuple):
    """What an encoder made of its tokens. tokens: of each chunk. rows: (chunks, tokens, width)."""

    tokens: list[list[Id]]
    rows: Tensor


def encode(clip, prompt: BranchPrompt) -> tuple[list, list[list[int]]]:
    """The prompt's conditioning and, for each concept in the concepts' order, where its tokens stand along the token axis.

    Of several text encoders the union: their conditionings lie side by side along the same axis.
    Raises PromptError where a phrase has no token of its own there, ValueError where its tokens' places cannot be known.
    """
    tokens = _tokens(clip, prompt.text)
    with _watching(clip) as watched:
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt.text))
    places = _places(clip, tokens, watched, conditioning[0][0][0])
    words = {encoder: _words(tokens[encoder]) for encoder in places}
    _check_room(clip, prompt.text, words)
    positions = []
    for spans in prompt.spans:
        found = set()
        for span in spans:
            phrase = _of_span(clip, prompt.text, span, words)
            here = {places[encoder][n] for encoder, n in phrase if n in places[encoder]}
            if not here:
                raise PromptError(
                    f"“{prompt.text[slice(*span)]}” leaves no token in the prompt “{prompt.text}”: the text encoder drops"
                    " it. Check the concept's trigger and class word, and that an embedding named there exists."
                )
            found |= here
        positions.append(sorted(found))
    return conditioning, positions


def first_row(part: Tensor, whole: Tensor) -> int | None:
    """Where the rows of `part` stand in `whole`, one after the other. None if nowhere, or in several places."""
    if len(part) > len(whole):
        return None
    alike = (whole[: len(whole) - len(part) + 1] == part[0]).all(dim=-1)
    found = [start for start in alike.nonzero().flatten().tolist() if torch.equal(whole[start:][: len(part)], part)]
    return found[0] if len(found) == 1 else None


# --- a phrase's tokens -----------------------------------------------------------------------------------------------


def _tokens(clip, text: str) -> dict[str, list[Token]]:
    """For each text encoder its tokens, chunk after chunk."""
    result = {}
    for encoder, chunks in clip.tokenize(text, return_word_ids=True).items():
        flat = [token for chunk in chunks for token in chunk]
        # Word 0 marks start, end and padding; some tokenizers give templates' tokens no word at all.
        result[encoder] = [Token(token, number, word != [0]) for number, (token, _, *word) in enumerate(flat)]
    return result


def _words(tokens: list[Token]) -> list[Token]:
    return [token for token in tokens if token.is_word]


def _check_room(clip, text: str, words: dict[str, list[Token]]) -> None:
    """Raises PromptError where an encoder cuts the prompt off: its end would be lost, and phrases could not be told apart."""
    longer = _tokens(clip, text + FURTHER)
    if any(len(_words(longer[encoder])) < len(own) + len(FURTHER.split()) for encoder, own in words.items()):
        raise PromptError(f"The prompt “{text}” is too long: the text encoder cuts its end off. Shorten it.")


def _of_span(clip, text: str, span: Span, words: dict[str, list[Token]]) -> set[tuple[str, int]]:
    """Encoder and number of each of a phrase's tokens."""
    start, stop = span
    changed = [_tokens(clip, text[:start] + word + text[stop:]) for word in STAND_INS]
    found = set()
    for encoder, own in words.items():
        others = [_words(tokens[encoder]) for tokens in changed]
        before = min(_common(own, other) for other in others)
        after = min(_common(own[::-1], other[::-1]) for other in others)
        found |= {(encoder, token.number) for token in own[before : len(own) - after]}
    return found


def _common(one: list[Token], other: list[Token]) -> int:
    """How many tokens the two begin with alike."""
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
    """What each text encoder makes of its tokens while the context lasts. Its rows stay the same tensor in which the host
    applies prompt weights afterwards.
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


def _places(clip, tokens: dict[str, list[Token]], watched: list[Watched], text: Tensor) -> dict[str, dict[int, int]]:
    """For each text encoder whose tokens the conditioning holds, where there each one stands, by its number.

    text: the conditioning, (tokens, width). Raises ValueError where it holds nothing of any encoder.
    """
    found = {}
    for encoder, own in tokens.items():
        for run in watched:
            if places := _places_of(own, run, text):
                found[encoder] = places
    # Other packs change what encoders give, and then a length is all there is to compare.
    same_length = {encoder: {n: n for n in range(len(own))} for encoder, own in tokens.items() if len(own) == len(text)}
    if not found and not same_length:
        raise ValueError(
            f"The text encoder {type(clip.cond_stage_model).__name__} takes {_listed(map(len, tokens.values()))} tokens and"
            f" gives {len(text)}, and nothing shows which are which, so CLoRA cannot find the concepts' words. Use LoRACLR"
            " Merge with this model."
        )
    return found or same_length


def _places_of(tokens: list[Token], run: Watched, text: Tensor) -> dict[int, int]:
    """Where in the conditioning each token stands, by its number; empty if this run is not theirs, or not in there."""
    rows = run.rows[:, 0] if run.rows.ndim == 4 else run.rows  # of several layers, side by side in the conditioning
    length, width = rows.shape[1:]
    ids = [token for chunk in run.tokens for token in chunk][: len(tokens)]  # weights need an empty chunk behind them
    if any(len(chunk) != length for chunk in run.tokens) or width > text.shape[-1] or len(ids) < len(tokens):
        return {}
    if not all(_equal(token.id, other) for token, other in zip(tokens, ids, strict=True)):
        return {}
    rows = rows.flatten(0, 1)[: len(tokens)].to(text)
    starts = [first_row(part, rows) for part in (text[:, :width], text[:, -width:])]  # SDXL's lie side by side
    start = next((start for start in starts if start is not None), None)
    if start is None:
        return {}
    places, row = {}, 0
    for token in tokens:
        if token.number % length == 0:
            row = token.number
        if isinstance(token.id, Tensor) and token.id.shape[-1] != width:
            continue  # the host leaves out an embedding that was made for another encoder, and what follows moves up
        places[token.number] = row - start
        row += 1
    return {number: place for number, place in places.items() if 0 <= place < len(text)}


def _listed(numbers) -> str:
    return " and ".join(str(number) for number in numbers)
