"""The shipped weights draw what they were trained to, and the published scores are what this code measures."""

import json
import statistics

import demo_assets
import pack
import pytest
import quality
import torch
from quality import COLUMNS, ROOT, ROWS
from shapes import base, loras
from shapes.methods import Ask, Method, merge_row
from shapes.model import Text
from shapes.world import CONCEPTS


@pytest.fixture(scope="module")
def world():
    with torch.inference_mode():
        return quality.World(*pack.demo_models())


def test_every_concept_is_drawn_by_its_own_lora(world, monkeypatch):
    """A floor that a damaged file falls through: a picture of each by the stock loaders."""
    monkeypatch.setattr(quality, "BATCH", 1)
    asks = [Ask((concept,), (concept,), (), "in fog", 0) for concept in CONCEPTS]
    found = [scores["identity"][0][0] for scores, _ in quality.measured(world, ROWS["alone"], asks)]
    assert statistics.mean(found) > 0.8
    assert min(found) > 0.4


def test_a_published_cell_is_what_this_code_measures(world):
    """The first prompt of a cell, measured again."""
    row, column = "alone", "1"
    ask = COLUMNS[column].asks(quality.pictures_of(row, column))["own"][0]
    found, _ = next(quality.measured(world, ROWS[row], [ask]))
    published = quality.cell(row, column)["own"]
    assert published["prompt"][: quality.BATCH] == [ask.seed] * quality.BATCH
    assert published["identity"][: quality.BATCH] == [pytest.approx(each, abs=0.05) for each in found["identity"]]


def test_distillation_brings_pictures_nearer_to_those_of_each_lora_alone(world, monkeypatch):
    """Two concepts of one class, by the stock sampler and from noise that it has not seen."""
    monkeypatch.setattr(quality, "BATCH", 1)
    monkeypatch.setitem(quality.SAMPLING, "steps", 6)
    group = CONCEPTS[0], CONCEPTS[4]
    asks = [Ask(group, (concept,), (), "in fog", 1) for concept in group]

    def pictures(row: Method) -> torch.Tensor:
        prepare = row.prepare(world, group, **row.settings)
        return torch.cat([quality.sample(world, prepare(ask), ask.seed) for ask in asks])

    alone = pictures(ROWS["alone"])
    solved, distilled = (pictures(merge_row(capture_steps=5, distillation_steps=steps)) for steps in (0, 8))
    assert (distilled - alone).norm() < (solved - alone).norm()


def test_every_lora_was_trained_on_the_base_model_and_the_concept_that_are_shipped():
    found = {concept.name: demo_assets.stored_metadata(concept.name).get("origin") for concept in CONCEPTS}
    assert found == {concept.name: loras.origin(concept) for concept in CONCEPTS}


def test_attention_of_class_words_lies_on_their_objects():
    """What CLoRA lives on, of the weights that are shipped; in the middle of the schedule."""
    unet = demo_assets.make_unet()
    unet.load_state_dict(demo_assets.stored("unet"))
    assert base.attention_ratio(unet, Text(torch.device("cpu")), 500) >= 3


def test_readme_s_tables_are_those_of_the_cells():
    """After a measurement: `make bench-quality ARGS=show`."""
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.partition(quality.BEGIN)[2].partition(quality.END)[0].strip() == quality.tables()


def test_a_cell_is_older_than_its_code_when_a_setting_or_a_default_changes(monkeypatch, tmp_path):
    monkeypatch.setattr(quality, "CELLS", tmp_path)
    row, column = "exact", "2"
    cell = {"made_with": quality.fingerprint(row, column), "own": {"identity": [[0.5]], "prompt": [0]}}
    (quality.cell_path(row, column)).write_text(json.dumps(cell))
    assert quality.is_current(row, column)
    assert "| exact | 0.50 |" in "\n".join(quality.table("identity", [row], [column]))
    for name, change in (("ROWS", {row: merge_row(ridge=0.5)}), ("SAMPLING", {"steps": 3})):
        with monkeypatch.context() as changed:
            changed.setitem(quality.ROWS, *change.popitem()) if name == "ROWS" else changed.setattr(
                quality, name, change
            )
            assert not quality.is_current(row, column)
            assert "| exact | 0.50* |" in "\n".join(quality.table("identity", [row], [column]))
    defaults = pack.defaults
    monkeypatch.setattr(pack, "defaults", lambda node_id: defaults(node_id) | {"ridge": 0.5})
    assert not quality.is_current(row, column)


@pytest.mark.parametrize(("now", "stands"), [(0.504, True), (0.53, False)])
def test_an_older_cell_stands_only_where_its_first_prompt_scores_the_same(monkeypatch, tmp_path, now, stands):
    monkeypatch.setattr(quality, "CELLS", tmp_path)
    row, column, size = "alone", "1", quality.BATCH
    own = {"identity": [[0.5]] * size + [[0.9]], "prompt": [COLUMNS[column].asks(64)["own"][0].seed] * size + [1]}
    quality.write_cell({"row": row, "column": column, "made_with": "older code", "own": own})
    monkeypatch.setattr(quality, "measured", lambda *_: iter([({"identity": [[now]] * size}, None)]))
    quality.confirm(None, row, column)
    assert quality.is_current(row, column) == stands
    assert quality.cell(row, column)["own"] == own


def test_comments_and_docstrings_do_not_age_a_cell():
    code = 'def f(x):\n    """What."""\n    return x  # why\n'
    assert quality.essence(code) == quality.essence("def f(x):\n    return x\n")
    assert quality.essence(code) != quality.essence("def f(x):\n    return 2 * x\n")


def test_differences_are_paired_picture_by_picture(monkeypatch, tmp_path):
    monkeypatch.setattr(quality, "CELLS", tmp_path)
    for row, values in (("exact", [0.9, 0.1]), ("stacked", [0.8, 0.0])):
        cell = {"row": row, "own": {"identity": [[v] for v in values], "prompt": [0, 0]}}
        (quality.cell_path(row, "2")).write_text(json.dumps(cell))
    found, width = quality.difference("exact", "stacked", "2", "identity")
    assert found == pytest.approx(0.1)
    assert width == pytest.approx(0, abs=1e-6)
