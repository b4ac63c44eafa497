"""What users see and do in the page, in both renderers."""

import base64
import io
import shutil

import numpy as np
import pytest
import workflows
from PIL import Image
from playwright.sync_api import expect

CLORA, MERGE, CONCEPT = "LoRACLR_CLoRASampler", "LoRACLR_Merge", "LoRACLR_LoadConceptLoRA"
MAPS, SAVE, AREA = "LoRACLR_CLoRAMaps", "LoRACLR_SaveMergedLoRA", "LoRACLR_ConceptArea"
EMPTY = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}


# Choose a file on Load Concept LoRA, as the user does; and the trigger and class word that it shows.
CHOOSE = "(node, file) => { const w = node.widgets[0]; w.value = file; return w.callback(file); }"
WORDS = "(node) => node.widgets.slice(1, 3).map((widget) => widget.value)"


def add_concept(page) -> None:
    """A Load Concept LoRA alone."""
    page.load(EMPTY)
    page.page.evaluate("type => { app.graph.add(LiteGraph.createNode(type)); }", CONCEPT)


def canvas_pixels(page) -> np.ndarray:
    """What the live view's canvas shows."""
    data = page.page.evaluate("() => document.querySelector('.loraclr-view canvas').toDataURL().split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def prompt_field(page):
    """The prompt's text field of the CLoRA node, in either renderer."""
    if page.nodes2:
        return page.page.locator("[data-node-id] textarea").first
    return page.page.locator("textarea[placeholder=prompt]").first


# Keeps every text that the live view's step counter shows.
WATCH_STEPS = """() => {
    window.shownSteps = [];
    const note = () => {
        const text = document.querySelector(".loraclr-step")?.textContent;
        if (text && text !== window.shownSteps.at(-1)) window.shownSteps.push(text);
    };
    new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def test_live_view_shows_the_concepts_apart(page):
    page.make_room()
    page.load_demo(workflows.MAPS)
    steps = workflows.DEMO.steps if page.whole else page.take_few_steps()
    page.page.evaluate(WATCH_STEPS)
    outputs = page.run()
    shown = page.page.evaluate("window.shownSteps")
    assert f"plain picture {steps} / {steps}" in shown
    assert shown[-1] == f"{steps} / {steps}"
    page.center(CLORA)
    view = page.page.locator(".loraclr-view")
    expect(view).to_be_visible()
    expect(view.locator(".loraclr-chip")).to_have_text(["ball", "box"])
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
    page.shots(CLORA, CONCEPT, MAPS)
    assert any("images" in output for output in outputs.values())

    page.page.reload()
    page.page.wait_for_function("window.app?.graph?.nodes?.length > 3")
    page.center(CLORA)
    expect(page.page.locator(".loraclr-view .loraclr-chip")).to_have_text(["ball", "box"])


FRAME = {"names": ["ball", "box"], "steps": 9, "picture": None, "losses": []}
MASKS = {"masks": ["/wAA/w==", "AP//AA=="], "mask_size": [2, 2], "heat": ["/wAA/w==", "AP//AA=="], "heat_size": [2, 2]}


def test_frames_that_lack_something_do_not_stop_later_ones(page):
    """Of a model without quick previews, of a run gone wrong, of a node that is gone."""
    page.load_demo(workflows.TWO)
    page.center(CLORA)
    node = page.node(CLORA, "(node) => node.id")
    step = page.page.locator(".loraclr-step")
    source = {"node": node, "made_of": page.prompt()}

    def receive(**frame):
        page.page.evaluate("frame => app.api.dispatchCustomEvent('loraclr.clora', frame)", FRAME | source | frame)

    receive(step=1)
    expect(step).to_have_text("plain picture 1 / 9")
    receive(step=2, **MASKS)
    expect(step).to_have_text("2 / 9")
    assert canvas_pixels(page).shape == (16, 16, 3)
    assert canvas_pixels(page).std() > 0
    receive(step=3, node="999:7", **MASKS)
    receive(step=4, picture="data:image/jpeg;base64,AAAA", losses=[None, 0.5, None, 0.25], **MASKS)
    expect(step).to_have_text("4 / 9")
    assert page.page.locator(".loraclr-view polyline").get_attribute("points").count(",") == 2
    receive(step=5, losses=[None], **MASKS)
    expect(step).to_have_text("5 / 9")


def test_a_brace_in_the_negative_is_marked_at_once(page):
    page.load_demo(workflows.TWO)
    page.center(CLORA)
    boxes = "[data-node-id] textarea" if page.nodes2 else "textarea[placeholder=negative]"
    field = page.page.locator(boxes).nth(1 if page.nodes2 else 0)
    field.click()
    field.fill("a {ball}")
    expect(page.page.locator(".loraclr-popup")).to_contain_text("The negative prompt cannot name {ball}")
    assert "loraclr-wrong" in field.get_attribute("class")


@pytest.mark.own_page
def test_live_view_can_be_switched_off(page):
    page.load_demo(workflows.TWO)
    page.node(CLORA, "(node) => { node.widgets.find((w) => w.name === 'live_view').value = false; }")
    page.take_few_steps()
    page.run()
    assert page.page.locator(".loraclr-chip").count() == 0


def test_merge_report_has_a_bar_for_every_error(page):
    page.make_room()
    page.load_demo(workflows.MERGE)
    page.take_few_steps()
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
    page.shots(MERGE, SAVE)
    page.center(MERGE)
    report.get_by_role("button").click()
    copied = page.page.evaluate("() => navigator.clipboard.readText()")
    assert copied.startswith("# LoRACLR merge")


def test_a_brace_offers_the_concepts(page):
    page.load_demo(workflows.TWO)
    page.center(CLORA)
    field = prompt_field(page)
    field.click()
    field.fill("")
    field.press_sequentially("a photo of a {b")
    popup = page.page.locator(".loraclr-popup")
    expect(popup.get_by_role("option")).to_have_text(["ball", "box"])
    page.shot("prompt_help")
    field.press("ArrowDown")
    field.press("Enter")
    expect(field).to_have_value("a photo of a {box}")
    field.press_sequentially(" and a {bal")
    field.press("Tab")
    expect(field).to_have_value("a photo of a {box} and a {ball}")
    assert page.node(CLORA, "(node) => node.widgets[0].value") == "a photo of a {box} and a {ball}"
    assert "loraclr-wrong" not in field.get_attribute("class")


def test_an_unknown_name_is_marked_at_once(page):
    page.load_demo(workflows.TWO)
    page.center(CLORA)
    field = prompt_field(page)
    field.click()
    field.fill("a {ball} and a {bxo}")
    expect(page.page.locator(".loraclr-popup")).to_contain_text("No concept is called {bxo}. There are: {ball}, {box}.")
    assert "loraclr-wrong" in field.get_attribute("class")
    page.shot("unknown_name")


def test_choosing_a_file_fills_in_its_words(page):
    add_concept(page)
    page.node(CONCEPT, CHOOSE, "loraclr_demo_ball.safetensors")
    assert page.node(CONCEPT, WORDS) == ["sks ball", "ball"]
    page.node(CONCEPT, CHOOSE, "loraclr_demo_kite.safetensors")
    assert page.node(CONCEPT, WORDS) == ["qvk kite", "kite"]
    page.node(CONCEPT, "(node) => { node.widgets[1].value = 'my own'; }")
    page.node(CONCEPT, CHOOSE, "loraclr_demo_ball.safetensors")
    assert page.node(CONCEPT, WORDS) == ["my own", "ball"]


@pytest.fixture
def lora_with_files(server):
    """A LoRA with trained words and a picture beside it, as LoRA managers keep them."""
    folder = server.comfy / "models" / "loras" / "page"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(folder.parent / "loraclr_demo_kite.safetensors", folder / "kite.safetensors")
    (folder / "kite.civitai.info").write_text('{"trainedWords": ["qvk kite", "qvk kite in fog"]}')
    Image.new("RGB", (64, 96), "teal").save(folder / "kite.preview.png")
    yield "page/kite.safetensors"
    shutil.rmtree(folder)


def test_what_lies_beside_a_file_is_shown_and_its_words_are_offered(page, lora_with_files):
    add_concept(page)
    page.node(CONCEPT, CHOOSE, lora_with_files)
    page.center(CONCEPT)
    panel = page.page.locator(".loraclr-file")
    picture = panel.locator("img")
    expect(picture).to_be_visible()
    page.page.wait_for_function("image => image.naturalWidth > 0", arg=picture.element_handle())
    assert page.node(CONCEPT, WORDS) == ["qvk kite", "kite"]
    page.shot("file_panel", of=CONCEPT)
    panel.get_by_text("qvk kite in fog").click()
    assert page.node(CONCEPT, WORDS)[0] == "qvk kite in fog"
    page.node(CONCEPT, CHOOSE, "loraclr_demo_ball.safetensors")
    expect(panel).to_be_hidden()


def test_words_of_a_file_give_way_to_another_s_after_a_reload(page):
    """They would stay, silently, and the other LoRA would be prompted by them."""
    add_concept(page)
    page.node(CONCEPT, CHOOSE, "loraclr_demo_ball.safetensors")
    page.load(page.page.evaluate("() => app.graph.serialize()"))
    page.node(CONCEPT, CHOOSE, "loraclr_demo_kite.safetensors")
    assert page.node(CONCEPT, WORDS) == ["qvk kite", "kite"]


def test_undo_copy_and_paste(page):
    workflow = page.load_demo(workflows.TWO)
    page.center(CLORA)
    found = (
        "() => app.graph.nodes.filter((node) => node.comfyClass === 'LoRACLR_CLoRASampler')"
        ".map((node) => node.widgets.map((widget) => widget.value))"
    )
    before = page.page.evaluate(found)
    page.node(CLORA, "(node) => app.canvas.selectNode(node)")
    page.page.evaluate("() => { app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard(); }")
    assert page.page.evaluate(found) == before * 2
    page.page.evaluate("() => app.canvas.deleteSelected()")  # the pasted one
    assert page.page.evaluate(found) == before

    page.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    page.node(CLORA, "(node) => app.canvas.selectNode(node)")
    page.page.evaluate("() => app.canvas.deleteSelected()")
    page.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    assert page.page.evaluate(found) == []
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(workflow["nodes"]))
    assert page.page.evaluate(found) == before


@pytest.mark.own_page(width=390, height=844)
def test_a_phone_sized_window_works(page):
    page.load_demo(workflows.TWO)
    page.center(CLORA)
    expect(prompt_field(page)).to_be_visible()
    page.shot("phone")


def test_the_blueprint_is_found_by_its_name_and_placed(page):
    page.load(EMPTY)
    page.page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.page.get_by_role("combobox").last.fill(workflows.BLUEPRINT)
    expect(page.page.get_by_text(workflows.BLUEPRINT).first).to_be_visible()
    page.page.keyboard.press("Enter")
    page.page.mouse.click(700, 500)
    page.page.wait_for_function("() => app.graph.nodes.length === 1")
    node = page.page.evaluate(
        "() => { const [n] = app.graph.nodes; return { inner: n.subgraph.nodes.map((each) => each.comfyClass),"
        " inputs: n.inputs.map((each) => each.name), outputs: n.outputs.map((each) => each.name) }; }"
    )
    assert sorted(node["inner"]) == [CLORA, CONCEPT, CONCEPT]
    assert node["inputs"][:4] == ["model", "clip", "prompt", "negative"]
    assert node["outputs"] == ["MODEL", "positive", "negative"]


@pytest.mark.own_page
def test_help_opens_beside_each_node_with_its_picture(page):
    page.make_room()
    for name, kinds in (
        (workflows.AREAS, (AREA,)),
        (workflows.MAPS, (CONCEPT, CLORA, MAPS)),
        (workflows.MERGE, (MERGE, SAVE)),
    ):
        page.load_demo(name)
        for kind in kinds:
            page.center(kind)
            page.node(kind, "(node) => app.canvas.selectNode(node)")
            page.page.get_by_test_id("info-button").click()
            picture = page.page.locator(f"img[src$='/extensions/loraclr/docs/pictures/{kind}.jpg']")
            page.page.wait_for_function(
                "image => image.complete && image.naturalWidth > 0", arg=picture.element_handle()
            )
            page.page.evaluate("() => app.canvas.deselectAll()")


@pytest.mark.own_page(language="zh")
def test_help_speaks_the_page_s_language(page):
    page.load_demo(workflows.MERGE)
    page.node(MERGE, "(node) => app.canvas.selectNode(node)")
    page.page.get_by_test_id("info-button").click()
    expect(page.page.get_by_role("heading", name="LoRACLR").first).to_contain_text("合并")
