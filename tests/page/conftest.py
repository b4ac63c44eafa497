"""ComfyUI's own page, with this pack, in a headless browser: in the classic canvas and in Nodes 2.0."""

import base64
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
import workflows
from browser import MISSING, find_browser
from comfy_server import ComfyServer
from graph import api_format, page_format
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright

SHOTS = Path(__file__).resolve().parents[2] / ".host" / "screenshots"
RENDERERS = {"classic": False, "nodes2": True}
MINUTES = 60_000  # milliseconds
FEW_STEPS = 3


@pytest.fixture(scope="module")  # while it is open, nothing else in this thread may run an event loop
def browser():
    """The browser that `make test` found or installed."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    path = find_browser()
    if path is None:
        pytest.fail(MISSING, pytrace=False)
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


class ComfyPage:
    """One open page. `errors`: what the pack, or anything while it was used, has thrown."""

    def __init__(self, page: Page, server: ComfyServer, infos: dict, nodes2: bool, pictures: bool):
        self.page = page
        self.infos = infos
        self.server = server
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._note)
        page.set_default_timeout(MINUTES)
        self.nodes2 = nodes2
        self.whole = nodes2 and pictures  # the pictures that are shown come from Nodes 2.0
        self.open()

    def _note(self, message) -> None:
        url = message.location.get("url", "")
        # The page looks for a help page in its language before the plain one, and asks hosts outside for models' sizes.
        sought = url.endswith(".md") or (url and not url.startswith(f"http://{self.server.address}/"))
        if message.type == "error" and not sought and "loraclr" in f"{message.text} {url}".lower():
            self.errors.append(f"{message.text} {url}")

    def open(self) -> None:
        self.page.goto(f"http://{self.server.address}/", wait_until="domcontentloaded")
        self.page.wait_for_function("window.app?.extensionManager && window.app.graph && app.canvas?.graph")
        self.page.wait_for_function("!document.querySelector('.p-progressspinner, .loading-spinner')")
        # The page loads a workflow of its own at its start, which would go over a test's.
        self.page.wait_for_function("app.extensionManager.workflow.activeWorkflow")

    def load(self, workflow: dict) -> None:
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_function("count => app.graph.nodes.length === count", arg=len(workflow["nodes"]))
        self.page.evaluate("() => new Promise(requestAnimationFrame)")

    def load_demo(self, name: str) -> dict:
        """A shipped workflow on the demo's models, as the page has it."""
        workflow = page_format(workflows.described(name, self.infos, workflows.DEMO), name)
        self.load(workflow)
        return workflow

    def browse_templates(self) -> None:
        """Opens the template browser at this pack's templates."""
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.page.get_by_test_id("manage-node-templates-dialog").wait_for(state="attached")
        self.page.get_by_text("loraclr", exact=True).click()

    def template(self, name: str) -> Locator:
        """A card of the template browser, which draws 24 of them, in the file system's order, and more when scrolled."""
        card = self.page.get_by_test_id(f"template-workflow-{name}")
        for _ in range(100):
            if card.count():
                break
            self.page.evaluate(
                "() => [...document.querySelectorAll('[data-testid^=template-workflow-]')].at(-1)?.scrollIntoView()"
            )
            self.page.wait_for_timeout(200)
        return card

    def open_template(self, name: str) -> None:
        """From the template browser. One event, as the browser may draw its list anew between a press and its release."""
        self.template(name).dispatch_event("click")
        self.wait_for_nodes(workflows.REAL, name)

    def take_few_steps(self) -> int:
        """In pictures, captures and trainings, whatever they come to; nothing is painted for these. Returns how many: ComfyUI would
        answer from its cache what ran in the other renderer.
        """
        steps = FEW_STEPS + self.nodes2
        self.page.evaluate(
            """steps => {
                const few = { steps, capture_steps: steps, beside: '' };
                for (const widget of app.graph.nodes.flatMap((node) => node.widgets ?? []))
                    if (widget.name in few) widget.value = few[widget.name];
            }""",
            steps,
        )
        return steps

    def prompt(self) -> dict[str, dict]:
        """The graph as the page would send it to the server."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def asked(self) -> dict[str, dict]:
        """Inputs of each node as the page would send them to the server."""
        return {node: each["inputs"] for node, each in self.prompt().items()}

    def wait_for_nodes(self, models: workflows.Models, name: str) -> None:
        """Until the graph is the one of a workflow, by its nodes' classes."""
        expected = sorted(
            node["class_type"] for node in api_format(workflows.described(name, self.infos, models)).values()
        )
        self.page.wait_for_function(
            "wanted => JSON.stringify(app.graph.nodes.map((n) => n.comfyClass).filter((c) => wanted.includes(c)).sort())"
            " === JSON.stringify(wanted)",
            arg=expected,
        )

    def drop(self, path: Path) -> None:
        """Drops a file onto the canvas."""
        kind = {".json": "application/json", ".png": "image/png"}[path.suffix]
        self.page.evaluate(
            """([text, name, type]) => {
                const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([bytes], name, { type }));
                const place = { clientX: 700, clientY: 150, bubbles: true, cancelable: true, dataTransfer };
                for (const kind of ['dragover', 'drop']) app.canvas.canvas.dispatchEvent(new DragEvent(kind, place));
            }""",
            [base64.b64encode(path.read_bytes()).decode(), path.name, kind],
        )

    def run(self) -> dict:
        """Presses Run and waits for the end; the outputs by node id. Fails where a node did."""
        self.page.evaluate(
            """() => {
                window.ended = null;
                for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
                    app.api.addEventListener(kind, ({ detail }) => { window.ended ??= { kind, ...detail }; }, { once: true });
            }"""
        )
        # Front ends before the default host's never take away the mask of a file that opened before it had faded in.
        self.page.evaluate("() => document.querySelectorAll('.p-overlay-mask-leave').forEach((mask) => mask.remove())")
        self.page.get_by_test_id("queue-button").click()
        ended = self.wait_for_end()
        assert ended["kind"] == "execution_success", ended
        return self.server.history(ended["prompt_id"])["outputs"]

    def wait_for_end(self):
        """Until a script of a test has set `window.ended`; its value."""
        return self.page.wait_for_function("window.ended", timeout=5 * MINUTES).json_value()

    def node(self, comfy_class: str, script: str, argument=None):
        """Evaluates `(node, argument) => …` on the first node of a class."""
        found = "app.graph.nodes.find((node) => node.comfyClass === comfyClass)"
        return self.page.evaluate(f"([comfyClass, argument]) => ({script})({found}, argument)", [comfy_class, argument])

    def make_room(self) -> None:
        """For the tallest node."""
        self.page.set_viewport_size({"width": 1700, "height": 1700})

    def center(self, comfy_class: str) -> None:
        """Brings a node before the user's eyes, at full size."""
        self.node(
            comfy_class,
            "(node) => { app.canvas.ds.scale = 1; app.canvas.centerOnNode(node); app.canvas.setDirty(true, true); }",
        )
        self.page.wait_for_timeout(500)  # the page moves there smoothly

    def shot(self, name: str, of: str | None = None) -> None:
        """A screenshot, of a node alone or of the whole window. README's and the help pages' pictures come from them."""
        clip = of and self.node(
            of,
            """(node) => {
                const [x, y, width, height] = node.boundingRect;
                const { offset, scale } = app.canvas.ds, { left, top } = app.canvas.canvas.getBoundingClientRect();
                return { x: left + (x + offset[0]) * scale - 6, y: top + (y + offset[1]) * scale - 6,
                    width: width * scale + 12, height: height * scale + 12 };
            }""",
        )
        self.page.screenshot(path=SHOTS / f"{name}_{'nodes2' if self.nodes2 else 'classic'}.png", clip=clip)

    def shots(self, *kinds: str) -> None:
        """Of the nodes of these classes, for their help pages."""
        for kind in kinds:
            self.center(kind)
            self.shot(kind, of=kind)

    def keep(self, picture: Image.Image, name: str) -> None:
        """A workflow's own picture, for its thumbnail."""
        if self.whole:
            picture.save(SHOTS / f"{name}.png")


@pytest.fixture(params=RENDERERS, scope="module")
def renderer(request) -> bool:
    return RENDERERS[request.param]


@pytest.fixture(scope="module")
def open_page(browser, server, infos, renderer, pytestconfig) -> Callable[[], AbstractContextManager[ComfyPage]]:
    @contextmanager
    def opened(width: int = 1500, height: int = 1000, language: str = "en") -> Iterator[ComfyPage]:
        """A page of its own. At the end it may not have seen an error."""
        permissions = ["clipboard-read", "clipboard-write"]
        server.set_settings({"Comfy.VueNodes.Enabled": renderer, "Comfy.Locale": language})
        context = browser.new_context(viewport={"width": width, "height": height}, permissions=permissions)
        try:
            page = ComfyPage(context.new_page(), server, infos, renderer, pytestconfig.getoption("pictures"))
            yield page
        finally:
            context.close()
        assert page.errors == []

    return opened


class SharedPage:
    """One page for all tests that ask for it. One that has seen a test fail is closed: anything may be left in it."""

    def __init__(self, open_page: Callable[[], AbstractContextManager[ComfyPage]], session: pytest.Session):
        self.open_page, self.session = open_page, session
        self.opened = ExitStack()
        self.page: ComfyPage | None = None
        self.failures = 0

    def get(self) -> ComfyPage:
        if self.page is None or self.session.testsfailed > self.failures:
            self.page, self.failures = None, self.session.testsfailed
            self.opened.close()
            self.page = self.opened.enter_context(self.open_page())
        return self.page


@pytest.fixture(scope="module")
def shared_page(open_page, request) -> Iterator[SharedPage]:
    shared = SharedPage(open_page, request.session)
    with shared.opened:
        yield shared


@pytest.fixture
def page(request, open_page) -> Iterator[ComfyPage]:
    """One for all tests, which begin by loading a graph: opening it takes longer than most of them. Those that change more
    than the graph are marked `own_page`, with what their page is opened with.
    """
    if own := request.node.get_closest_marker("own_page"):
        with open_page(**own.kwargs) as page:
            yield page
    else:
        yield request.getfixturevalue("shared_page").get()
