"""Wrong wires and errors, said on the node, in both renderers."""

import json
import re

import workflows
from playwright.sync_api import expect

CLORA, CONCEPT, MERGE, KSAMPLER = "LoRACLR_CLoRASampler", "LoRACLR_LoadConceptLoRA", "LoRACLR_Merge", "KSampler"

LINE, MARK = ".loraclr-error:visible", ".loraclr-wire:visible"

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
    page.load_demo(workflows.TWO)
    mark = page.page.locator(MARK)
    page.page.wait_for_timeout(700)
    assert mark.count() == 0
    values = saved(page, KSAMPLER)
    page.node(KSAMPLER, CONNECT, ["CheckpointLoaderSimple", 0, "model"])
    expect(mark).to_contain_text("Connect that node's MODEL here")
    page.center(KSAMPLER)
    expect(mark).to_be_visible()
    page.shot("wrong_wire")
    assert saved(page, KSAMPLER) == values
    page.node(KSAMPLER, CONNECT, [CLORA, 0, "model"])
    expect(mark).to_have_count(0)
    assert saved(page, KSAMPLER) == values


def test_a_run_on_the_wrong_model_says_which_wire(page):
    page.load_demo(workflows.TWO)
    page.node(KSAMPLER, CONNECT, ["CheckpointLoaderSimple", 0, "model"])
    error = run_to_the_error(page)
    assert error["exception_type"] == "ValueError"
    assert error["exception_message"].startswith("The positive conditioning is from CLoRA Attention Contrast Sampler")
    page.center(KSAMPLER)
    expect(page.page.locator(MARK)).to_be_visible()
    assert page.page.locator(LINE).count() == 0  # said once
    page.page.get_by_role("button", name=re.compile("View details|See Errors")).click()
    expect(page.page.get_by_text("ValueError: The positive conditioning is from").first).to_be_visible()
    page.shot("wrong_wire_run")


def test_an_error_is_said_below_its_field_until_the_field_changes(page):
    page.make_room()
    page.load_demo(workflows.TWO)
    values, size = saved(page, CLORA), page.node(CLORA, "(node) => [...node.size]")
    page.node(CLORA, SET, ["prompt", "a photo of {ball} and {bxo}"])
    error = run_to_the_error(page)
    assert error["exception_type"] == "ValueError"
    line = page.page.locator(LINE)
    expect(line).to_contain_text("{bxo}")
    page.center(CLORA)
    expect(line).to_be_visible()
    page.shot("error_on_a_node")
    assert place(page, CLORA, "loraclr_error") == place(page, CLORA, "prompt") + 1
    changed = saved(page, CLORA)
    assert [value for value in changed if value != "a photo of {ball} and {bxo}"] == values[1:]
    page.node(CLORA, SET, ["prompt", values[0]])
    expect(line).to_have_count(0)
    assert saved(page, CLORA) == values
    assert page.node(CLORA, "(node) => [...node.size]") == size


def test_a_graph_saved_with_a_sentence_in_it_opens_unchanged(page):
    page.load_demo(workflows.TWO)
    page.node(CLORA, SET, ["refine_steps", "soon"])
    run_to_the_error(page)
    expect(page.page.locator(LINE)).to_contain_text("refine_steps is “soon”")
    before = page.node(CLORA, "(node) => Object.fromEntries(node.widgets.map(({ name, value }) => [name, value]))")
    assert place(page, CLORA, "loraclr_error") == place(page, CLORA, "refine_steps") + 1
    page.load(json.loads(page.page.evaluate("() => JSON.stringify(app.graph.serialize())")))
    after = page.node(CLORA, "(node) => Object.fromEntries(node.widgets.map(({ name, value }) => [name, value]))")
    assert after == {name: value for name, value in before.items() if name != "loraclr_error"}
    assert page.page.locator(LINE).count() == 0


def test_the_next_run_takes_the_sentence_away(page):
    page.load_demo(workflows.TWO)
    concept = "app.graph.nodes.findLast((node) => node.comfyClass === 'LoRACLR_LoadConceptLoRA')"
    name = f"{concept}.widgets.find((widget) => widget.name === 'name')"
    page.page.evaluate(f"() => {{ {name}.value = 'ball'; }}")
    run_to_the_error(page)
    line = page.page.locator(LINE)
    expect(line).to_contain_text("Two concepts are called “ball”")
    page.page.evaluate(f"() => {{ {name}.value = ''; }}")
    expect(line).to_have_count(0)
    page.node(CLORA, SET, ["negative", "{ball}"])
    run_to_the_error(page)
    expect(line).to_contain_text("names {ball}. It is the same for every concept")
    page.node(CLORA, SET, ["mask_threshold", 0.4])
    page.page.wait_for_timeout(700)
    expect(line).to_be_visible()  # it is not about that
    page.take_few_steps()
    page.node(CLORA, "(node) => { node.widgets.find((widget) => widget.name === 'negative').value = ''; }")
    page.run()
    expect(line).to_have_count(0)


def test_what_the_server_refuses_is_said_too(page):
    page.load_demo(workflows.MERGE)
    page.node(MERGE, SET, ["captures", "nowhere"])
    page.node(CONCEPT, SET, ["lora_name", "gone.safetensors"])
    page.node("LoRACLR_SaveMergedLoRA", "(node) => node.disconnectInput(0)")
    page.page.get_by_test_id("queue-button").click()
    lines = page.page.locator(LINE)
    expect(lines).to_have_count(3)
    page.center(MERGE)
    expect(lines.filter(has_text="captures is “nowhere”: choose")).to_be_visible()
    page.shot("refused")
    page.center(CONCEPT)
    expect(lines.filter(has_text="lora_name: “gone.safetensors” was not found")).to_be_visible()


def test_an_error_inside_a_subgraph_is_said_outside_too(page):
    page.load_demo(workflows.TWO)
    page.node(CLORA, SET, ["prompt", "a photo"])
    page.node(CLORA, "(node) => { app.graph.convertToSubgraph(new Set([node])); }")
    run_to_the_error(page)
    said = page.page.get_by_text(re.compile(r"never names \{ball\}")).locator("visible=true")
    expect(said.first).to_be_visible()
    page.shot("error_in_a_subgraph")
