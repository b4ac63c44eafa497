"""All methods in a real ComfyUI: merge three small LoRAs, save, reload with the stock loader, compare the pictures; compose
two of them while sampling, and look at the masks; train one anew, and draw it with and without its trigger.

    make demo
    python3 tools/host.py tools/demo.py

Makes the models it needs (tools/demo_assets.py), starts a server of its own and stops it again.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
import workflows
from comfy_server import ComfyServer, NodeError, OnMessage
from graph import api_format
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".host" / "demo"
OUTPUT = DEMO / "output"
MERGED = "loraclr/merged.safetensors"  # as the workflows call it
FEW_STEPS = 60  # of training, and nothing painted beside the concept: enough to know it by


def say(message: str) -> None:
    print(f"demo: {message}", flush=True)


def show_progress(prompt: dict[str, dict]) -> OnMessage:
    """A listener that prints which node runs, every tenth of its way, and its progress texts but for their counts."""
    shown: dict[str, object] = {}

    def label(node_id: str) -> str:
        return prompt[node_id]["_meta"]["title"] if node_id in prompt else node_id

    def on_message(message: dict) -> None:
        kind, data = message["type"], message.get("data", {})
        node = data.get("display_node") or data.get("node")
        if node is None:
            return
        if kind == "executing":
            print(f"  {label(node)}", flush=True)
        elif kind == "progress" and (tenth := int(10 * data["value"] / (data["max"] or 1))) != shown.get(node):
            shown[node] = tenth
            print(f"  {label(node)}: {10 * tenth} %", flush=True)
        elif kind == "progress_text" and (counted := re.sub(r"\d+", "#", data["text"])) != shown.get(f"{node} text"):
            shown[f"{node} text"] = counted
            print(f"  {label(node)}: {data['text']}", flush=True)

    return on_message


def run(server: ComfyServer, name: str) -> dict[str, dict]:
    """Runs a shipped workflow on the demo's models; returns what its output nodes showed, by their titles."""
    say(f"running {name}")
    models = workflows.DEMO._replace(training={**workflows.DEMO.training, "steps": FEW_STEPS, "beside": ""})
    prompt = api_format(workflows.described(name, server.object_info(), models))
    history = server.wait(server.queue(prompt), show_progress(prompt), timeout=3600)
    return {prompt[node]["_meta"]["title"]: shown for node, shown in history["outputs"].items()}


def pictures(shown: dict) -> list[Path]:
    return [OUTPUT / image["subfolder"] / image["filename"] for image in shown["images"]]


def kept(server: ComfyServer, shown: dict) -> Path:
    """A preview, which the server deletes when it stops, among the output pictures."""
    (image,) = shown["images"]
    path = OUTPUT / "loraclr" / "clora_loss.png"
    shutil.copyfile(Path(server.scratch) / "temp" / image["subfolder"] / image["filename"], path)
    return path


def largest_difference(a: Path, b: Path) -> int:
    pixels = [np.asarray(Image.open(path).convert("RGB")).astype(int) for path in (a, b)]
    return int(np.abs(pixels[0] - pixels[1]).max())


def main() -> None:
    subprocess.run([sys.executable, str(Path(__file__).with_name("demo_assets.py"))], check=True)
    server = ComfyServer(OUTPUT, log=DEMO / "server.log", cpu=not torch.cuda.is_available())
    say("starting the server")
    try:
        with server:
            merged = run(server, workflows.MERGE)
            reloaded = run(server, workflows.REUSE)
            composed = run(server, workflows.MAPS)
            loss = kept(server, composed["Separation loss"])
            trained = run(server, workflows.TRAIN)
    except NodeError as error:
        print(error.traceback, file=sys.stderr)
        sys.exit(f"demo: node {error.node_id} ({error.node_type}) failed: {error.message}\nlog: {server.log}")

    lora = Path(os.environ["COMFYUI_PATH"]) / "models" / "loras" / MERGED
    compared = [*pictures(merged["Picture"]), *pictures(reloaded["Picture"])]
    print("\n".join(["", *merged["Report"]["text"], ""]))
    say(f"largest difference between the merged and the reloaded picture: {largest_difference(*compared)} of 255")
    for what, path in [
        ("merged picture", compared[0]),
        ("reloaded picture", compared[1]),
        *(("CLoRA picture", path) for path in pictures(composed["Picture"])),
        *(("CLoRA heat map", path) for path in pictures(composed["Heat maps"])),
        *(("CLoRA mask", path) for path in pictures(composed["Masks"])),
        ("CLoRA separation loss", loss),
        *(("trained, with the trigger", path) for path in pictures(trained["Picture: with trigger"])),
        *(("trained, without the trigger", path) for path in pictures(trained["Picture: without"])),
        *(("before training", path) for path in pictures(trained["Picture: before training"])),
        ("merged LoRA", lora),
        ("server log", server.log),
        ("workflows, to drag into the page", workflows.FOLDER),
    ]:
        say(f"{what}: {path}")


if __name__ == "__main__":
    main()
