"""The script that captures a folder of LoRAs on several servers, of which one is killed half way."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

from comfy_server import ComfyServer

ROOT = Path(__file__).resolve().parent.parent.parent
PREFIX = "loraclr_demo_b"  # ball, ball2, box, box2


def test_a_server_killed_half_way_loses_no_capture_and_makes_none_twice(tmp_path):
    user = tmp_path / "user"
    user.mkdir()
    extra = ("--user-directory", str(user))
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(ComfyServer(tmp_path / name / "output", extra_args=extra))
            for name in ("first", "second")
        ]
        script = subprocess.Popen(
            [sys.executable, str(ROOT / "tools" / "capture_library.py"), "--servers"]
            + [server.address for server in servers]
            + ["--checkpoint", "loraclr_demo.safetensors", "--loras", PREFIX, "--steps", "4", "--size", "256"],
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(script.kill)
        wait_until(lambda: servers[1]._request("/queue")["queue_running"])
        servers[1].process.kill()
        said, _ = script.communicate(timeout=150)
    assert script.returncode == 0, said
    assert f"{servers[1].address}: went away during" in said
    assert "4 captured, 0 failed, 0 not tried" in said
    assert said.count("1 of 1 concepts captured") == 4
    assert len(list((user / "loraclr_captures").iterdir())) == 4


def wait_until(condition, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
