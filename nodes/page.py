"""Messages to the page that queued the running workflow, over the host's own socket."""

from server import PromptServer


def show_text(text: str, node_id: str) -> None:
    """Show a text under a node, in place of the one before."""
    server = getattr(PromptServer, "instance", None)  # there is none outside of a running server
    if server is not None:
        server.send_progress_text(text.encode(errors="replace"), node_id)


def is_open() -> bool:
    server = getattr(PromptServer, "instance", None)  # there is none outside of a running server
    return server is not None and server.client_id in server.sockets


def send(event: str, data: dict) -> None:
    PromptServer.instance.send_sync(event, data, PromptServer.instance.client_id)
