r"""One prompt for all branches: `a photo of {cat} and {dog} in a park`.

Branch 0 replaces every `{name}` by the concept's class word. Branch k replaces concept k's by its trigger and the
others' by their class words. Literal braces are written `\{` and `\}`.
"""

from typing import NamedTuple

from ..braces import PromptError, join_marks, named_in, split_at_names, unescaped
from ..concept import Concept, require_class_words

Span = tuple[int, int]


class BranchPrompt(NamedTuple):
    """The prompt of one branch."""

    text: str
    # For each concept, in order, where its phrase stands in `text` (characters, end exclusive).
    spans: list[list[Span]]


def branch_prompts(prompt: str, concepts: list[Concept]) -> list[BranchPrompt]:
    """Return the prompts of branch 0 (base) and of branches 1…K, one per concept.

    Raises PromptError for a `{name}` that no concept has, a concept that the prompt never names or cannot name, or a
    stray brace; ValueError for a concept without a class word.
    """
    require_class_words(concepts, "the sampler's plain picture shows each concept by its class word")
    for concept in concepts:
        if "{" in concept.name or "}" in concept.name:
            raise PromptError(
                f"No prompt can name concept “{concept.name}” ({concept.lora_name}), since its name has braces: write"
                " another into name of its Load Concept LoRA."
            )
    plain, named = split_at_names(prompt, concepts)
    missing = [concept for i, concept in enumerate(concepts) if i not in named]
    if missing:
        raise PromptError(
            f"The prompt “{prompt}” never names {join_marks(missing)}: write it where the concept belongs, or take the concept"
            " out of the chain."
        )
    plain = [unescaped(part) for part in plain]
    return [_branch(plain, named, concepts, branch) for branch in (None, *range(len(concepts)))]


def negative_prompt(text: str, concepts: list[Concept]) -> str:
    """Return the negative prompt of every branch. Raises PromptError where it names a concept in braces.

    Other braces are left unchanged; `braces.literal_marks` finds them.
    """
    if named := named_in(text, [concept.name for concept in concepts]):
        raise PromptError(
            f"The negative prompt “{text}” names {named}. It is the same for every concept and cannot name one: write plain"
            " words for what the picture must not show."
        )
    return unescaped(text)


def _branch(plain: list[str], named: list[int], concepts: list[Concept], branch: int | None) -> BranchPrompt:
    text = plain[0]
    spans: list[list[Span]] = [[] for _ in concepts]
    for i, following in zip(named, plain[1:], strict=True):
        phrase = concepts[i].trigger if i == branch else concepts[i].class_word
        spans[i].append((len(text), len(text) + len(phrase)))
        text += phrase + following
    return BranchPrompt(text, spans)
