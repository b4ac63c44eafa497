"""Messages to the page that queued the running workflow, over ComfyUI's own socket."""

from server import PromptServer


def show_text(text: str, node_id: str) -> None:
    """Show a text under a node, replacing the previous one."""
    server = getattr(PromptServer, "instance", None)  # None outside of a running server
    if server is not None:
        server.send_progress_text(text.encode(errors="replace"), node_id)


def is_open() -> bool:
    """Return whether the page is connected."""
    server = getattr(PromptServer, "instance", None)  # None outside of a running server
    return server is not None and server.client_id in server.sockets


def send(event: str, data: dict) -> None:
    PromptServer.instance.send_sync(event, data, PromptServer.instance.client_id)
