"""The report begins with what became of each concept, in plain words that fit the figures below them."""

import dataclasses

import pytest
from loraclr.loraclr_core.host.merge import merge as merging
from loraclr.loraclr_core.host.merge import report
from loraclr.loraclr_core.host.merge.distillation import Agreement
from loraclr.loraclr_core.host.merge.target import CaptureSettings
from running import merge

SETTINGS = merging.MergeSettings(capture=CaptureSettings(("{trigger}",), 1, 0, (4, 8, 8)), merge_text_encoder=False)


@pytest.fixture(scope="module")
def result(demo, concepts):
    return merging.merge(demo.model, demo.clip, concepts[:2], SETTINGS, lambda phase, done: None)


def with_errors(result, *merged: float):
    """The same merge with one layer whose errors are these shares of the plain model's."""
    (layer, *_) = result.solution.layers
    layer = layer._replace(base=[4.0, 4.0], sum=[5.0, 5.0], merged=[4.0 * share for share in merged])
    return dataclasses.replace(result, solution=dataclasses.replace(result.solution, layers=[layer]))


def texts(result) -> list[str]:
    return [verdict.text for verdict in report.verdicts(result)]


def test_the_words_fit_the_errors(result):
    """An error is a squared distance: 1/9 of the plain model's is a third of the way back to it."""
    assert texts(with_errors(result, 0.03, 1 / 9)) == [
        "near its own LoRA",
        "lost about a third: try 200 distillation steps",
    ]
    assert [text.partition(":")[0] for text in texts(with_errors(result, 1 / 16, 1 / 4))] == [
        "lost about a quarter",
        "lost about half",
    ]
    assert [text.partition(":")[0] for text in texts(with_errors(result, 0.6, 1.2))] == [
        "lost most",
        "lost nearly all",
    ]


def test_after_a_distillation_the_words_are_about_its_errors(result):
    distilled = dataclasses.replace(
        with_errors(result, 0.5, 0.5), agreements=[Agreement(1.0, 0.5, 0.02), Agreement(1.0, 0.5, 1 / 9)]
    )
    near, lost = texts(distilled)
    assert near == "near its own LoRA"
    assert lost == "lost about a third: try more distillation steps, or the sampler"


def test_the_page_and_the_text_begin_with_the_same_sentences(result):
    title, sentences, *_ = report.markdown(result).split("\n\n")
    assert title == "# LoRACLR merge"
    said = [f"- **{each['concept']}**: {each['text']}." for each in report.panel(result)["verdicts"]]
    assert sentences.splitlines() == said
    assert len(said) == 2


def test_nothing_is_claimed_where_nothing_was_measured(demo, concepts):
    text = merge(demo, concepts[:2], solver="sum (baseline)")[4]
    assert text.count("summed with the others, not measured.") == 2
    assert "its own LoRA, unchanged." in merge(demo, concepts[:1])[4]
