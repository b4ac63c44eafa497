"""Messages to the page that queued the running workflow, over the host's own socket."""

from server import PromptServer


def is_open() -> bool:
    server = getattr(PromptServer, "instance", None)  # there is none outside of a running server
    return server is not None and server.client_id in server.sockets


def send(event: str, data: dict) -> None:
    PromptServer.instance.send_sync(event, data, PromptServer.instance.client_id)


def say(text: str, node_id: str) -> None:
    """Shows a text under a node."""
    if is_open():
        PromptServer.instance.send_progress_text(text, node_id, PromptServer.instance.client_id)
