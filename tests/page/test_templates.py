"""The templates in both renderers: they open large enough to read, with nothing on top of another, and run."""

import itertools
from collections.abc import Iterable

import further
import host
import numpy as np
import pytest
import workflows
from comfyui_version import __version__ as host_version
from graph import api_format
from layout import LARGE, READABLE, SMALL
from PIL import Image
from playwright.sync_api import expect

EMPTY = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}
Rect = tuple[float, float, float, float]  # left, top, width, height
WIDE = (workflows.COMPARE, workflows.TRAIN, workflows.TRAIN_TWO, further.POSED, further.TAUGHT)
WIDE += tuple(further.POSED_ON.values())
SHIPPED = [*workflows.WORKFLOWS, *workflows.FURTHER]
WINDOWS = {name: LARGE if name in WIDE else SMALL for name in SHIPPED}
ROUNDING = 1.0
# Nodes whose help pages have their pictures from here.
SHOWN = {workflows.AREAS: ["LoRACLR_ConceptArea"], workflows.TRAIN: ["LoRACLR_TrainConcept"]}

# Where nodes, with their titles and errors, and groups are drawn, in the graph's own coordinates.
DRAWN = """() => {
    const { scale, offset } = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
    const drawn = (node) => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`);
        if (!element) return [...node.boundingRect];
        const { left, top, width, height } = element.getBoundingClientRect();
        return [(left - canvas.left) / scale - offset[0], (top - canvas.top) / scale - offset[1], width / scale, height / scale];
    };
    return { scale, nodes: app.graph.nodes.map((node) => [`${node.title} ${node.id}`, drawn(node)]),
        groups: app.graph.groups.map((group) => [group.title, [...group.boundingRect]]) };
}"""


def drawn(page) -> dict:
    """Where everything is, once it has stopped to move."""
    last, now = None, page.page.evaluate(DRAWN)
    while now != last:
        page.page.wait_for_timeout(300)
        last, now = now, page.page.evaluate(DRAWN)
    return now


def overlaps(parts: Iterable[tuple[str, Rect]]) -> list[str]:
    return [f"{name} and {other}" for (name, one), (other, two) in itertools.combinations(parts, 2) if meet(one, two)]


def meet(one: Rect, two: Rect) -> bool:
    return all(one[i] + ROUNDING < two[i] + two[i + 2] and two[i] + ROUNDING < one[i] + one[i + 2] for i in (0, 1))


def inside(node: Rect, group: Rect) -> bool:
    return all(
        group[i] <= node[i] + ROUNDING and node[i] + node[i + 2] <= group[i] + group[i + 2] + ROUNDING for i in (0, 1)
    )


def untidy(page) -> list[str]:
    found = drawn(page)
    return [
        *overlaps(found["nodes"]),
        *overlaps(found["groups"]),
        *(
            f"{name} sticks out of {title}"
            for name, node in found["nodes"]
            for title, group in found["groups"]
            if meet(node, group) and not inside(node, group)
        ),
    ]


def assert_tidy(page) -> None:
    """No two nodes or groups overlap, and a node is in a group or outside of all, once the page is done with its layout."""
    for _ in range(10):
        if not untidy(page):
            return
        page.page.wait_for_timeout(1000)
    assert untidy(page) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_template_opens_readable_and_tidy(page, name):
    """From the template browser, without the files it names, and from its own file."""
    width, height = WINDOWS[name]
    page.page.set_viewport_size({"width": width, "height": height})
    page.load(EMPTY)  # in Nodes 2.0, every node of the pack says its name, as the template browser does
    page.browse_templates()
    page.open_template(name)
    page.page.get_by_test_id("error-overlay-see-errors").wait_for()  # the files are marked as missing
    assert_tidy(page)
    page.shot(f"opened_{name}")
    assert drawn(page)["scale"] >= READABLE
    page.load(EMPTY)
    page.drop(workflows.FOLDER / f"{name}.json")
    page.wait_for_nodes(workflows.REAL, name)
    assert drawn(page)["scale"] >= READABLE


@pytest.mark.parametrize("name", workflows.WORKFLOWS)
def test_a_template_runs_stays_tidy_and_opens_again_from_its_picture(page, name):
    workflow = page.load_demo(name)
    if not page.whole:
        page.take_few_steps()
    asked = page.asked()
    outputs = page.run()
    if (
        not page.nodes2 or host_version == host.DEFAULT_VERSION
    ):  # earlier Nodes 2.0 put a run's words over the next node
        assert_tidy(page)  # with what the run shows in and under the nodes
    titles = {str(node["id"]): node.get("title", "") for node in workflow["nodes"]}
    saved = {
        f"{titles[node]} {number}": page.server.output / image["subfolder"] / image["filename"]
        for node, output in outputs.items()
        for number, image in enumerate(output.get("images", []), 1)
        if image["type"] == "output"
    }
    for title, path in saved.items():
        picture = Image.open(path).convert("RGB")
        assert np.asarray(picture).std() > 5 or not title.startswith("Picture")
        page.keep(picture, f"template_{name}_{title}")

    page.shots(*SHOWN.get(name, ()))
    page.load(EMPTY)
    page.drop(next(path for title, path in saved.items() if title.startswith("Picture")))
    page.wait_for_nodes(workflows.DEMO, name)
    assert page.asked() == asked


@pytest.mark.own_page
def test_every_template_opens_from_the_browser_and_says_what_is_missing(page):
    """Its thumbnail is there, and so are the names of the files a user has to put or choose."""
    page.browse_templates()
    for name in SHIPPED:
        card = page.template(name)
        card.scroll_into_view_if_needed()
        picture = card.locator("img").first
        width = Image.open(workflows.FOLDER / f"{name}.jpg").width
        page.page.wait_for_function(
            "([image, width]) => image.complete && image.naturalWidth === width", arg=[picture.element_handle(), width]
        )
    page.shot("templates")
    page.open_template(workflows.TWO)
    page.page.get_by_test_id("error-overlay-see-errors").click()
    for name in (workflows.REAL.checkpoint, *(subject.file for subject in workflows.REAL.subjects)):
        expect(page.page.get_by_text(name.removesuffix(".safetensors")).first).to_be_visible()
    page.shot("missing_models")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_page_asks_the_server_for_what_the_workflow_says(page, name):
    """Widget values and links come through, `{ball}` in a prompt among them."""
    page.load_demo(name)
    expected = api_format(workflows.described(name, page.infos, workflows.DEMO))
    assert page.asked() == {node: each["inputs"] for node, each in expected.items()}


@pytest.mark.parametrize("name", SHIPPED)
def test_saving_and_loading_changes_nothing(page, name):
    page.load_demo(name)
    serialized = "() => JSON.parse(JSON.stringify(app.graph.serialize()))"
    first = page.page.evaluate(serialized)
    page.load(first)
    again = page.page.evaluate(serialized)
    for before, after in zip(first["nodes"], again["nodes"], strict=True):
        # Front ends before the default host's forget a switch of this node of the host's own.
        forgets = before["type"] == "PreviewAny" and host_version != host.DEFAULT_VERSION
        for part in ("type", "inputs", "outputs", "title", *(() if forgets else ("widgets_values",))):
            assert before.get(part) == after.get(part)
    assert first["links"] == again["links"]
