"""Wrong wires and errors, said on the node, in both renderers."""

from playwright.sync_api import expect

CLORA, CONCEPT, MERGE, KSAMPLER = "LoRACLR_CLoRASampler", "LoRACLR_LoadConceptLoRA", "LoRACLR_Merge", "KSampler"

CONNECT = """(node, [source, output, input]) => {
    const from = app.graph.nodes.find((each) => each.comfyClass === source);
    from.connect(output, node, node.inputs.findIndex(({ name }) => name === input));
}"""
SET = "(node, [name, value]) => { node.widgets.find((widget) => widget.name === name).value = value; }"


def run_to_the_error(page) -> dict:
    """Press Run and wait for the error of a node."""
    page.page.evaluate(
        """() => {
            window.failed = new Promise((resolve) => {
                app.api.addEventListener('execution_error', ({ detail }) => resolve(detail), { once: true });
            });
        }"""
    )
    page.page.get_by_test_id("queue-button").click()
    return page.page.evaluate("() => window.failed")


def place(page, comfy_class: str, name: str) -> int:
    """Return a widget's place among those of a node."""
    return page.node(comfy_class, "(node, name) => node.widgets.findIndex((w) => w.name === name)", name)


def saved(page, comfy_class: str) -> list:
    return page.node(comfy_class, "(node) => node.serialize().widgets_values")


def test_a_wrong_model_wire_is_marked_until_it_is_right(page):
    page.load_demo("clora_two_concepts")
    mark = page.page.locator(".loraclr-wire")
    page.page.wait_for_timeout(700)
    assert mark.count() == 0
    values = saved(page, KSAMPLER)
    page.node(KSAMPLER, CONNECT, ["CheckpointLoaderSimple", 0, "model"])
    expect(mark).to_contain_text("Connect the MODEL output of")
    page.center(KSAMPLER)
    expect(mark).to_be_visible()
    page.shot("wrong_wire")
    assert saved(page, KSAMPLER) == values
    page.node(KSAMPLER, CONNECT, [CLORA, 0, "model"])
    expect(mark).not_to_be_visible()
    assert saved(page, KSAMPLER) == values


def test_a_run_on_the_wrong_model_says_which_wire(page):
    page.load_demo("clora_two_concepts")
    page.node(KSAMPLER, CONNECT, ["CheckpointLoaderSimple", 0, "model"])
    error = run_to_the_error(page)
    assert error["exception_type"] == "ValueError"
    assert error["exception_message"].startswith("The positive conditioning is from CLoRA Attention Contrast Sampler")
    page.center(KSAMPLER)
    page.page.wait_for_timeout(500)
    page.shot("wrong_wire_run")
    expect(page.page.locator(".loraclr-wire")).to_be_visible()
    assert page.page.locator(".loraclr-error").count() == 0  # said once


def test_an_error_is_said_below_its_field_until_the_field_changes(page):
    page.make_room()
    page.load_demo("clora_two_concepts")
    values = saved(page, CLORA)
    page.node(CLORA, SET, ["prompt", "a photo of {ball} and {bxo}"])
    error = run_to_the_error(page)
    assert error["exception_type"] == "ValueError"
    line = page.page.locator(".loraclr-error")
    expect(line).to_contain_text("{bxo}")
    page.center(CLORA)
    expect(line).to_be_visible()
    page.shot("error_on_a_node")
    assert place(page, CLORA, "loraclr_error") == place(page, CLORA, "prompt") + 1
    changed = saved(page, CLORA)
    assert [value for value in changed if value != "a photo of {ball} and {bxo}"] == values[1:]
    page.node(CLORA, SET, ["prompt", values[0]])
    expect(line).not_to_be_visible()
    assert saved(page, CLORA) == values
