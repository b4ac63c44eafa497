"""Messages to the page that queued the running workflow, over ComfyUI's own socket."""

from collections.abc import Callable

import comfy.model_management
import comfy.utils
from comfy_api.latest import io
from comfy_execution.graph_utils import is_link
from server import PromptServer

PROGRESS_UNITS = 1000


def show_text(text: str, node_id: str) -> None:
    """Show a text under a node, replacing the previous one."""
    server = getattr(PromptServer, "instance", None)  # None outside of a running server
    if server is not None:
        server.send_progress_text(text.encode(errors="replace"), node_id)


def progress(node_id: str) -> Callable[[str, float], None]:
    """Return a function that shows a progress bar and the phase under a node, and raises when the user cancels."""
    bar = comfy.utils.ProgressBar(PROGRESS_UNITS, node_id=node_id)

    def report(phase: str, done: float) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(round(done * PROGRESS_UNITS))
        show_text(phase, node_id)

    return report


def is_open() -> bool:
    """Return whether the page is connected."""
    server = getattr(PromptServer, "instance", None)  # None outside of a running server
    return server is not None and server.client_id in server.sockets


def send(event: str, data: dict) -> None:
    PromptServer.instance.send_sync(event, data, PromptServer.instance.client_id)


def source(hidden: io.HiddenHolder) -> dict:
    """Return what a node's result comes from, for the page to tell whether it belongs to the graph it shows.

    node: the node's id. workflow: the workflow's id, None where no page sent it. made_of: the part of the prompt that leads
    to the node; empty for a node that another one put into the graph while it ran.
    """
    prompt = hidden.prompt or {}  # None outside of a running server
    part, waiting = {}, [hidden.unique_id]
    while waiting:
        name = waiting.pop()
        if name in part or name not in prompt:
            continue
        inputs = prompt[name]["inputs"]
        part[name] = {"class_type": prompt[name]["class_type"], "inputs": inputs}
        waiting += [value[0] for value in inputs.values() if is_link(value)]
    workflow = (hidden.extra_pnginfo or {}).get("workflow", {}).get("id")
    return {"node": hidden.unique_id, "workflow": workflow, "made_of": part}
