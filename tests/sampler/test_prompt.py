"""One prompt becomes the prompts of all branches."""

from pathlib import Path

import pytest
from loraclr.loraclr_core import braces
from loraclr.loraclr_core.concept import Concept
from loraclr.loraclr_core.sampler import prompt


def concept(name: str, trigger: str, class_word: str) -> Concept:
    return Concept(name, trigger, class_word, "x.safetensors", Path("x.safetensors"), "", 1.0, 1.0)


CONCEPTS = [concept("cat", "sks cat", "cat"), concept("my dog", "zwx", "small dog")]


def phrases(branch: prompt.BranchPrompt) -> list[list[str]]:
    return [[branch.text[slice(*span)] for span in spans] for spans in branch.spans]


def test_each_branch_has_one_trigger_in_place():
    found = prompt.branch_prompts("{my dog} and a {cat}, {cat}s", CONCEPTS)
    assert [branch.text for branch in found] == [
        "small dog and a cat, cats",
        "small dog and a sks cat, sks cats",
        "zwx and a cat, cats",
    ]
    assert [phrases(branch) for branch in found] == [
        [["cat", "cat"], ["small dog"]],
        [["sks cat", "sks cat"], ["small dog"]],
        [["cat", "cat"], ["zwx"]],
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a {cat} and {my dog} and {bird}", "no concept is called that.*{cat}, {my dog}"),
        ("a {cat}", "never names {my dog}"),
        ("a {cat} and {my dog", "brace without its partner"),
        ("a {cat}} and {my dog}", "brace without its partner"),
        ("a {{cat} and {my dog}", "brace without its partner"),
        ("", "never names {cat}, {my dog}"),
        (r"a {cat} and {my dog\}", "brace without its partner.*meant literally"),
        ("a {cat} and {my dog} in {snow|rain}", "no concept is called that.*meant literally"),
    ],
)
def test_a_prompt_that_does_not_fit_is_shown(text, complaint):
    with pytest.raises(prompt.PromptError, match=complaint) as error:
        prompt.branch_prompts(text, CONCEPTS)
    assert f"“{text}”" in str(error.value)


def test_escaped_braces_are_braces():
    """As a prompt in JSON needs them."""
    base, cat, _ = prompt.branch_prompts(r'\{"a": "{cat} and {my dog}"\}', CONCEPTS)
    assert base.text == '{"a": "cat and small dog"}'
    assert cat.text == '{"a": "sks cat and small dog"}'
    assert phrases(cat) == [["sks cat"], ["small dog"]]


@pytest.mark.parametrize("text", ["blurry {cat}", "{ My Dog }", "{CAT}"])
def test_a_negative_that_names_a_concept_is_an_error(text):
    with pytest.raises(prompt.PromptError, match="cannot name one: write plain words"):
        prompt.negative_prompt(text, CONCEPTS)


def test_other_braces_of_a_negative_stay():
    for text in ("blurry", "{a|b}", "{{blurry}}", "{", "cat}"):
        assert prompt.negative_prompt(text, CONCEPTS) == text
    assert prompt.negative_prompt(r"\{cat\}", CONCEPTS) == "{cat}"
    assert braces.literal_marks(r"{a|b} \{c\} {d}") == ["{a|b}", "{d}"]
