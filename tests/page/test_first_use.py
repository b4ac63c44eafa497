"""A first use, by the page alone: from an empty canvas to two subjects in one picture."""

import workflows

CLORA, CONCEPT = "LoRACLR_CLoRASampler", "LoRACLR_LoadConceptLoRA"
MOST_CLICKS, MOST_TEXTS = 12, 2
EMPTY = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}

# Where a widget of a node is on the window, in either renderer.
PLACE = """([comfyClass, index, name]) => {
    const node = app.graph.nodes.filter((node) => node.comfyClass === comfyClass)[index];
    const number = node.widgets.findIndex((widget) => widget.name === name);
    const fields = document.querySelectorAll(`[data-node-id="${node.id}"] [data-testid="node-widget"]`);
    const widget = node.widgets[number];
    const { left, top } = app.canvas.canvas.getBoundingClientRect();
    const { scale, offset } = app.canvas.ds;
    return [left + (node.pos[0] + node.size[0] * 0.6 + offset[0]) * scale,
        top + (node.pos[1] + widget.y + 10 + offset[1]) * scale];
}"""


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

    def type(self, text: str) -> None:
        self.texts.append(text)
        self.page.page.keyboard.press("Control+A")
        self.page.page.keyboard.insert_text(text)
        self.page.page.keyboard.press("Enter")

    def widget(self, comfy_class: str, name: str, index: int = 0):
        if not self.page.nodes2:
            return tuple(self.page.page.evaluate(PLACE, [comfy_class, index, name]))
        node = self.page.page.evaluate(
            "([type, index]) => app.graph.nodes.filter((node) => node.comfyClass === type)[index].id",
            [comfy_class, index],
        )
        return self.page.page.locator(f"[data-node-id='{node}']").get_by_label(name, exact=True).first

    def choose(self, comfy_class: str, name: str, value: str, index: int = 0) -> None:
        """Chooses from a list."""
        self.click(f"the list {name}", self.widget(comfy_class, name, index))
        self.page.page.wait_for_timeout(500)
        self.page.shot(f"first_use_{name}_{index}")
        option = self.page.page.get_by_text(value, exact=True).last
        self.click(value, option)
        self.page.page.wait_for_timeout(300)

    def write(self, comfy_class: str, name: str, text: str) -> None:
        self.click(f"the field {name}", self.widget(comfy_class, name))
        self.page.page.wait_for_timeout(300)
        self.type(text)
        self.page.page.wait_for_timeout(300)


def test_two_subjects_in_one_picture(page):
    page.load(EMPTY)
    user = User(page)
    page.page.wait_for_timeout(1000)
    page.shot("first_use_0_empty")
    user.click("templates", page.page.get_by_test_id("templates-button").or_(page.page.get_by_label("Templates")).first)
    user.click("loraclr", page.page.get_by_text("loraclr", exact=True))
    user.click("the template", page.page.get_by_test_id(f"template-workflow-{workflows.TWO}"))
    page.wait_for_nodes(workflows.REAL, workflows.TWO)
    page.page.wait_for_timeout(1500)
    page.shot("first_use_1_opened")
    user.choose("CheckpointLoaderSimple", "ckpt_name", workflows.DEMO.checkpoint)
    for index, subject in enumerate(workflows.DEMO.subjects[:2]):
        user.choose(CONCEPT, "lora_name", subject.file, index)
    for name in ("width", "height"):
        user.write("EmptyLatentImage", name, str(workflows.DEMO.side))
    page.shot("first_use_2_chosen")
    print(user.clicks, user.texts, page.prompt())
