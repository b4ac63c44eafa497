"""Runs the tests on every ComfyUI version that host.py knows, or on those named, and says which pass. Those of the page also
run with the newest page.

    python3 tools/hosts.py                             # every test on all, oldest first
    python3 tools/hosts.py oldest                      # on the oldest alone
    python3 tools/hosts.py page                        # those of the page, with the newest page
    python3 tools/hosts.py 0.24.1 -- tests/host_merge  # some, on one

All share one virtual environment: each version's own requirements are installed into it in turn, the default's at the end.
"""

import os
import subprocess
import sys
from pathlib import Path

import host

PAGE = "page"


def run(version: str, arguments: list[str]) -> int:
    environment = {**os.environ, "COMFYUI_VERSION": version}
    if version == PAGE:
        environment |= {"COMFYUI_VERSION": host.DEFAULT_VERSION, "COMFYUI_FRONTEND": host.NEWEST_PAGE}
    command = [sys.executable, str(Path(host.__file__)), *arguments]
    return subprocess.run(command, env=environment).returncode


def main(arguments: list[str]) -> None:
    named, _, rest = " ".join(arguments).partition("--")
    supported = [*host.SOURCES, PAGE]
    versions = supported[:1] if named.split() == ["oldest"] else named.split() or supported
    if unsupported := set(versions) - set(supported):
        sys.exit(f"hosts: there is no version {', '.join(unsupported)}; choose from {', '.join(supported)}")
    if run(versions[0], ["tools/browser.py"]):
        sys.exit(1)
    tests = {version: rest.split() or (["tests/page"] if version == PAGE else []) for version in versions}
    codes = {version: run(version, ["-m", "pytest", *tests[version]]) for version in versions}
    run(host.DEFAULT_VERSION, [])
    for version, code in codes.items():
        name = f"page {host.NEWEST_PAGE}" if version == PAGE else version
        print(f"ComfyUI {name}: {'passes' if code == 0 else f'fails ({code})'}")
    sys.exit(any(codes.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
