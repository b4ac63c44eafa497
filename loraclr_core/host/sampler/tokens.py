"""Where a phrase's tokens stand in the text conditioning, found by its words.

The host's tokenizers do not say which characters a token came from. So the prompt is tokenised twice more with the
phrase replaced by a stand-in word: what the token sequences have in common before and after it is not the phrase.
Prompt weights, embeddings and repeated words around it are tokenised by the host as ever and cancel out.
"""

import torch
from comfy.text_encoders.flux import FluxTokenizer

from ...sampler.prompt import BranchPrompt, PromptError, Span

# Two words, so that a phrase which shares a token with the one differs from the other. Letters, because punctuation
# beside the phrase would be tokenised together with any other character.
STAND_INS = ("qzx", "wvk")

Token = tuple[object, int]  # id or embedding vector, position in the conditioning


def positions(clip, prompt: BranchPrompt) -> list[list[int]]:
    """For each concept, in the concepts' order, where its tokens stand along the conditioning's token axis.

    Of several text encoders the union: their conditionings lie side by side along the same axis.
    Raises PromptError where a phrase has no token of its own.
    """
    tokens = _tokens(clip, prompt.text)
    result = []
    for spans in prompt.spans:
        found = set()
        for span in spans:
            here = _of_span(clip, prompt.text, span, tokens)
            if not here:
                raise PromptError(
                    f"“{prompt.text[slice(*span)]}” leaves no token in the prompt “{prompt.text}”: the text encoder drops"
                    " it. Check the concept's trigger and class word, and that an embedding named there exists."
                )
            found |= here
        result.append(sorted(found))
    return result


def _of_span(clip, text: str, span: Span, tokens: dict[str, list[Token]]) -> set[int]:
    start, stop = span
    changed = [_tokens(clip, text[:start] + word + text[stop:]) for word in STAND_INS]
    found = set()
    for encoder, own in tokens.items():
        others = [sequences[encoder] for sequences in changed]
        before = min(_common(own, other) for other in others)
        after = min(_common(own[::-1], other[::-1]) for other in others)
        found |= {position for _, position in own[before : len(own) - after]}
    return found


def _tokens(clip, text: str) -> dict[str, list[Token]]:
    """The tokens that stand for words (id 0 marks start, end and padding), chunk after chunk, for each text encoder."""
    result = {}
    tokenized = clip.tokenize(text, return_word_ids=True)
    if isinstance(clip.tokenizer, FluxTokenizer):
        del tokenized["l"]  # CLIP-L gives only the pooled text, which has no tokens
    for encoder, chunks in tokenized.items():
        sequence, offset = [], 0
        for chunk in chunks:
            sequence += [(token, offset + i) for i, (token, _, word) in enumerate(chunk) if word != 0]
            offset += len(chunk)
        result[encoder] = sequence
    return result


def _common(one: list[Token], other: list[Token]) -> int:
    """How many tokens the two begin with alike."""
    count = 0
    for (a, _), (b, _) in zip(one, other, strict=False):
        if not _equal(a, b):
            break
        count += 1
    return count


def _equal(a, b) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a, b)
    return a == b
