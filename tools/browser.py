"""Find a browser for the tests of the page, or install one.

    python3 tools/host.py tools/browser.py

Takes the first of: a Chromium, Chrome or Edge that is installed; Debian's or Ubuntu's package, where this runs as root; the
Chromium that Playwright downloads. Where none can be had it says what to install, before any test has begun.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
MISSING = (
    "The tests of the page need a browser, and none could be installed. Install Chromium or Chrome (on Debian:"
    ' apt install chromium), or leave these tests out: make test ARGS="--ignore=tests/page"'
)


def say(message: str) -> None:
    print(f"browser: {message}", file=sys.stderr, flush=True)


def find_browser() -> str | None:
    """Return the path of a browser that starts, or None."""
    commands = filter(None, map(shutil.which, COMMANDS))
    return next(filter(_starts, [*commands, _downloaded()]), None)


def ensure_browser() -> str:
    """Return the path of a browser, installed if necessary. Exit with what to do where none can be had."""
    for attempt in (find_browser, _install_package, _download):
        if path := attempt():
            return path
    sys.exit(MISSING)


def _downloaded() -> str:
    """Return where Playwright keeps its own Chromium, whether or not it is there."""
    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def _starts(path: str) -> bool:
    """Return whether it does; Ubuntu's package without snap is a script that only says what to install."""
    if not Path(path).exists():
        return False
    try:
        process = subprocess.run([path, "--version"], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return process.returncode == 0


def _install_package() -> str | None:
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return None
    say("installing the package chromium")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "chromium"]):
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    return find_browser()


def _download() -> str | None:
    say("downloading Playwright's Chromium (about 170 MB)")
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], capture_output=True)
    return find_browser()


if __name__ == "__main__":
    say(ensure_browser())
