"""A first use, by the page alone: from an empty canvas to two subjects in one picture, in few clicks."""

import numpy as np
import pytest
import torch
import workflows
from PIL import Image
from playwright.sync_api import expect
from quality.comparisons import RIGHT
from shapes import scores
from shapes.world import CONCEPTS

CLORA, CONCEPT = "LoRACLR_CLoRASampler", "LoRACLR_LoadConceptLoRA"
MOST_CLICKS, MOST_TEXTS = 12, 2
STEPS = 12  # of the template's 30: enough to know a shape by
EMPTY = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}

NODE = """
    const nodes = app.graph.nodes.filter((node) => node.comfyClass === comfyClass);
    const node = nodes.sort((one, other) => one.id - other.id)[index]; // the one clicked last is drawn last
"""
# Where a widget of the classic canvas is on the window.
PLACE = f"""([comfyClass, index, name]) => {{{NODE}
    const widget = node.widgets.find((widget) => widget.name === name);
    const {{ left, top }} = app.canvas.canvas.getBoundingClientRect(), {{ scale, offset }} = app.canvas.ds;
    return [left + (node.pos[0] + 0.6 * node.size[0] + offset[0]) * scale,
        top + (node.pos[1] + widget.y + 10 + offset[1]) * scale];
}}"""
ID = f"([comfyClass, index]) => {{{NODE} return node.id; }}"


class User:
    """Somebody with a mouse and a keyboard, whose clicks and texts are counted."""

    def __init__(self, page):
        self.page = page
        self.clicks: list[str] = []
        self.texts: list[str] = []

    def click(self, what: str, target) -> None:
        """target: a locator, or a point of the window."""
        self.clicks.append(what)
        if isinstance(target, tuple):
            self.page.page.mouse.click(*target)
        else:
            target.click()

    def widget(self, comfy_class: str, name: str, index: int):
        if not self.page.nodes2:
            return tuple(self.page.page.evaluate(PLACE, [comfy_class, index, name]))
        node = self.page.page.evaluate(ID, [comfy_class, index])
        return self.page.page.locator(f"[data-node-id='{node}']").get_by_label(name, exact=True).first

    def choose(self, comfy_class: str, name: str, value: str, index: int = 0) -> None:
        """Choose from a list."""
        self.click(f"the list {name}", self.widget(comfy_class, name, index))
        self.click(value, self.page.page.get_by_text(value, exact=True).last)

    def write(self, comfy_class: str, name: str, text: str) -> None:
        """Write into a field, in place of what it holds."""
        self.click(f"the field {name}", self.widget(comfy_class, name, 0))
        if not self.page.nodes2:
            self.page.page.locator(".graphdialog input").wait_for()
        self.texts.append(text)
        self.page.page.keyboard.press("Control+A")
        self.page.page.keyboard.insert_text(text)
        self.page.page.keyboard.press("Enter")


def words_of(page, index: int) -> list[str]:
    """Trigger, class word and name as a concept's node holds them."""
    script = f"([comfyClass, index]) => {{{NODE} return node.widgets.slice(1, 4).map((widget) => widget.value); }}"
    return page.page.evaluate(script, [CONCEPT, index])


def identities(picture: Image.Image) -> list[float]:
    """How well the demo's ball and box are found."""
    pixels = torch.from_numpy(np.asarray(picture.convert("RGB")) / 255.0).float().movedim(-1, 0)[None]
    return [float(scores.identity(pixels, concept).score) for concept in CONCEPTS[:2]]


@pytest.mark.own_page
def test_two_subjects_in_one_picture_from_an_empty_canvas(page):
    """By a template, in which the user's own files replace those it names: their words, and the prompt, come by themselves."""
    page.load(EMPTY)
    user, subjects = User(page), workflows.DEMO.subjects[:2]
    user.click("templates", page.page.get_by_label("Templates").first)
    user.click("loraclr", page.page.get_by_text("loraclr", exact=True))
    page.page.wait_for_timeout(1000)  # the list is drawn anew, and a press on a card that goes is lost
    user.click("the first template", page.page.get_by_test_id(f"template-workflow-{workflows.TWO}"))
    page.wait_for_nodes(workflows.REAL, workflows.TWO)
    page.page.wait_for_timeout(1000)  # the page moves to the nodes
    user.choose("CheckpointLoaderSimple", "ckpt_name", workflows.DEMO.checkpoint)
    for index, subject in enumerate(subjects):
        user.choose(CONCEPT, "lora_name", subject.file, index)
        page.page.wait_for_timeout(500)  # its metadata come from the server
        assert words_of(page, index) == [subject.trigger, subject.class_word, ""]
    for name in ("width", "height"):
        user.write("EmptyLatentImage", name, str(workflows.DEMO.side))
    assert page.node(CLORA, "(node) => node.widgets[0].value") == "a photo of a {ball} and a {box} in a park"
    page.shot("first_use_ready")

    page.node("KSampler", "(node, steps) => { node.widgets.find((w) => w.name === 'steps').value = steps; }", STEPS)
    user.clicks.append("Run")
    outputs = page.run()
    page.shot("first_use_done")
    (image,) = [image for output in outputs.values() for image in output.get("images", []) if image["type"] == "output"]
    found = identities(Image.open(page.server.output / image["subfolder"] / image["filename"]))
    assert min(found) > RIGHT, found
    assert len(user.clicks) <= MOST_CLICKS, user.clicks
    assert len(user.texts) <= MOST_TEXTS, user.texts


def test_an_empty_field_shows_the_word_in_effect(page):
    """As a placeholder, which changes with the field that it comes from."""
    page.load_demo(workflows.TWO)
    page.center(CONCEPT)

    def shown(name: str) -> str:
        if not page.nodes2:
            return page.node(CONCEPT, "(node, name) => node.widgets.find((w) => w.name === name)._displayValue", name)
        node = page.node(CONCEPT, "(node) => node.id")
        field = page.page.locator(f"[data-node-id='{node}']").get_by_label(name, exact=True)
        return f"({field.get_attribute('placeholder')})"

    def type_class_word(text: str) -> None:
        page.node(
            CONCEPT,
            "(node, text) => { const w = node.widgets.find((w) => w.name === 'class_word'); w.value = text; w.callback(text); }",
            text,
        )
        page.page.wait_for_timeout(200)

    assert shown("name") == "(ball)"
    type_class_word("toy")
    assert shown("name") == "(toy)"
    assert "{toy}" in page.node(CLORA, "(node) => node.widgets[0].value")
    type_class_word("")
    assert shown("class_word") == "(ball)"
    page.shot("words_in_effect", of=CONCEPT)


def test_a_concept_of_the_same_class_gets_a_name_of_its_own(page):
    """Two characters are often two women: their names in prompts must differ."""
    page.load_demo(workflows.TWO)
    choose = f"""([comfyClass, index, file]) => {{{NODE}
        const widget = node.widgets[0]; widget.value = file; return widget.callback(file); }}"""
    page.page.evaluate(
        f"([comfyClass, index]) => {{{NODE} for (const w of node.widgets.slice(1, 4)) w.value = ''; }}", [CONCEPT, 1]
    )
    page.page.evaluate(choose, [CONCEPT, 1, "loraclr_demo_ball2.safetensors"])
    assert words_of(page, 1) == ["mrf ball", "ball", "ball 2"]


@pytest.mark.parametrize(
    ("query", "among"),
    # For “regional”, the page puts ComfyUI's own much used nodes before any other pack's.
    [("clora", ""), ("two characters", ""), ("couple", ""), ("multi lora", ""), ("regional", "LoRACLR")],
)
def test_the_search_finds_the_sampler_first(page, query, among):
    page.load(EMPTY)
    page.page.evaluate("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    field = page.page.locator("input[role=combobox]")  # the preview of a node beside it has lists
    field.fill(query)
    options = page.page.get_by_role("option").filter(has_text=among)
    expect(options.first).to_contain_text("CLoRA Attention Contrast Sampler")
    page.page.keyboard.press("Escape")
    expect(field).to_have_count(0)
