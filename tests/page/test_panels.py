"""The pack's panels on its nodes, what they remember, and the fold of advanced settings; in both renderers."""

import copy
import re

import host
import pytest
import workflows
from comfyui_version import __version__ as host_version
from playwright.sync_api import expect

CLORA, MERGE, CONCEPT = "LoRACLR_CLoRASampler", "LoRACLR_Merge", "LoRACLR_LoadConceptLoRA"
NODES2_FOLD = re.compile("(Show|Hide) advanced inputs")
EMPTY = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}

# As versions 0.1 and 0.2 saved them: by position, without the pack's own widgets.
SAVED_VALUES = {
    CLORA: [
        *("{a} and {b}", "blurry", 0.02, "absolute (paper)", 0.1, 0.6, "1, 2", 3, 0.7, 0.4, "erode", 2),
        *("one branch at a time", False, "average (paper)", "composed (paper)"),
    ],
    MERGE: [
        *("adamw (paper)", 0.7, "relative", 0.2, 0.3, "a {trigger}\nthe {trigger}", 4, 5, False),
        *("on disk", 6),
    ],
}
# Gives the concept a name, as the user does.
RENAME = "(node, to) => { const w = node.widgets.find(({ name }) => name === 'name'); w.value = to; w.callback(to); }"
FRAME = {
    "names": ["ball", "box"],
    "step": 3,
    "steps": 9,
    "picture": None,
    "losses": [],
    "masks": ["/wAA/w==", "AP//AA=="],
    "mask_size": [2, 2],
    "heat": ["/wAA/w==", "AP//AA=="],
    "heat_size": [2, 2],
}


def add(page, comfy_class: str) -> None:
    """A new node alone, as from the menu."""
    page.load(EMPTY)
    page.page.evaluate("type => { app.graph.add(LiteGraph.createNode(type)); }", comfy_class)
    page.center(comfy_class)


def zoom(page, comfy_class: str, scale: float) -> None:
    page.node(
        comfy_class,
        "(node, scale) => { app.canvas.ds.changeScale(scale); app.canvas.centerOnNode(node); app.canvas.setDirty(true, true); }",
        scale,
    )
    page.page.wait_for_timeout(500)


def toggle_advanced(page, comfy_class: str) -> None:
    if page.nodes2:
        number = page.node(comfy_class, "(node) => node.id")
        page.page.locator(f"[data-node-id='{number}']").get_by_text(NODES2_FOLD).click()
    else:
        page.page.mouse.click(*place_of(page, comfy_class, "advanced_settings"))


def place_of(page, comfy_class: str, name: str) -> list[float]:
    """The middle of a widget on the classic canvas."""
    return page.node(
        comfy_class,
        """(node, name) => {
            const { y } = node.widgets.find((widget) => widget.name === name);
            const { offset, scale } = app.canvas.ds, { left, top } = app.canvas.canvas.getBoundingClientRect();
            return [left + (node.pos[0] + node.size[0] / 2 + offset[0]) * scale,
                top + (node.pos[1] + y + 10 + offset[1]) * scale];
        }""",
        name,
    )


def hover(page, comfy_class: str, name: str) -> None:
    """Moves the mouse over a setting and waits for its tooltip."""
    if page.nodes2:
        label = page.node(
            comfy_class, "(node, name) => node.widgets.find((widget) => widget.name === name).label", name
        )
        place = page.page.get_by_test_id("node-widget").filter(has_text=label).first.bounding_box()
        x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    else:
        x, y = place_of(page, comfy_class, name)
    page.page.mouse.move(x - 5, y)
    page.page.mouse.move(x, y)


# Settings that are newer than the saved values, as they then stand.
ADDED = {CLORA: [0, "go on", 1], MERGE: ["", ""]}


def shown_settings(page, comfy_class: str) -> list[str]:
    """Names of the settings that take room on the node, in either renderer."""
    if page.nodes2:
        labels = page.node(comfy_class, "(node) => node.widgets.map((widget) => [widget.name, widget.label])")
        text = page.page.locator("[data-testid=node-widgets]").first.inner_text()
        return [name for name, label in labels if label and label in text.splitlines()]
    return page.node(
        comfy_class,
        "(node) => node.getLayoutWidgets().filter((widget) => widget.serialize !== false).map((widget) => widget.name)",
    )


def send_frame(page) -> None:
    node = page.node(CLORA, "(node) => node.id")
    frame = FRAME | {"node": node, "made_of": page.prompt()}
    page.page.evaluate("frame => app.api.dispatchCustomEvent('loraclr.clora', frame)", frame)


@pytest.mark.parametrize("comfy_class", SAVED_VALUES)
def test_values_saved_by_earlier_versions_come_back_and_are_saved_the_same(page, comfy_class):
    values = SAVED_VALUES[comfy_class]
    add(page, comfy_class)
    graph = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    graph["nodes"][0]["widgets_values"] = values
    page.load(graph)
    widgets = [
        *page.infos[comfy_class]["input_order"]["required"],
        *page.infos[comfy_class]["input_order"].get("optional", []),
    ]
    (asked,) = page.asked().values()
    expected = values + ADDED.get(comfy_class, [])
    assert [asked[name] for name in widgets if name in asked] == expected
    again = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    assert again["nodes"][0]["widgets_values"] == expected


def test_values_saved_before_later_inputs_leave_those_at_their_defaults(page):
    add(page, CLORA)
    graph = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")
    graph["nodes"][0]["widgets_values"] = SAVED_VALUES[CLORA][:13]
    page.load(graph)
    (asked,) = page.asked().values()
    assert asked["gradient_memory"] == "one branch at a time"
    assert (asked["live_view"], asked["mask_overlap"], asked["surroundings"]) == (True, "strongest", "plain")


def test_the_live_view_lies_below_the_prompts_and_says_what_will_be_there(page):
    page.make_room()
    add(page, CLORA)
    view = page.page.locator(".loraclr-view")
    expect(view).to_contain_text("While it samples, the picture grows here")
    page.shot("before_first_run", of=CLORA)
    fields = page.page.locator("[data-node-id] textarea" if page.nodes2 else "textarea.comfy-multiline-input")
    negative, panel = fields.nth(1).bounding_box(), view.bounding_box()
    assert 0 < panel["y"] - (negative["y"] + negative["height"]) < 40
    send_frame(page)
    expect(view.locator(".loraclr-promise")).to_be_hidden()
    expect(view.locator("canvas")).to_be_visible()
    page.shot("while_running", of=CLORA)


def test_a_cancelled_run_s_picture_says_so(page):
    page.load_demo(workflows.MAPS)
    send_frame(page)
    when = page.page.locator(".loraclr-when")
    expect(when).to_be_hidden()
    page.page.evaluate("() => app.api.dispatchCustomEvent('execution_interrupted', {})")
    expect(when).to_have_text("cancelled")
    page.page.evaluate("() => app.api.dispatchCustomEvent('execution_start', {})")
    expect(when).to_have_text("last run")
    send_frame(page)
    expect(when).to_be_hidden()


def test_the_live_view_is_drawn_at_any_zoom(page):
    page.load_demo(workflows.MAPS)
    send_frame(page)
    zoom(page, CLORA, 0.4)
    expect(page.page.locator(".loraclr-view canvas")).to_be_visible()
    if not page.nodes2:  # the canvas hides what else is made of elements
        expect(page.page.locator("textarea.comfy-multiline-input").first).to_be_hidden()
    page.shot("zoom_40")


def test_the_merge_s_prompt_offers_names_and_follows_a_new_one(page):
    page.load_demo(workflows.MERGE)
    page.center(MERGE)
    toggle_advanced(page, MERGE)
    label = "//label[normalize-space()='prompt']/..//textarea" if page.nodes2 else "textarea[placeholder=prompt]"
    field = page.page.locator(label).first
    field.click()
    field.press_sequentially("{b")
    popup = page.page.locator(".loraclr-popup")
    expect(popup.get_by_role("option")).to_have_text(["ball", "box"])
    field.press("Tab")
    expect(field).to_have_value("{ball}")
    field.fill("ball")
    expect(popup).to_contain_text("Names no concept.")
    field.fill("only {ball}")
    expect(popup).to_be_hidden()
    page.node(CONCEPT, RENAME, "sphere")
    expect(field).to_have_value("only {sphere}")


@pytest.mark.parametrize("comfy_class", [CLORA, MERGE])
def test_advanced_settings_are_folded_and_keep_their_values(page, comfy_class):
    page.make_room()
    add(page, comfy_class)
    info = page.infos[comfy_class]["input"]
    advanced = [
        name
        for part in info.values()
        for name, (_, *options) in part.items()
        if isinstance(options[0] if options else None, dict) and options[0].get("advanced")
    ]
    closed = shown_settings(page, comfy_class)
    assert not set(advanced) & set(closed)
    asked = page.asked()
    height = page.node(comfy_class, "(node) => node.size[1]")
    page.shot(f"fold_closed_{comfy_class}", of=comfy_class)
    toggle_advanced(page, comfy_class)
    page.page.wait_for_timeout(300)
    assert set(advanced) < set(shown_settings(page, comfy_class))
    page.center(comfy_class)
    page.shot(f"fold_open_{comfy_class}", of=comfy_class)
    assert page.asked() == asked
    toggle_advanced(page, comfy_class)
    page.page.wait_for_timeout(300)
    assert shown_settings(page, comfy_class) == closed
    if not page.nodes2:
        assert page.node(comfy_class, "(node) => node.size[1]") == height
    assert page.page.get_by_text(NODES2_FOLD).count() == int(page.nodes2)  # one fold, not two


def test_the_fold_tells_changed_settings_and_shows_linked_ones(page):
    add(page, CLORA)
    label = "(node) => node.widgets.find((widget) => widget.name === 'advanced_settings').label"
    assert page.node(CLORA, label) == "▸ Advanced"
    page.node(
        CLORA, "(node) => { for (const w of node.widgets) if (w.name.startsWith('mask_')) w.value = w.name + '!'; }"
    )
    assert page.node(CLORA, label) == "▸ Advanced · 3 changed"
    page.node(
        CLORA,
        """(node) => {
            const number = LiteGraph.createNode('PrimitiveFloat');
            app.graph.add(number);
            number.connect(0, node, node.inputs.findIndex((input) => input.name === 'mask_threshold'));
        }""",
    )
    assert page.node(CLORA, label) == "▸ Advanced · 2 changed"
    if not page.nodes2 or host_version == host.DEFAULT_VERSION:  # earlier Nodes 2.0 folds linked ones, too
        assert "mask_threshold" in shown_settings(page, CLORA)


def test_settings_without_effect_look_so_and_say_why(page):
    page.make_room()
    add(page, CLORA)
    toggle_advanced(page, CLORA)
    idle = "(node) => node.widgets.filter((widget) => widget.disabled).map((widget) => widget.name)"
    tooltip = "(node) => node.widgets.find((widget) => widget.name === 'update_end').tooltip"
    assert "update_end" in page.node(CLORA, idle)
    assert page.node(CLORA, tooltip) == "No effect while “update strength” is 0."
    page.center(CLORA)
    hover(page, CLORA, "update_end")
    expect(page.page.get_by_text("No effect while “update strength” is 0.").first).to_be_visible()
    page.shot("without_effect", of=CLORA)
    page.node(
        CLORA,
        "(node) => { const w = node.widgets.find((w) => w.name === 'update_strength'); w.value = 0.02; w.callback(0.02); }",
    )
    assert page.node(CLORA, idle) == ["refine_steps"]
    assert page.node(CLORA, tooltip) is None


def test_the_live_view_of_the_last_run_comes_back_only_to_what_it_was_made_of(page):
    workflow = page.load_demo(workflows.MAPS)
    page.take_few_steps()
    page.run()
    page.center(CLORA)
    view, when = page.page.locator(".loraclr-view"), page.page.locator(".loraclr-when")
    expect(view.locator(".loraclr-chip")).to_have_text(["ball", "box"])
    expect(when).to_be_hidden()
    saved = page.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    page.load(saved)
    page.center(CLORA)
    expect(when).to_have_text("last run")
    expect(view.locator(".loraclr-chip")).to_have_text(["ball", "box"])
    page.shot("last_run")

    other = copy.deepcopy(saved)
    concept = next(node for node in other["nodes"] if node["type"] == CONCEPT)
    concept["widgets_values"][0] = workflows.DEMO.subjects[-1].file
    assert concept["widgets_values"][0] != workflow["nodes"][0].get("widgets_values", [""])[0]
    page.load(other)
    page.center(CLORA)
    expect(view.locator(".loraclr-promise")).to_be_visible()

    page.load(saved)
    expect(when).to_have_text("last run")
    page.page.evaluate("() => app.graph.nodes.find((n) => n.comfyClass === 'KSampler').widgets[0].value = 7")
    page.run()
    expect(when).to_be_hidden()


def test_frames_of_another_workflow_s_run_are_not_shown(page):
    page.page.evaluate("() => sessionStorage.clear()")
    page.load_demo(workflows.MAPS)
    node = page.node(CLORA, "(node) => node.id")
    made_of = page.prompt()
    elsewhere = FRAME | {"node": node, "made_of": made_of, "workflow": "another"}
    page.page.evaluate("frame => app.api.dispatchCustomEvent('loraclr.clora', frame)", elsewhere)
    for each in made_of.values():
        if each["class_type"] == CONCEPT:
            each["inputs"]["lora_name"] = "another.safetensors"
    page.page.evaluate(
        "frame => app.api.dispatchCustomEvent('loraclr.clora', frame)", FRAME | {"node": node, "made_of": made_of}
    )
    assert page.page.locator(".loraclr-chip").count() == 0
    send_frame(page)
    expect(page.page.locator(".loraclr-chip")).to_have_count(2)


def test_a_reload_keeps_the_merge_s_report(page):
    page.make_room()
    page.load_demo(workflows.MERGE)
    page.take_few_steps()
    page.run()
    page.center(MERGE)
    report, when = page.page.locator(".loraclr-report"), page.page.locator(".loraclr-when")
    expect(report.locator("table").first).to_be_visible()
    expect(when).to_be_hidden()
    page.shot("merge_report", of=MERGE)
    page.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    page.page.reload()
    page.page.wait_for_function("window.app?.graph?.nodes?.length > 3")
    page.center(MERGE)
    expect(when).to_have_text("last run")
    expect(report.locator("table").first).to_be_visible()
    page.shot("merge_report_last_run", of=MERGE)


def test_a_cancelled_merge_says_so(page):
    page.make_room()
    page.load_demo(workflows.MERGE)
    page.page.evaluate(
        """() => {
            const set = (name, value) => app.graph.nodes.flatMap((node) => node.widgets ?? [])
                .filter((widget) => widget.name === name).forEach((widget) => { widget.value = value; });
            set('capture_steps', 1000);
            set('capture_seed', 7);
            app.api.addEventListener('progress_text', () => app.api.interrupt(null), { once: true });
            window.ended = false;
            app.api.addEventListener('execution_interrupted', () => { window.ended = true; }, { once: true });
        }"""
    )
    page.page.get_by_test_id("queue-button").click()
    page.wait_for_end()
    page.center(MERGE)
    expect(page.page.get_by_text("Cancelled: nothing was merged.").first).to_be_visible()
    page.shot("merge_cancelled", of=MERGE)
