"""The shipped weights draw what they were trained to, and the published scores are what this code measures."""

import statistics

import demo_assets
import folder_paths
import pack
import pytest
import quality
import small_models
import torch
from denoising import Text
from pack import World
from PIL import Image
from quality import cells, columns, comparisons, report, rivals
from quality.columns import BATCH, COLUMNS
from quality.methods import HEADLINE, ROOT, Ask, Method, keys_and_values, lora_name, merge_row, the_rest
from quality.rows import ROWS
from safetensors.torch import load_file
from shapes import base, loras
from shapes.world import CONCEPTS


@pytest.fixture(scope="module")
def world():
    with torch.inference_mode():
        return pack.demo_models()


@pytest.fixture
def no_cells(monkeypatch, tmp_path):
    """A bench that has measured nothing yet, so that a test can write cells of its own."""
    monkeypatch.setattr(cells, "CELLS", tmp_path)


def test_every_concept_is_drawn_by_its_own_lora(world, monkeypatch):
    """A floor that a damaged file falls through: a picture of each by the stock loaders."""
    monkeypatch.setattr(cells, "BATCH", 1)
    asks = [Ask((concept,), (concept,), (), "in fog", 0) for concept in CONCEPTS]
    found = [scores["identity"][0][0] for scores, _ in cells.measure_asks(world, ROWS["alone"], asks)]
    assert statistics.mean(found) > 0.8
    assert min(found) > 0.4


def test_a_published_cell_is_what_this_code_measures(world):
    """The first prompt of a cell, measured again."""
    row, column = "alone", "1"
    ask = COLUMNS[column].asks(columns.count_pictures(row, column))["own"][0]
    measured, _ = next(cells.measure_asks(world, ROWS[row], [ask]))
    published = (cells.read_cell(row, column) or {})["own"]
    assert published["prompt"][:BATCH] == measured["prompt"]
    assert published["identity"][:BATCH] == [pytest.approx(values, abs=0.05) for values in measured["identity"]]


def test_distillation_brings_pictures_nearer_to_those_of_each_lora_alone(world, monkeypatch):
    """Two concepts of one class, by the stock sampler and from noise that it has not seen."""
    monkeypatch.setattr(cells, "BATCH", 1)
    monkeypatch.setitem(cells.SAMPLING, "steps", 6)
    group = CONCEPTS[0], CONCEPTS[4]
    asks = [Ask(group, (concept,), (), "in fog", 1) for concept in group]

    def pictures(row: Method) -> torch.Tensor:
        prepare = row.prepare(world, group, **row.settings)
        return torch.cat([cells.sample(world, prepare(ask), ask.seed) for ask in asks])

    alone = pictures(ROWS["alone"])
    solved, distilled = (pictures(merge_row(capture_steps=5, distillation_steps=steps)) for steps in (0, 8))
    assert (distilled - alone).norm() < (solved - alone).norm()


def test_every_lora_was_trained_on_the_base_model_and_the_concept_that_are_shipped():
    found = {concept.name: demo_assets.stored_metadata(concept.name).get("origin") for concept in CONCEPTS}
    assert found == {concept.name: loras.origin(concept) for concept in CONCEPTS}


def test_a_lora_s_keys_and_values_and_the_rest_are_files_of_their_own():
    parts = [load_file(folder_paths.get_full_path("loras", part(CONCEPTS[0]))) for part in (keys_and_values, the_rest)]
    assert all(("attn2_to_k" in key) or ("attn2_to_v" in key) for key in parts[0])
    assert not parts[0].keys() & parts[1].keys()
    whole = load_file(folder_paths.get_full_path("loras", lora_name(CONCEPTS[0])))
    assert parts[0].keys() | parts[1].keys() == whole.keys()


def test_attention_of_class_words_lies_on_their_objects():
    """What CLoRA lives on, of the weights that are shipped; in the middle of the schedule."""
    unet = small_models.make_unet()
    unet.load_state_dict(demo_assets.stored("unet"))
    assert base.attention_ratio(unet, Text(torch.device("cpu")), 500) >= 3


def test_the_page_s_tables_are_those_of_the_cells():
    """After a measurement: `make bench-quality ARGS=show`."""
    text = report.PAGE.read_text("utf-8")
    assert text == report.replace_tables(text)
    assert report.format_tables() in text


def test_readme_s_table_is_the_summary_of_the_cells():
    """After a measurement: copy the summary of docs/quality.md into README."""
    assert "\n".join(report.format_summary()) in (ROOT / "README.md").read_text("utf-8")


def write_exact_cell() -> None:
    cell = {"row": "exact", "column": "2", "made_with": cells.fingerprint("exact", "2")}
    cells.write_cell(cell | {"own": {"identity": [[0.5]], "prompt": [0]}})


def assert_is_starred() -> None:
    assert not cells.is_current("exact", "2")
    assert "| exact | 0.50* |" in report.format_table("identity", ["exact"], ["2"])
    assert report.STAR in report.format_tables()


def test_a_cell_of_today_s_code_bears_no_star(no_cells):
    write_exact_cell()
    assert cells.is_current("exact", "2")
    assert "| exact | 0.50 |" in report.format_table("identity", ["exact"], ["2"])
    assert report.STAR not in report.format_tables()


def test_a_cell_is_older_than_its_code_when_its_row_s_settings_change(no_cells, monkeypatch):
    write_exact_cell()
    monkeypatch.setitem(ROWS, "exact", merge_row(ridge=0.5))
    assert_is_starred()


def test_a_cell_is_older_than_its_code_when_the_pictures_settings_change(no_cells, monkeypatch):
    write_exact_cell()
    monkeypatch.setitem(cells.SAMPLING, "steps", 3)
    assert_is_starred()


def test_a_cell_is_older_than_its_code_when_a_default_of_its_node_changes(no_cells, monkeypatch):
    write_exact_cell()
    defaults = pack.defaults("LoRACLR_Merge")
    monkeypatch.setattr(pack, "defaults", lambda _: defaults | {"ridge": 0.5})
    assert_is_starred()


def measured_rows(names, monkeypatch, tmp_path) -> list[str]:
    """Return the rows that are measured where nothing is there yet, nor FreeFuse."""
    rows: list[str] = []
    for module in (quality, rivals):
        monkeypatch.setattr(module, "FOLDER", tmp_path / "FreeFuse")
    monkeypatch.setattr(quality, "is_current", lambda *_: False)
    monkeypatch.setattr(quality, "measure_cell", lambda _, row, column: rows.append(row))
    monkeypatch.setattr(report, "draw_grid", lambda _: Image.new("RGB", (1, 1)))
    monkeypatch.setattr(report, "GRID", tmp_path / "grid.png")
    quality.measure(World(None, None, None), names)
    return rows


def test_rows_of_a_pack_that_is_not_there_are_left_out_and_said(monkeypatch, tmp_path, capsys):
    rows = measured_rows([], monkeypatch, tmp_path)
    assert "clora" in rows
    assert not set(rows) & set(rivals.RIVALS)
    assert "bench/quality/rivals.py says how to fetch it" in capsys.readouterr().err


def test_a_row_of_a_pack_that_is_not_there_says_how_to_fetch_it(monkeypatch, tmp_path):
    assert set(measured_rows(["freefuse"], monkeypatch, tmp_path)) == {"freefuse"}
    with pytest.raises(SystemExit, match="says how to fetch it"):
        rivals.freefuse(World(None, None, None), ())


def test_one_picture_by_itself_is_that_of_the_batch(world):
    """A row that is sampled one by one answers the same noise as all others."""
    ask = COLUMNS["2"].asks(16)["together"][0]
    with torch.inference_mode():
        conditioned = ROWS["stacked"].prepare(world, ask.group)(ask)
        batch = cells.sample(world, conditioned, ask.seed)
        alone = cells.sample_one(world, conditioned, ask.seed, 2)
    assert float((batch[2:3] - alone).abs().max()) < 1e-3


@pytest.mark.parametrize(("now", "stands"), [(0.504, True), (0.53, False)])
def test_an_older_cell_stands_only_where_its_first_prompt_scores_the_same(no_cells, monkeypatch, now, stands):
    row, column = "alone", "1"
    seed = COLUMNS[column].asks(64)["own"][0].seed
    own = {"identity": [[0.5]] * BATCH + [[0.9]], "prompt": [seed] * BATCH + [1]}
    cells.write_cell({"row": row, "column": column, "made_with": "older code", "own": own})
    measured = {"identity": [[now]] * BATCH, "prompt": [seed] * BATCH}
    monkeypatch.setattr(cells, "measure_asks", lambda *_: iter([(measured, None)]))
    cells.confirm_cell(World(None, None, None), row, column)
    assert cells.is_current(row, column) == stands
    assert (cells.read_cell(row, column) or {})["own"] == own


def test_comments_and_docstrings_do_not_age_a_cell():
    code = 'def f(x):\n    """What."""\n    return x  # why\n'
    assert cells.strip_documentation(code) == cells.strip_documentation("def f(x):\n    return x\n")
    assert cells.strip_documentation(code) != cells.strip_documentation("def f(x):\n    return 2 * x\n")


@pytest.mark.parametrize("row", [row for row in HEADLINE if HEADLINE[row].node])
def test_every_file_that_a_row_depends_on_is_there(row):
    """A folder that is renamed would otherwise drop out of the fingerprints unseen."""
    method = HEADLINE[row]
    own = "exact" if method.node == "LoRACLR_Merge" else "contrast"
    assert {own, "lowrank", "adapters"} <= {path.rsplit("/", 1)[-1].removesuffix(".py") for path in method.code}


def test_differences_are_paired_picture_by_picture(no_cells):
    for row, values in (("exact", [0.9, 0.1]), ("stacked", [0.8, 0.0])):
        cells.write_cell({"row": row, "column": "2", "own": {"identity": [[v] for v in values], "prompt": [0, 0]}})
    difference = comparisons.compare("exact", "stacked", "2", "identity")
    assert difference == pytest.approx((0.1, 0), abs=1e-6)


def test_no_label_of_the_grid_runs_into_the_next_column(no_cells):
    """Without a measured cell the grid is its labels alone: the gap before every column stays white."""
    grid = report.draw_grid(World(None, None, None)).convert("L")
    rows = [row for row in HEADLINE if "together" in HEADLINE[row].kinds]
    assert grid.getextrema() != (255, 255)
    for x in report.grid_columns(rows, [COLUMNS[column].title for column in columns.SAMPLER_COLUMNS]):
        assert grid.crop((x - report.GAP, 0, x, grid.height)).getextrema() == (255, 255)
