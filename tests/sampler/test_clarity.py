"""What is said of the concepts' areas, and what counts as unclear."""

from pathlib import Path

import pytest
import torch
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.sampler.clarity import Evidence, sizes, warnings

CAT, DOG = (Concept(name, f"sks {name}", name, "", Path(), "", 1.0, 1.0) for name in ("cat", "dog"))
LEFT = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0]] * 2)
RIGHT = LEFT.flip(-1)
NOWHERE = torch.zeros(2, 8)
EVERYWHERE = torch.full((2, 8), 0.5)


def evidence(areas, claims, given=(False, False), attention=(0.04, 0.03), pictures: int = 1) -> Evidence:
    """The same in every picture; for two concepts."""
    parts = (torch.stack(areas), torch.tensor(given), torch.stack(claims), torch.tensor(attention))
    return Evidence(*(torch.stack([part] * pictures) for part in parts))


def test_clear_concepts_are_told_with_size_and_attention():
    clear = evidence((LEFT, RIGHT), (LEFT, RIGHT * 0.8 + 0.2))
    assert warnings([CAT, DOG], clear) == []
    assert sizes([CAT, DOG], clear) == [
        "“cat”: 25 % of the picture, with 100 % of the attention to its class word.",
        "“dog”: 25 % of the picture, with 62 % of the attention to its class word.",
    ]


def test_a_given_area_is_told_as_that_and_needs_no_object():
    given = evidence((LEFT, RIGHT), (NOWHERE, RIGHT), given=(True, False), attention=(0.0, 0.03))
    assert warnings([CAT, DOG], given) == []
    assert sizes([CAT, DOG], given)[0] == "“cat”: 25 % of the picture, by its mask."


@pytest.mark.parametrize(
    ("unclear", "text"),
    [
        (
            evidence((LEFT, NOWHERE), (LEFT, EVERYWHERE)),
            "“dog”: the plain picture has no object for it. Try another seed",
        ),
        (
            evidence((LEFT, NOWHERE), (LEFT, LEFT)),
            "“dog”: no object of its own: its class word “dog” means that of “cat”",
        ),
        (
            evidence((LEFT, RIGHT), (LEFT, LEFT + RIGHT * 0.4)),
            "“dog”: its class word “dog” means the object of “cat” more",
        ),
        (
            evidence((LEFT, RIGHT), (LEFT, EVERYWHERE)),
            "“dog”: attention to its class word “dog” is spread over the picture",
        ),
        (
            evidence((LEFT, RIGHT), (LEFT, RIGHT), attention=(0.04, 0.001)),
            "“dog”: the model pays hardly any attention to its class word “dog”. Write a plainer word",
        ),
        (evidence((LEFT, RIGHT * 0.04), (LEFT, RIGHT)), "“dog”: its object is 1.0 % of the picture, too small"),
        (
            evidence((LEFT, RIGHT * 0.04), (LEFT, RIGHT), given=(False, True)),
            "“dog”: its mask covers 1.0 % of the picture, too little to draw in. Make it larger.",
        ),
    ],
)
def test_what_is_unclear_is_one_sentence_that_says_what_to_do(unclear, text):
    (warning,) = warnings([CAT, DOG], unclear)
    assert warning.startswith(text)
    assert warning.endswith(("(Concept Area).", "Make it larger."))


def test_a_concept_alone_has_no_other_to_be_taken_for():
    alone = evidence((NOWHERE,), (EVERYWHERE,), given=(False,), attention=(0.04,))
    assert warnings([CAT], alone) == [
        "“cat”: the plain picture has no object for it. Try another seed, or give it an area (Concept Area)."
    ]


def test_pictures_of_a_batch_are_named_and_sizes_are_a_range():
    one, other = evidence((LEFT, RIGHT), (LEFT, RIGHT)), evidence((LEFT, NOWHERE), (LEFT, EVERYWHERE))
    batch = Evidence(*(torch.cat(parts) for parts in zip(one, other, strict=True)))
    (warning,) = warnings([CAT, DOG], batch)
    assert warning.startswith("Picture 2 of 2: “dog”: the plain picture has no object")
    assert sizes([CAT, DOG], batch)[1].startswith("“dog”: 0–25 % of the picture, with 0–100 %")
