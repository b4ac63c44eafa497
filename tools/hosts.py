"""Runs the tests on every ComfyUI version that host.py knows, or on those named, and says which pass.

    python3 tools/hosts.py                             # every test on all, oldest first
    python3 tools/hosts.py oldest                      # on the oldest alone
    python3 tools/hosts.py 0.24.1 -- tests/host_merge  # some, on one

All share one virtual environment: each version's own requirements are installed into it in turn, the default's at the end.
"""

import os
import subprocess
import sys
from pathlib import Path

import host


def run(version: str, arguments: list[str]) -> int:
    environment = {**os.environ, "COMFYUI_VERSION": version}
    command = [sys.executable, str(Path(host.__file__)), *arguments]
    return subprocess.run(command, env=environment).returncode


def main(arguments: list[str]) -> None:
    named, _, rest = " ".join(arguments).partition("--")
    supported = list(host.SOURCES)
    versions = supported[:1] if named.split() == ["oldest"] else named.split() or supported
    if unsupported := set(versions) - set(supported):
        sys.exit(f"hosts: there is no version {', '.join(unsupported)}; choose from {', '.join(supported)}")
    if run(versions[0], ["tools/browser.py"]):
        sys.exit(1)
    codes = {version: run(version, ["-m", "pytest", *rest.split()]) for version in versions}
    run(host.DEFAULT_VERSION, [])
    for version, code in codes.items():
        print(f"ComfyUI {version}: {'passes' if code == 0 else f'fails ({code})'}")
    sys.exit(any(codes.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
