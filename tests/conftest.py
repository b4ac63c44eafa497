"""The real host, in this process: ComfyUI on the CPU, with the pack loaded by ComfyUI's own loader."""

import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = Path(os.environ.get("COMFYUI_PATH", ""))

if not (COMFYUI / "main.py").is_file():
    raise pytest.UsageError("These tests run inside a real ComfyUI: start them with `make test`.")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Workers, and the servers they start, share the cores: two processes with two threads each hinder each other.
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // int(workers)))

sys.path[:0] = [str(COMFYUI), str(ROOT / "tools"), str(ROOT / "bench"), str(Path(__file__).parent)]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing(False)

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.model_management  # noqa: E402
import demo_assets  # noqa: E402
import folder_paths  # noqa: E402
import pack  # noqa: E402
import random_models  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from comfy.sd import CLIP, VAE  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402
from running import forget_dead_models, load, merge  # noqa: E402

pack.load()

DEMO_LORAS = {"loraclr_random_cat.safetensors": "sks cat", "loraclr_random_dog.safetensors": "zwx dog"}
DEMO_LORAS |= {"loraclr_random_bird.safetensors": "qvk bird"}


class Demo(NamedTuple):
    """A small checkpoint of random weights, as the stock loader gives it."""

    model: ModelPatcher
    clip: CLIP
    vae: VAE


def pytest_addoption(parser):
    parser.addoption("--pictures", action="store_true", help="take every step in runs whose pictures are shown")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """Model files are made once, by all cores, before the workers start."""
    if not hasattr(session.config, "workerinput"):
        demo_assets.write_assets()
        random_models.write_assets()


def pytest_collection_modifyitems(items):
    """A worker takes whole files: the longest begin, so that both have something to do until the end."""
    items.sort(key=lambda item: item.path.name not in ("test_page.py", "test_server.py"))


@pytest.fixture(scope="session")
def demo() -> Demo:
    with torch.inference_mode():
        return Demo(*random_models.load())


@pytest.fixture(scope="session", autouse=True)
def loras_folder(tmp_path_factory):
    """Where tests write LoRAs and merges are saved: the first of the host's loras folders."""
    folder = tmp_path_factory.mktemp("loras")
    folder_paths.add_model_folder_path("loras", str(folder), is_default=True)
    return folder


@pytest.fixture
def offloaded(monkeypatch):
    """A device with room for half of a model: the host casts and patches the other weights as they are used."""
    load = ModelPatcher.load

    def load_half(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        load(self, device_to, self.model_size() // 2, force_patch_weights, False)

    comfy.model_management.unload_all_models()
    monkeypatch.setattr(ModelPatcher, "load", load_half)
    yield
    comfy.model_management.unload_all_models()


@pytest.fixture(scope="session")
def concepts(demo):
    """The three demo concepts: kohya, PEFT and LoHa files."""
    with torch.inference_mode():
        chain = None
        for lora_name, trigger in DEMO_LORAS.items():
            chain, _, _ = load(lora_name, trigger, chain)
        return chain


@pytest.fixture(scope="session")
def merged(demo, concepts):
    """MODEL, CLIP, lora, merge_info, report."""
    with torch.inference_mode():
        return merge(demo, concepts, merge_text_encoder=True)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A worker's own server with the demo's models: settings that no run has touched, and a loras folder to save to."""
    folder = tmp_path_factory.mktemp("server")
    user, loras = folder / "user", folder / "loras"
    user.mkdir()
    loras.mkdir()
    models = folder / "models.yaml"
    models.write_text(json.dumps({"tests": {"loras": str(loras), "is_default": True}}))  # JSON is YAML, too
    extra = ("--user-directory", str(user), "--extra-model-paths-config", str(models))
    with ComfyServer(folder / "output", extra_args=extra) as running:
        running.set_settings({"Comfy.TutorialCompleted": True})
        yield running


@pytest.fixture(scope="session")
def infos(server) -> dict:
    """Schemas of the server's nodes."""
    return server.object_info()


@pytest.fixture(scope="module", autouse=True)
def _no_dead_models():
    """The host keeps a model in its list whose patcher is gone while its weights live, and collects all garbage at every load
    from then on: half a second, among all that a worker keeps.
    """
    yield
    forget_dead_models()


@pytest.fixture(autouse=True)
def _as_the_executor_runs_nodes():
    """ComfyUI runs nodes in inference mode, whose tensors autograd refuses."""
    torch.manual_seed(0)
    with torch.inference_mode():
        yield
