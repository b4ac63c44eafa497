"""The words of triggers, typed and from files; tests/web holds the page to the table of those that are typed."""

import json
from pathlib import Path

import pytest
from loraclr.loraclr_core import words
from loraclr.loraclr_core.trained_words import class_word_in, trained_words

TABLES = Path(__file__).parents[1] / "words"
TRIGGERS = json.loads((TABLES / "triggers.json").read_text("utf-8"))
HEADERS = json.loads((TABLES / "headers.json").read_text("utf-8"))


def header(metadata: dict) -> dict[str, str]:
    """As a file has it: text alone, JSON within."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}


@pytest.mark.parametrize("row", TRIGGERS, ids=lambda row: row["trigger"])
def test_the_class_word_is_a_word_beside_the_rare_one_and_never_syntax(row):
    class_word = words.class_word(row["trigger"])
    assert (class_word, words.concept_name(row["trigger"], class_word)) == (row["class_word"], row["name"])


def test_a_class_word_that_is_given_is_the_name_without_braces():
    assert words.concept_name("sks cat", "(big cat:1.2)") == "(big cat:1.2)"
    assert words.concept_name("sks cat", "{big|small} cat") == "big|small cat"


@pytest.mark.parametrize("row", HEADERS, ids=lambda row: row["says"])
def test_triggers_come_from_what_trainers_write_or_from_nothing(row):
    assert trained_words(header(row["metadata"])).trigger == row["trigger"]
    assert class_word_in(header(row["metadata"])) == row.get("class_word", "")


def test_where_a_trigger_stands_is_said_and_what_else_there_is():
    tags = {"5_img": {"mychar": 40, "armor": 38, "1girl": 40}}
    found = trained_words(header({"ss_dataset_dirs": {"10_sks": {"img_count": 9}}, "ss_tag_frequency": tags}))
    assert (found.trigger, found.source) == ("sks", "the training folder “10_sks”")
    found = trained_words(header({"ss_tag_frequency": tags}))
    assert (found.trigger, found.others) == ("", ["mychar", "armor"])
    found = trained_words(header({"ss_trained_words": ["mychar", "armored (a)"]}))
    assert (found.source, found.others) == ("ss_trained_words", ["armored \\(a\\)"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("(sks cat:1.2), saber \\(fate\\)", []),
        ("<3 sks cat", []),
        ("sks cat <lora:sks:1>", ["<lora:sks:1>"]),
        ("{red|blue} cat", ["braces"]),
        ("(sks cat", ["parenthesis"]),
        ("sks) cat (", ["parenthesis"]),
        ("{a <lora:b:1> (", ["<lora:b:1>", "braces", "parenthesis"]),
    ],
)
def test_what_is_not_read_as_meant_is_said(text, said):
    found = words.remarks("trigger", text)
    assert len(found) == len(said)
    assert all(word in remark for word, remark in zip(said, found, strict=True))
