"""Digests of what the pack makes, to show that a change of its code changes no merged LoRA and no picture.

    python3 tools/host.py bench digests before.json   # before the change: records them
    python3 tools/host.py bench digests before.json   # after it: compares with what was recorded

The demo's workflows through a server, a merge by each solver and setting that has code of its own, and a picture by the
sampler for each of the quality bench's headline settings. Digests compare on one machine with one number of threads.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import demo
import nodes
import numpy as np
import pack
import torch
import workflows
from comfy_server import ComfyServer
from pack import World
from PIL import Image
from quality.methods import LATENT, Ask, chain
from quality.rows import ROWS
from shapes.world import CONCEPTS
from torch import Tensor

GROUP = CONCEPTS[:2]
MERGES = {
    "exact": {},
    "exact, margin": {"margin": 0.5, "margin_mode": "relative"},
    "exact, anchor": {"anchor_weight": 0.5},
    "exact, distilled": {"distillation_steps": 3},
    "exact, without text encoder": {"merge_text_encoder": False},
    "adamw": {"solver": "adamw (paper)"},
    "sum": {"solver": "sum (baseline)"},
}
SAMPLED = ("clora", "clora-updates", "clora-no-masks", "clora-composed-surroundings", "clora-updates-paper")
STEPS = 6


def digest(*tensors: Tensor) -> str:
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return content.hexdigest()[:16]


def demo_pictures() -> Iterator[tuple[str, str]]:
    """Pictures of the demo's three workflows, by the server."""
    with ComfyServer(demo.OUTPUT, log=demo.DEMO / "server.log") as server:
        for name in (workflows.MERGE, workflows.REUSE, workflows.MAPS):
            shown = demo.run(server, name)
            for path in demo.pictures(shown["Picture"]):
                yield f"demo: {name}", digest(torch.from_numpy(np.asarray(Image.open(path))))


def merges(world: World) -> Iterator[tuple[str, str]]:
    """Return the merged LoRA of each setting. Its keys are sorted: ComfyUI keeps the names of layers in sets."""
    for name, settings in MERGES.items():
        values = {"model": world.model, "clip": world.clip, "concepts": chain(GROUP), "latent": LATENT}
        lora = pack.run("LoRACLR_Merge", **values, capture_steps=4, **settings)[2]
        keys = hashlib.sha256("\n".join(sorted(lora)).encode()).hexdigest()[:8]
        yield f"merge: {name}", f"{keys} {digest(*(lora[key] for key in sorted(lora)))}"


def pictures(world: World) -> Iterator[tuple[str, str]]:
    """A picture of each setting of the sampler, as a latent."""
    ask = Ask(GROUP, GROUP, (), "in fog", 0)
    for name in SAMPLED:
        method = ROWS[name]
        model, positive, negative = method.prepare(world, GROUP, **method.settings)(ask)
        latent = nodes.common_ksampler(model, 0, STEPS, 3.0, "dpmpp_2m", "normal", positive, negative, LATENT)[0]
        yield f"sampler: {name}", digest(latent["samples"])


def main(names: list[str]) -> None:
    if len(names) != 1:
        sys.exit("digests: name the file that they are recorded in, or compared with")
    path = Path(names[0])
    with torch.inference_mode():
        world = pack.demo_models()
        digests = dict(merges(world)) | dict(pictures(world)) | dict(demo_pictures())
    for name, value in digests.items():
        print(f"{name}: {value}")
    if not path.exists():
        path.write_text(json.dumps(digests, indent=1) + "\n", "utf-8")
        print(f"recorded in {path}")
        return
    recorded = json.loads(path.read_text("utf-8"))
    different = [name for name in digests | recorded if digests.get(name) != recorded.get(name)]
    if different:
        sys.exit(f"digests: different from {path}: {', '.join(different)}")
    print(f"all {len(digests)} are as in {path}")
