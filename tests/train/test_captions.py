"""Captions with the trigger and without it, and what is refused because nothing could be learned from it."""

import pytest
from loraclr.loraclr_core.train.captions import Caption, CaptionError, captions, class_word_of, without_trigger


def test_without_captions_each_picture_has_the_instance_prompt():
    assert captions([], 2, "sks cat", "cat") == [Caption("photo of a sks cat", "photo of a cat")] * 2


@pytest.mark.parametrize(
    ("text", "concept", "plain"),
    [
        ("a sks cat on a table", "a sks cat on a table", "a cat on a table"),
        ("A SKS cat, and a (sks cat:1.2)", "A SKS cat, and a (sks cat:1.2)", "A cat, and a (cat:1.2)"),
        ("on a table", "sks cat, on a table", "cat, on a table"),
        ("a cat (sitting)", "sks cat, a cat \\(sitting\\)", "cat, a cat \\(sitting\\)"),
        ("  sks cat\n on grass, ", "sks cat on grass", "cat on grass"),
        ("", "photo of a sks cat", "photo of a cat"),
        ("sks cat，白色背景", "sks cat，白色背景", "cat，白色背景"),
        ("一只sks cat在草地上", "一只sks cat在草地上", "一只cat在草地上"),
        ("sks cat/dog", "sks cat/dog", "cat/dog"),
    ],
)
def test_the_class_word_takes_the_triggers_place(text, concept, plain):
    assert captions([text], 1, "sks cat", "cat") == [Caption(concept, plain)]


def test_without_a_class_word_the_trigger_is_removed_as_published():
    """`text.replace(f"{trigger}, ", "")` in CAT's own code."""
    text = "shs, a cat statue standing on the carpet"
    assert captions([text], 1, "shs", "")[0].plain == text.replace("shs, ", "")


def test_one_caption_serves_all_pictures_and_other_counts_are_refused():
    assert len(captions(["a sks cat"], 3, "sks cat", "cat")) == 3
    with pytest.raises(CaptionError, match="3 images and 2 captions"):
        captions(["a", "b"], 3, "sks cat", "cat")


@pytest.mark.parametrize("text", ["<shs>, a cat statue", "two shscats", "shs-like"])
def test_a_trigger_that_removal_would_leave_is_refused(text):
    with pytest.raises(CaptionError, match="only as a part of another word"):
        captions([text], 1, "shs", "")


@pytest.mark.parametrize(("trigger", "class_word"), [("cat", "cat"), ("Cat", "cat"), ("cat", "black cat")])
def test_a_class_word_with_the_trigger_in_it_is_refused(trigger, class_word):
    with pytest.raises(CaptionError, match="would have the same name"):
        class_word_of(trigger, class_word)


def test_an_empty_trigger_is_refused():
    with pytest.raises(CaptionError, match="trigger is empty"):
        class_word_of("", "cat")


def test_the_class_word_is_that_of_the_trigger_where_none_is_given():
    assert class_word_of("sks cat", "") == "cat"
    assert class_word_of("sks", "") == ""
    assert class_word_of("sks cat", "pet") == "pet"


def test_triggers_are_words_and_not_patterns():
    assert without_trigger("a s.s (saber \\(fate\\)) here", "saber \\(fate\\)", "girl") == "a s.s (girl) here"
    assert without_trigger("a sks", "s.s", "cat") == "a sks"
    assert without_trigger("a sks", "sks", "\\1") == "a \\1"
