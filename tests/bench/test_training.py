"""The bench of trained LoRAs: what they are trained on and asked for, when a cell is out of date, and the tables."""

from pathlib import Path

import folder_paths
import pack
import pytest
import torch
from host_train.training import CLASS, on_loaded, picture, small_models
from loraclr.loraclr_core.host.train import train
from loraclr.loraclr_core.host.train.data import Other
from loraclr.loraclr_core.host.train.rows import Rows
from loraclr.loraclr_core.train.draws import draws
from pack import World
from quality import cells
from quality.columns import BATCH
from quality.report import PAGE, replace_between
from quality.training import class_pictures, report, scoring, ways
from quality.training.ways import TRAINED, WAYS, Way
from shapes.world import BACKGROUNDS, CLASSES, SIDE, ShapeConcept

BALL, BOX, *_ = TRAINED


@pytest.fixture
def no_cells(monkeypatch, tmp_path):
    """A bench that has measured nothing yet, so that a test can write cells of its own."""
    monkeypatch.setattr(cells, "CELLS", tmp_path)


class TestPictures:
    def test_a_concept_is_shown_alone_on_every_background(self):
        scenes = ways.scenes(BALL)
        assert len(scenes) == 12
        assert {scene.background for scene in scenes} == set(BACKGROUNDS)
        for scene in scenes:
            (thing,) = scene.things
            assert (thing.pattern, thing.first, thing.second) == (BALL.pattern, BALL.first, BALL.second)

    def test_captions_say_the_background_and_nothing_else(self):
        for scene in ways.scenes(BALL):
            assert scene.prompt() == f"a photo of a {BALL.trigger} {scene.background}"

    def test_they_are_the_same_in_every_run_and_differ_from_one_another(self):
        assert ways.scenes(BALL) == ways.scenes(BALL)
        assert len({scene.things for scene in ways.scenes(BALL)}) == 12

    def test_no_prompt_but_the_concept_s_own_has_its_trigger(self):
        for kind, asks in scoring.asks_alone(BALL).items():
            assert len(asks) * BATCH == scoring.PICTURES
            for ask in asks:
                assert (BALL.trigger in ask.text()) == (kind in ("own", "beside"))

    def test_beside_the_concept_stands_a_thing_of_every_other_class(self):
        beside = {ask.plain for ask in scoring.asks_alone(BALL)["beside"]}
        assert beside == {(word,) for word in CLASSES if word != BALL.class_word}


@pytest.mark.parametrize("way", WAYS)
def test_a_way_sets_what_the_node_has(way):
    inputs = {schema.id: schema for schema in pack.node(ways.NODE).define_schema().inputs}
    for name, value in (ways.TRAINING | WAYS[way].settings).items():
        options = getattr(inputs[name], "options", None)
        assert options is None or value in options
    assert WAYS[way].masks or ways.settings(way, BALL)["outside"] == 0


class TestClassPictures:
    def test_four_on_every_background_whose_captions_name_the_class(self, monkeypatch):
        monkeypatch.setitem(cells.SAMPLING, "steps", 1)
        batches, captions = class_pictures.paint(pack.demo_models(), BALL)
        assert [tuple(batch.shape) for batch in batches] == [(BATCH, SIDE, SIDE, 3)] * len(BACKGROUNDS)
        assert captions == [f"a photo of a ball {background}" for background in BACKGROUNDS for _ in range(BATCH)]

    def test_they_are_learned_as_they_are_and_the_base_is_never_asked(self, monkeypatch):
        other = Other(torch.randn(1, 4, 8, 12), f"photo of a {CLASS}")

        def work(rows, learner):
            with class_pictures.learned():
                rows = train.Rows(rows.model, rows.data._replace(others=[other]), rows.conds, rows.settings)
            monkeypatch.delattr(Rows, "_base")
            (draw,) = draws(0, 0, 1, 1)
            terms = rows._row(learner.deltas, draw, True)
            x, sigma = rows._noisy(other.latent, draw)
            with torch.no_grad():
                error = (rows.model.evaluate(rows.conds[other.caption], x, sigma) - other.latent).square().mean()
            assert terms["preservation"] == pytest.approx(float(rows._weight(sigma) * error), rel=1e-4)
            assert terms["concept"] > 0

        on_loaded(small_models("SD1.5"), [picture(1)], [], work)
        assert train.Rows is Rows  # as before


def test_ways_are_compared_alone_and_together_and_changes_of_the_default_alone():
    for way in ways.COMPARED:
        assert scoring.cells_of(way)[:4] == [((concept,), None) for concept in TRAINED]
        assert len(scoring.cells_of(way)) == 4 + len(scoring.PAIRS) * len(scoring.METHODS)
    for way in ways.IDEAS:
        assert scoring.cells_of(way) == [((BALL,), None)]


class TestFingerprints:
    @pytest.mark.parametrize(("setting", "value"), [("steps", 3), ("rank", 4), ("ema", 0.5), ("training_seed", 1)])
    def test_a_lora_is_trained_again_when_a_setting_changes(self, monkeypatch, setting, value):
        before = ways.lora_name("default", BALL)
        monkeypatch.setitem(ways.TRAINING, setting, value)
        assert ways.lora_name("default", BALL) != before

    def test_ways_masks_and_concepts_have_loras_of_their_own(self, monkeypatch):
        names = {ways.fingerprint(way, concept) for way in WAYS for concept in TRAINED}
        assert len(names) == len(WAYS) * len(TRAINED)
        without = ways.fingerprint("outside", BALL)
        monkeypatch.setitem(WAYS, "outside", Way(WAYS["outside"].settings))
        assert ways.fingerprint("outside", BALL) != without

    def test_a_cell_depends_on_its_loras_and_on_how_pictures_are_sampled(self, monkeypatch):
        groups = [((BALL,), None), ((BOX,), None), *(((BALL, BOX), method) for method in scoring.METHODS)]
        before = [scoring.fingerprint("default", *group) for group in groups]
        assert len(set(before)) == len(groups)
        with monkeypatch.context() as patch:
            patch.setitem(ways.TRAINING, "steps", 3)
            trained = [scoring.fingerprint("default", *group) for group in groups]
        monkeypatch.setitem(cells.SAMPLING, "steps", 3)
        sampled = [scoring.fingerprint("default", *group) for group in groups]
        assert len({*before, *trained, *sampled}) == 3 * len(groups)

    def test_a_lora_that_is_there_is_not_trained_again(self):
        path = Path(folder_paths.get_folder_paths("loras")[0]) / ways.lora_name("plain", BALL)
        path.write_bytes(b"a LoRA")
        assert ways.ensure_lora(World(None, None, None), "plain", BALL) == path.name
        assert path.read_bytes() == b"a LoRA"


def cell(way: str, concept: ShapeConcept = BALL, **kinds: dict) -> dict:
    """A cell of today's code, of one concept, with these kinds of pictures."""
    made_with = scoring.fingerprint(way, (concept,), None)
    return {"row": scoring.row_of(way), "column": scoring.column_of((concept,)), "made_with": made_with} | kinds


@pytest.mark.usefixtures("no_cells")
class TestTables:
    def test_only_a_way_that_is_measured_has_a_row_with_dashes_for_what_is_missing(self):
        cells.write_cell(cell("plain", own={"identity": [0.9, 0.7], "like_class": [1.0, 1.0]}))
        _, _, *rows = report.format_tables().split("\n\n")[0].splitlines()
        (row,) = rows
        assert row.startswith("| plain | 0.000 | 0.80")
        assert row.endswith("|" + " – |" * (len(report.SCORES) - 1))

    def test_means_and_paired_differences_are_those_of_the_pictures(self):
        cells.write_cell(cell("plain", own={"identity": [0.9, 0.7], "like_class": [1.0, 1.0]}))
        cells.write_cell(cell("default", own={"identity": [0.8, 0.8], "like_class": [0.5, 1.0]}))
        identity = report.SCORES["identity"]
        assert report.format_mean("default", identity) == "0.80"
        # −0.1 and +0.1: no difference, with a deviation of √0.02 over two pictures.
        assert report.compare("default", "plain", identity) == pytest.approx((0.0, 1.96 * 0.1), abs=1e-6)
        table = report.format_tables()
        assert "| default | 0.333 | 0.80 |" in table
        assert "| default − plain | +0.250 ± 0.490 | +0.000 ± 0.196 |" in table
        assert "*" not in table

    def test_a_changed_default_is_compared_with_the_default_on_the_same_concept(self):
        kept = {"identity": [0.0, 0.0]}
        cells.write_cell(
            cell("default", own={"identity": [0.8, 0.8], "like_class": [1.0, 1.0]}, kept=kept | {"kept": [0.5, 0.5]})
        )
        cells.write_cell(cell("default", concept=BOX, own={"identity": [0.1, 0.1], "like_class": [1.0, 1.0]}))
        cells.write_cell(cell("preservation 10", own={"identity": [0.7, 0.7], "like_class": [0.5, 0.5]}))
        default, changed = report.format_ideas()[3:]
        assert default.startswith("| default | 0.000 | 0.80 | 0.50 |")
        assert changed.startswith("| preservation 10 | 0.500 | 0.70 (-0.100 ± 0.000) | – |")

    def test_right_beside_another_thing_means_both(self):
        cells.write_cell(cell("plain", beside={"identity": [0.9, 0.9, 0.1], "other": [0.9, 0.1, 0.9]}))
        assert report.format_mean("plain", report.SCORES["beside"]) == "0.33"

    def test_drawn_unasked_is_a_share_of_the_class_word_s_pictures(self):
        kind = {"identity": [0.9, 0.1, 0.2, 0.3], "kept": [1.0] * 4}
        cells.write_cell(cell("plain") | {"class": kind})
        assert report.format_mean("plain", report.SCORES["unasked"]) == "0.25"

    def test_an_older_cell_bears_a_star(self):
        cells.write_cell(cell("plain", own={"identity": [0.5], "like_class": [1.0]}) | {"made_with": "older code"})
        assert report.format_mean("plain", report.SCORES["identity"]) == "0.50*"
        assert report.STAR in report.format_tables()

    def test_one_picture_has_no_interval(self):
        for way in ("plain", "default"):
            cells.write_cell(cell(way, own={"identity": [0.5], "like_class": [1.0]}))
        assert report.compare("default", "plain", report.SCORES["identity"]) is None


def test_likeness_is_one_for_the_same_picture():
    pictures = torch.stack([scene.picture() for scene in ways.scenes(BALL)[:2]])
    assert scoring.likeness(pictures, pictures).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert (scoring.likeness(pictures, pictures.flip(0)) < 0.999).all()


def test_the_page_s_table_is_that_of_the_cells():
    """After a measurement: `make bench-quality ARGS="training show"`."""
    text = PAGE.read_text("utf-8")
    assert text == replace_between(text, report.BEGIN, report.END, report.format_tables())
