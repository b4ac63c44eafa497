"""What is shown of the cells: the tables of docs/quality.md, the grid of pictures, and the numbers of RESULT."""

import json
import math

from pack import World
from PIL import Image, ImageDraw
from shapes.world import SIDE

from .cells import is_current, measure_asks, picture_path, read_cell, save_picture
from .columns import COLUMNS, SAMPLER_COLUMNS, columns_of, count_pictures
from .comparisons import SCORES, average, compare
from .methods import HEADLINE, ROOT, VARIANTS
from .rows import COMPARED, ROWS

PAGE = ROOT / "docs" / "quality.md"
GRID = ROOT / "bench" / "shapes" / "grid.png"
HEADER, GAP = 20, 4  # pixels of the grid's line of titles, and between its pictures
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"  # around the tables

STAR = (
    "\\* The code has changed since, and the first prompts were not measured again with the same scores"
    " (`make bench-quality ARGS=confirm`)."
)

# README's table: what a user would call the methods -> the row.
SUMMARY = {
    "stacking LoRAs": "stacked",
    "merge (*exact*)": "exact",
    "merge, distilled": "distilled",
    "sampler": "clora",
    "LoRA hooks, masks by hand": "masked-hooks",
}
SUMMARY_COLUMNS = ("2", "3", "4")


def format_mean(row: str, column: str, score: str) -> str:
    """Return a cell's mean score, with * if the cell is older than its code; empty where it is not measured."""
    mean = average(row, column, score)
    return "" if mean is None else f"{mean:.2f}{'' if is_current(row, column) else '*'}"


def format_summary() -> list[str]:
    """Return README's table: identity and pictures that are all right, for two, three and four concepts."""
    titles = [COLUMNS[column].title for column in SUMMARY_COLUMNS]
    heads = [*(f"identity, {title}" for title in titles), *(f"all right, {title}" for title in titles)]
    lines = [f"| method | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for title, row in SUMMARY.items():
        means = [format_mean(row, column, score) for score in ("identity", "both") for column in SUMMARY_COLUMNS]
        lines.append(f"| {title} | {' | '.join(mean or '–' for mean in means)} |")
    return lines


def format_table(score: str, rows: list[str], columns: list[str]) -> list[str]:
    """Return the means of one score, without the rows and columns in which nothing is measured."""
    means = {(row, column): format_mean(row, column, score) for row in rows for column in columns}
    rows = [row for row in rows if any(means[row, column] for column in columns)]
    columns = [column for column in columns if any(means[row, column] for row in rows)]
    lines = [f"| method | {' | '.join(COLUMNS[column].title for column in columns)} |"]
    lines += [f"| --- |{' --- |' * len(columns)}"]
    lines += [f"| {row} | {' | '.join(means[row, column] for column in columns)} |" for row in rows]
    return [f"**{SCORES[score].title}**", "", *lines, ""]


def format_settings() -> list[str]:
    """Return what each setting changes beside its method's defaults, picture by picture."""
    heads = ("setting", "measured with", "identity", "every concept right", "likeness to the base")
    lines = ["**Settings: difference from the defaults, ± 95 %**", ""]
    lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for row in VARIANTS:
        reference = "clora" if row.startswith("clora") else "exact"
        for column in columns_of(row):
            differences = [compare(row, reference, column, score) for score in ("identity", "both", "kept")]
            shown = ["" if difference is None else str(difference) for difference in differences]
            if any(shown):
                mark = "" if is_current(row, column) else "*"
                lines.append(f"| {row}{mark} | {COLUMNS[column].title} | {' | '.join(shown)} |")
    return lines


def format_tables() -> str:
    """Return all tables in Markdown, with what * means where one stands."""
    lines = ["**Summary**", "", *format_summary(), ""]
    for score in SCORES:
        lines += format_table(score, list(COMPARED), list(COLUMNS))
    lines += format_settings()
    if any(is_older(row, column) for row in ROWS for column in columns_of(row)):
        lines += ["", STAR]
    return "\n".join(lines)


def is_older(row: str, column: str) -> bool:
    """Return whether a cell is there and older than its code."""
    return read_cell(row, column) is not None and not is_current(row, column)


def build_result() -> dict:
    """Return every mean, and every difference from the headline methods, of the cells there are."""
    result: dict = {}
    for row in ROWS:
        for column in columns_of(row):
            means = {score: average(row, column, score) for score in SCORES}
            entry: dict = {score: round(mean, 4) for score, mean in means.items() if mean is not None}
            if entry:
                entry["seeds"] = count_pictures(row, column)
                for reference in ("alone", "exact", "distilled", "clora"):
                    for score in SCORES:
                        if reference != row and (difference := compare(row, reference, column, score)):
                            entry[f"{score}_minus_{reference}"] = [round(value, 4) for value in difference]
                result.setdefault(row, {})[column] = entry
    return {"quality": result}


def draw_grid(world: World) -> Image.Image:
    """Draw every method's picture of the same prompt and seed, column by column."""
    rows = [row for row in HEADLINE if "together" in HEADLINE[row].kinds]
    titles = [COLUMNS[column].title for column in SAMPLER_COLUMNS]
    *starts, end = grid_columns(rows, titles)
    canvas = Image.new("RGB", (end, HEADER + len(rows) * (SIDE + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for x, title in zip(starts, titles, strict=True):
        draw.text((x, GAP), title, "black")
    for number, row in enumerate(rows):
        y = HEADER + number * (SIDE + GAP)
        draw.text((GAP, y + SIDE // 2), row, "black")
        for x, column in zip(starts, SAMPLER_COLUMNS, strict=True):
            if read_cell(row, column) is not None:
                canvas.paste(find_picture(world, row, column), (x, y))
    return canvas


def grid_columns(rows: list[str], titles: list[str]) -> list[int]:
    """Return where each column of pictures begins, and where the last one ends, with room for every label."""
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength
    left = GAP + math.ceil(max(map(measure, rows))) + 2 * GAP
    width = max(SIDE, math.ceil(max(map(measure, titles)))) + GAP
    return [left + number * width for number in range(len(titles) + 1)]


def find_picture(world: World, row: str, column: str) -> Image.Image:
    """Return a measured cell's first picture of several concepts, sampled again where it is missing."""
    path = picture_path(row, column)
    if not path.exists():
        asks = COLUMNS[column].asks(count_pictures(row, column))["together"][:1]
        _, pictures = next(measure_asks(world, ROWS[row], asks))
        save_picture(row, column, pictures[0])
    return Image.open(path)


def replace_tables(text: str) -> str:
    """Return the page's text with the tables between its marks written anew."""
    return replace_between(text, BEGIN, END, format_tables())


def replace_between(text: str, begin: str, end: str, tables: str) -> str:
    """Return a text with what stands between two marks replaced."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def show() -> None:
    """Write the tables into docs/quality.md and print them with RESULT."""
    PAGE.write_text(replace_tables(PAGE.read_text("utf-8")), "utf-8")
    print(format_tables())
    print("RESULT", json.dumps(build_result()))
