"""A ComfyUI server of one's own, for as long as a `with` block: queue graphs, follow them, interrupt them.

with ComfyServer(output=Path("output")) as server:
    history = server.wait(server.queue(api_workflow))
"""

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import aiohttp

OnMessage = Callable[[dict], None]
BINARY_TEXT = 3  # the host's BinaryEventTypes.TEXT
ENDS = {"execution_success", "execution_error", "execution_interrupted"}


class NodeError(RuntimeError):
    """A node failed, or the host did not accept the graph."""

    def __init__(self, node_id: str, node_type: str, message: str, traceback: str = ""):
        super().__init__(f"node {node_id} ({node_type}): {message}")
        self.node_id, self.node_type, self.message, self.traceback = node_id, node_type, message, traceback


class RunInterruptedError(RuntimeError):
    """The run was interrupted."""


class ComfyServer:
    """Starts the ComfyUI in $COMFYUI_PATH on a free loopback port; on the CPU unless `cpu` is False. With the page in
    $COMFYUI_FRONTEND_PATH, if that is set.

    Pictures go to `output`, everything the server prints to `log`; temporary pictures are deleted at the end.
    """

    def __init__(self, output: Path, log: Path | None = None, cpu: bool = True, extra_args: tuple[str, ...] = ()):
        self.comfy = Path(os.environ["COMFYUI_PATH"])
        self.output = output.resolve()
        self.log = (log or output.parent / "server.log").resolve()
        self.cpu = cpu
        self.extra_args = extra_args
        self.client_id = str(uuid.uuid4())

    def __enter__(self) -> "ComfyServer":
        self.output.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.scratch = tempfile.mkdtemp(prefix="loraclr-server-")
        port = _free_port()
        self.address = f"127.0.0.1:{port}"
        command = [
            *(sys.executable, "main.py", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"),
            *("--output-directory", str(self.output), "--temp-directory", self.scratch),
            *("--database-url", f"sqlite:///{self.scratch}/comfyui.db", *self.extra_args),
        ]
        if self.cpu:
            command.append("--cpu")
        if page := os.environ.get("COMFYUI_FRONTEND_PATH"):
            command += ["--front-end-root", page]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, cwd=self.comfy, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def object_info(self) -> dict[str, dict]:
        """Schema of every node, by its type."""
        return self._request("/object_info")

    def lora_words(self, name: str) -> dict:
        """What the pack says of a LoRA (nodes/routes.py)."""
        return self._request(f"/loraclr/words?lora={urllib.parse.quote(name)}")

    def history(self, prompt_id: str) -> dict:
        """What `wait` returns, of a run that the host has said to have ended: it writes the history just after.

        For callers in whose thread an event loop runs. Raises TimeoutError.
        """
        for _ in range(100):
            if histories := self._request(f"/history/{prompt_id}"):
                return histories[prompt_id]
            time.sleep(0.1)
        raise TimeoutError(f"no result for {prompt_id}; see {self.log}")

    def queue(self, prompt: dict[str, dict]) -> str:
        """Queue a graph in the API format; returns its id. Raises NodeError if the host does not accept it."""
        try:
            return self._request("/prompt", {"prompt": prompt, "client_id": self.client_id})["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
            for node_id, node in answer.get("node_errors", {}).items():
                reasons = "; ".join(f"{e['message']}: {e['details']}" for e in node["errors"])
                raise NodeError(node_id, node["class_type"], reasons) from error
            reason = answer["error"]
            raise NodeError("?", "graph", f"{reason['message']}: {reason['details']}") from error

    def wait(self, prompt_id: str, on_message: OnMessage | None = None, timeout: float = 600.0) -> dict:
        """The history entry of a finished run: `outputs` by node id, `status`.

        `on_message` sees every event the page would see; progress texts arrive as type "progress_text".
        Raises NodeError if a node failed, RunInterruptedError if the run was interrupted, TimeoutError after `timeout` seconds.
        """
        history = asyncio.run(self._follow(prompt_id, on_message or (lambda message: None), timeout))
        for event, data in history["status"]["messages"]:
            if event == "execution_error":
                message = f"{data['exception_type']}: {data['exception_message'].strip()}"
                raise NodeError(data["node_id"], data["node_type"], message, "".join(data["traceback"]))
            if event == "execution_interrupted":
                raise RunInterruptedError(f"interrupted in node {data['node_id']} ({data['node_type']})")
        return history

    def clear_history(self) -> None:
        """What the page's history can do, too: the host keeps every run's graph and messages until it is told not to."""
        self._request("/history", {"clear": True})

    def interrupt(self) -> None:
        """Stop the running graph; its `wait` raises RunInterruptedError."""
        self._request("/interrupt", {})

    def set_settings(self, settings: dict[str, object]) -> None:
        """The user's settings of the page, which it reads when it is opened."""
        self._request("/settings", settings)

    async def _follow(self, prompt_id: str, on_message: OnMessage, timeout: float) -> dict:
        deadline = time.monotonic() + timeout
        url = f"http://{self.address}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as events:
            while time.monotonic() < deadline:
                if history := self._request(f"/history/{prompt_id}").get(prompt_id):
                    return history
                # Messages may have been sent before this connection stood: the history has the last word.
                quiet_at = time.monotonic() + 0.5
                while (left := quiet_at - time.monotonic()) > 0:
                    try:
                        message = _event(await events.receive(timeout=left))
                    except TimeoutError:
                        break
                    if message:
                        on_message(message)
                        if message["type"] in ENDS:
                            break
        raise TimeoutError(f"no result for {prompt_id} within {timeout:g} s; see {self.log}")

    def _wait_until_up(self, timeout: float = 300.0) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}; see {self.log}")
            try:
                self._request("/system_stats")
                return
            except OSError:
                time.sleep(0.5)
        raise TimeoutError(f"the server did not answer within {timeout:g} s; see {self.log}")

    def _request(self, path: str, body: dict | None = None) -> dict:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://{self.address}{path}", data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "{}")


def _event(message: aiohttp.WSMessage) -> dict | None:
    """What the host sent, as {"type", "data"}; None for previews."""
    if message.type == aiohttp.WSMsgType.TEXT:
        return json.loads(message.data)
    if message.type == aiohttp.WSMsgType.BINARY:
        kind, length = struct.unpack_from(">II", message.data)
        if kind == BINARY_TEXT:
            node, text = message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()
            return {"type": "progress_text", "data": {"node": node, "text": text}}
        return None
    raise ConnectionError(f"the server closed the connection ({message.type.name})")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
