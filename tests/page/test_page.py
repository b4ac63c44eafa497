"""What users see and do in the page, in both renderers."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import workflows
from graph import api_format
from PIL import Image
from playwright.sync_api import expect

SHOTS = Path(__file__).resolve().parents[2] / ".host" / "screenshots"
CLORA, MERGE, CONCEPT = "LoRACLR_CLoRASampler", "LoRACLR_Merge", "LoRACLR_LoadConceptLoRA"


def canvas_pixels(page) -> np.ndarray:
    """What the live view's canvas shows."""
    data = page.page.evaluate("() => document.querySelector('.loraclr-view canvas').toDataURL().split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def prompt_field(page):
    """The prompt's text field of the CLoRA node, in either renderer."""
    if page.nodes2:
        return page.page.locator("[data-node-id] textarea").first
    return page.page.locator("textarea[placeholder=prompt]").first


def test_live_view_shows_the_concepts_apart(page, infos):
    page.load_demo("clora_two_concepts", infos)
    outputs = page.run()
    page.center(CLORA)
    view = page.page.locator(".loraclr-view")
    expect(view).to_be_visible()
    expect(view.locator(".loraclr-chip")).to_have_text(["ball", "box"])
    steps = workflows.DEMO.steps
    expect(view.locator(".loraclr-step")).to_have_text(f"{steps} / {steps}")
    assert len(view.locator("polyline").get_attribute("points").split()) == steps
    masks = canvas_pixels(page)
    view.locator(".loraclr-mode").click()
    expect(view.locator(".loraclr-mode")).to_have_text("attention")
    attention = canvas_pixels(page)
    view.locator(".loraclr-mode").click()
    plain = canvas_pixels(page)
    assert np.abs(masks - plain).mean() > 3
    assert np.abs(attention - plain).mean() > 3
    view.locator(".loraclr-mode").click()
    view.locator(".loraclr-chip").first.click()
    assert np.abs(canvas_pixels(page) - masks).mean() > 1
    view.locator(".loraclr-chip").first.click()
    page.shot(SHOTS, "live_view")
    assert any("images" in output for output in outputs.values())

    page.page.reload()
    page.page.wait_for_function("window.app?.graph?.nodes?.length > 3")
    page.center(CLORA)
    expect(page.page.locator(".loraclr-view .loraclr-chip")).to_have_text(["ball", "box"])


def test_live_view_can_be_switched_off(page, infos):
    page.load_demo("clora_two_concepts", infos)
    page.node(CLORA, "(node) => { node.widgets.find((w) => w.name === 'live_view').value = false; }")
    page.run()
    assert page.page.locator(".loraclr-chip").count() == 0


def test_merge_report_has_a_bar_for_every_error(page, infos):
    page.load_demo("loraclr_merge", infos)
    page.run()
    page.center(MERGE)
    report = page.page.locator(".loraclr-report")
    expect(report).to_be_visible()
    rows = report.locator("table").first.locator("tr")
    assert rows.count() == 1 + len(workflows.DEMO.subjects)
    for number, subject in enumerate(workflows.DEMO.subjects, 1):
        expect(rows.nth(number).locator("td").first).to_have_text(subject.name)
        plain, _, merged = (
            float(bar.evaluate("bar => bar.style.width.replace('%', '')"))
            for bar in rows.nth(number).locator(".loraclr-bar").all()
        )
        assert plain == 100
        assert merged < 50
    report.get_by_role("button").click()
    copied = page.page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith("# LoRACLR merge")
    page.shot(SHOTS, "merge_report")


def test_a_brace_offers_the_concepts(page, infos):
    page.load_demo("clora_two_concepts", infos)
    page.center(CLORA)
    field = prompt_field(page)
    field.click()
    field.fill("")
    field.press_sequentially("a photo of a {b")
    popup = page.page.locator(".loraclr-popup")
    expect(popup.get_by_role("option")).to_have_text(["ball", "box"])
    page.shot(SHOTS, "prompt_help")
    field.press("ArrowDown")
    field.press("Enter")
    expect(field).to_have_value("a photo of a {box}")
    field.press_sequentially(" and a {bal")
    field.press("Tab")
    expect(field).to_have_value("a photo of a {box} and a {ball}")
    assert page.node(CLORA, "(node) => node.widgets[0].value") == "a photo of a {box} and a {ball}"
    assert "loraclr-wrong" not in field.get_attribute("class")


def test_an_unknown_name_is_marked_at_once(page, infos):
    page.load_demo("clora_two_concepts", infos)
    page.center(CLORA)
    field = prompt_field(page)
    field.click()
    field.fill("a {ball} and a {bxo}")
    expect(page.page.locator(".loraclr-popup")).to_contain_text("No concept is called {bxo}. There are: {ball}, {box}.")
    assert "loraclr-wrong" in field.get_attribute("class")
    page.shot(SHOTS, "unknown_name")


def test_choosing_a_file_fills_in_its_words(page, infos):
    page.load({"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0})
    page.page.evaluate("type => app.graph.add(LiteGraph.createNode(type))", CONCEPT)
    choose = "(node, file) => { const w = node.widgets[0]; w.value = file; return w.callback(file); }"
    values = "(node) => node.widgets.slice(1, 3).map((widget) => widget.value)"
    page.node(CONCEPT, choose, "loraclr_demo_ball.safetensors")
    assert page.node(CONCEPT, values) == ["sks ball", "ball"]
    page.node(CONCEPT, choose, "loraclr_demo_kite.safetensors")
    assert page.node(CONCEPT, values) == ["qvk kite", "kite"]
    page.node(CONCEPT, "(node) => { node.widgets[1].value = 'my own'; }")
    page.node(CONCEPT, choose, "loraclr_demo_ball.safetensors")
    assert page.node(CONCEPT, values) == ["my own", "ball"]


@pytest.mark.parametrize("name", workflows.WORKFLOWS)
def test_saving_and_loading_changes_nothing(page, infos, name):
    page.load_demo(name, infos)
    serialized = "() => JSON.parse(JSON.stringify(app.graph.serialize()))"
    first = page.page.evaluate(serialized)
    page.load(first)
    again = page.page.evaluate(serialized)
    for before, after in zip(first["nodes"], again["nodes"], strict=True):
        for part in ("type", "widgets_values", "inputs", "outputs", "title"):
            assert before.get(part) == after.get(part)
    assert first["links"] == again["links"]


@pytest.mark.parametrize("name", workflows.WORKFLOWS)
def test_the_page_asks_the_server_for_what_the_workflow_says(page, infos, name):
    """Widget values and links come through, `{ball}` in a prompt among them."""
    page.load_demo(name, infos)
    asked = page.page.evaluate("async () => (await app.graphToPrompt()).output")
    expected = api_format(workflows.described(name, infos, workflows.DEMO))
    assert {node: each["inputs"] for node, each in asked.items()} == {
        node: each["inputs"] for node, each in expected.items()
    }


def test_undo_copy_and_paste(page, infos):
    page.load_demo("clora_two_concepts", infos)
    page.center(CLORA)
    count = "() => app.graph.nodes.filter((node) => node.comfyClass === 'LoRACLR_CLoRASampler').length"
    page.node(CLORA, "(node) => app.canvas.selectNode(node)")
    page.page.evaluate("() => { app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }")
    assert page.page.evaluate(count) == 2
    values = page.page.evaluate(
        "() => app.graph.nodes.filter((n) => n.comfyClass === 'LoRACLR_CLoRASampler').map((n) => n.widgets.map((w) => w.value))"
    )
    assert values[0] == values[1]
    page.page.evaluate(
        "() => app.graph.remove(app.graph.nodes.findLast((n) => n.comfyClass === 'LoRACLR_CLoRASampler'))"
    )
    assert page.page.evaluate(count) == 1


def test_a_phone_sized_window_works(open_page, infos):
    page = open_page(True, width=390, height=844)
    page.load_demo("clora_two_concepts", infos)
    page.center(CLORA)
    expect(page.page.locator("[data-node-id] textarea").first).to_be_visible()
    page.shot(SHOTS, "phone")


def test_templates_open_from_the_browser_and_by_dropping_files(page):
    names = json.dumps([*workflows.WORKFLOWS])
    listed = page.page.evaluate("async () => (await (await app.api.fetchApi('/workflow_templates')).json())")
    assert set(json.loads(names)) <= {name for each in listed.values() for name in each}
