"""The view on Train Concept LoRA, in both renderers."""

import re

import pytest
import workflows
from graph import Graph, page_format
from playwright.sync_api import expect

TRAIN = "LoRACLR_TrainConcept"
PREVIEW = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'><circle r='64' fill='red'/></svg>"
FRAME = {
    "step": 40,
    "steps": 400,
    "seconds_left": 300.0,
    "losses": [0.9, 0.5, 0.6, 0.4, 0.3],
    "preservation": [0.0, 0.01, None, 0.02, 0.015],
    "outside": [],
    "beside": [],
    "previews": [
        {"prompt": "photo of a sks ball", "with_trigger": True, "picture": PREVIEW, "step": 40},
        {"prompt": "photo of a ball", "with_trigger": False, "picture": PREVIEW, "step": 40},
    ],
}
# Set the training's steps, and run until the end or, with `stop`, until a frame after the step `stop`; the frames' steps are kept.
RUN = """([steps, ifThere, stop]) => {
    const widgets = app.graph.nodes.flatMap((node) => node.widgets ?? []);
    widgets.find((widget) => widget.name === 'steps').value = steps;
    widgets.find((widget) => widget.name === 'if_there').value = ifThere;
    window.steps = [];
    const note = ({ detail }) => { window.steps.push(detail.step); if (detail.step >= stop) app.api.interrupt(null); };
    app.api.addEventListener('loraclr.train', note);
    window.ended = null;
    const end = (kind) => { window.ended ??= kind; app.api.removeEventListener('loraclr.train', note); };
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, () => end(kind), { once: true });
}"""


def load_training(page) -> None:
    """The first template's training alone."""
    graph = Graph(page.infos)
    demo = workflows.DEMO
    subject = demo.subjects[0]
    loaded = graph.add("CheckpointLoaderSimple", (0, 0, 300, 100), {"ckpt_name": demo.checkpoint})
    folder = graph.add("LoadImageTextDataSetFromFolder", (0, 200, 300, 100), {"folder": "loraclr_demo_ball"})
    values = {"model": loaded["MODEL"], "clip": loaded["CLIP"], "vae": loaded["VAE"]}
    values |= {"images": folder["images"], "captions": folder["texts"], "trigger": subject.trigger}
    values |= {"class_word": subject.class_word, "preview_every": 0, "beside": ""}
    # ComfyUI would answer from its cache what the test in the other renderer has trained.
    values |= {"name": f"loraclr/page_{page.nodes2}", "training_seed": int(page.nodes2)}
    graph.add(TRAIN, (400, 0, 390, 740), values)
    page.load(page_format(graph, "training"))
    page.make_room()
    page.center(TRAIN)


def run(page, steps: int, if_there: str, stop: int = 10**6) -> tuple[str, list[int]]:
    """How a training ended, and the steps that frames came after."""
    page.page.evaluate(RUN, [steps, if_there, stop])
    page.page.get_by_test_id("queue-button").click()
    return page.wait_for_end(), page.page.evaluate("() => window.steps")


def test_a_frame_shows_curves_previews_and_the_time_left(page):
    load_training(page)
    view = page.page.locator(".loraclr-train")
    expect(view).to_contain_text("While it trains")
    node = page.node(TRAIN, "(node) => node.id")
    frame = FRAME | {"node": node, "made_of": page.prompt()}
    page.page.evaluate("frame => app.api.dispatchCustomEvent('loraclr.train', frame)", frame)
    expect(view.locator(".loraclr-curve")).to_have_text([re.compile("concept 0"), re.compile("preservation 0")])
    assert [
        len(points.split())
        for points in view.locator("polyline").evaluate_all("lines => lines.map((line) => line.getAttribute('points'))")
    ] == [5, 4]
    expect(view.locator("figcaption")).to_have_text(["photo of a sks ball", "photo of a ball"])
    expect(view.locator(".loraclr-step")).to_have_text("40 / 400 steps")
    expect(view.locator(".loraclr-left")).to_have_text("5 min left")
    page.shot("train_view", of=TRAIN)


@pytest.mark.own_page
def test_a_training_is_cancelled_and_goes_on(page):
    load_training(page)
    view = page.page.locator(".loraclr-train")
    ended, steps = run(page, 1000, "anew", stop=2)
    assert ended == "execution_interrupted"
    assert steps[0] == 0
    assert 2 <= steps[-1] < 1000
    expect(view.locator(".loraclr-when")).to_have_text("cancelled: run again to go on")
    # The last frame says what was saved: some steps may have been taken after the one that was answered by a stop.
    ended, later = run(page, steps[-1] + 3, "go on")
    assert ended == "execution_success"
    assert later[0] >= steps[-1]  # a training that began anew would send step 0
    expect(view.locator(".loraclr-step")).to_have_text(f"{steps[-1] + 3} / {steps[-1] + 3} steps")
    page.shot("trained", of=TRAIN)
