"""How templates look as they open, in both renderers: large enough to read, nothing on top of another."""

import itertools
from collections.abc import Iterable

import pytest
import workflows
from layout import LARGE, READABLE, SMALL

Rect = tuple[float, float, float, float]  # left, top, width, height
WINDOWS = {name: LARGE if name == workflows.COMPARE else SMALL for name in workflows.WORKFLOWS}
ROUNDING = 1.0

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


def assert_tidy(page) -> None:
    """No two nodes or groups overlap, and a node is in a group or outside of all."""
    found = drawn(page)
    assert overlaps(found["nodes"]) == []
    assert overlaps(found["groups"]) == []
    assert [
        f"{name} sticks out of {title}"
        for name, node in found["nodes"]
        for title, group in found["groups"]
        if meet(node, group) and not inside(node, group)
    ] == []


@pytest.mark.parametrize("name", workflows.WORKFLOWS)
def test_a_template_opens_readable_and_tidy(page, name):
    """From the template browser, without the files it names, and from its own file."""
    width, height = WINDOWS[name]
    page.page.set_viewport_size({"width": width, "height": height})
    page.browse_templates()
    page.page.get_by_test_id(f"template-workflow-{name}").click()
    page.wait_for_nodes(workflows.REAL, name)
    page.page.get_by_test_id("error-overlay-see-errors").wait_for()  # the files are marked as missing
    assert_tidy(page)
    page.shot(f"opened_{name}")
    assert drawn(page)["scale"] >= READABLE
    page.load({"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0})
    page.drop(workflows.FOLDER / f"{name}.json")
    page.wait_for_nodes(workflows.REAL, name)
    assert drawn(page)["scale"] >= READABLE


@pytest.mark.parametrize("name", [workflows.TWO, workflows.MERGE])
def test_it_is_tidy_after_a_run(page, name):
    """With what the run shows in and under the nodes."""
    page.load_demo(name)
    page.take_few_steps()
    page.run()
    assert_tidy(page)
    page.shot(f"ran_{name}")
