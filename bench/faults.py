"""Hundreds of runs of both workflows in one server, some of them cancelled on the way.

    python3 tools/host.py bench faults [runs]

The server starts with --cache-none, so every node runs every time. Three graphs take turns, on the demo's models and with
few steps: the merge, CLoRA, and both at once on one and the same model. Which seed, which run is cancelled, and at which of
its messages is drawn by chance, from a fixed seed.

    runs             how many there were
    cancelled        how many of them were stopped on the way
    compared         how many pictures and merged LoRAs were there a second time or more often
    different        how many of them were not, bit for bit, what they were the first time, alone or beside the other workflow
    memory_ratio     resident memory of the server: median of the last quarter / of the first quarter after the warm-up
    growth_mib       by which that memory grows per run after the warm-up, by least squares
    blocks_left      allocations of 32 bytes that safetensors leaves behind for each tensor it reads, whoever reads it
    memory_range     highest / lowest median of the same graph's ten neighbouring runs after the warm-up
"""

import gc
import hashlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import graph
import numpy as np
import psutil
import safetensors.torch
import torch
import workflows
from comfy_server import ComfyServer, RunInterruptedError
from demo_assets import write_assets
from PIL import Image
from sd15 import say

RUNS = 500
WARM_UP = 0.1  # of the runs: allocators and libraries take what they will keep
CANCELLED = 0.2  # of the runs
SEEDS = (1, 2)
STEPS = 4
# One heap for all threads, and glibc's own thresholds, which it otherwise raises: what is freed goes back to the system, and
# what is left is held by somebody.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
FEW_STEPS = {
    "KSampler": {"steps": STEPS},
    "LoRACLR_Merge": {"capture_steps": 2, "merge_text_encoder": False},
    # Not among the LoRAs of the user.
    "LoRACLR_SaveMergedLoRA": {"folder": "output", "if_exists": "overwrite"},
}
MERGED = Path("loraclr", "merged.safetensors")  # as the workflow calls it

Prompt = dict[str, dict]


class Run(NamedTuple):
    """One finished run. found: digest of each picture by its node, empty where it was cancelled; memory: bytes."""

    graph: str
    seed: int
    cancelled: bool
    digests: dict[str, str]
    memory: int


def main(names: list[str]) -> None:
    """Do the runs and print RESULT. names: their number, or nothing for RUNS."""
    print("RESULT", json.dumps(run(*map(int, names))))


def run(runs: int = RUNS) -> dict:
    write_assets()
    os.environ.update(ALLOCATOR)  # the server's, which starts with it
    with (
        tempfile.TemporaryDirectory(prefix="loraclr-faults-") as folder,
        ComfyServer(Path(folder) / "output", extra_args=("--cache-none",)) as server,
    ):
        done = run_all(server, graphs(server.object_info()), runs)
    return {"faults": summary(done)}


def graphs(infos: dict) -> dict[str, Prompt]:
    """Their nodes' ids say which workflow they are of; `both` has one checkpoint for the two."""
    merge, clora = quick(infos, workflows.MERGE), quick(infos, workflows.MAPS)
    (merge_checkpoint,), (clora_checkpoint,) = (
        [i for i in prompt if is_checkpoint(prompt[i])] for prompt in (merge, clora)
    )
    both = merge | {
        i: linked(node, {clora_checkpoint: merge_checkpoint}) for i, node in clora.items() if i != clora_checkpoint
    }
    return {"merge": merge, "clora": clora, "both": both}


def quick(infos: dict, name: str) -> Prompt:
    """A shipped workflow on the demo's models, with few steps and its name in its nodes' ids."""
    prompt = graph.api_format(workflows.described(name, infos, workflows.DEMO))
    names = {i: f"{name}_{i}" for i in prompt}
    renamed = {names[i]: linked(node, names) for i, node in prompt.items()}
    for node in renamed.values():
        node["inputs"].update(FEW_STEPS.get(node["class_type"], {}))
    return renamed


def linked(node: dict, names: dict[str, str]) -> dict:
    """The node with its links to nodes that are called otherwise now; a link is [node id, output]."""

    def value(given: object) -> object:
        return [names.get(given[0], given[0]), given[1]] if isinstance(given, list) else given

    return node | {"inputs": {name: value(given) for name, given in node["inputs"].items()}}


def is_checkpoint(node: dict) -> bool:
    return node["class_type"] == "CheckpointLoaderSimple"


def seeded(prompt: Prompt, seed: int) -> Prompt:
    return {
        i: node | {"inputs": node["inputs"] | ({"seed": seed} if node["class_type"] == "KSampler" else {})}
        for i, node in prompt.items()
    }


def run_all(server: ComfyServer, all_graphs: dict[str, Prompt], runs: int) -> list[Run]:
    rng = Random(0)
    process = psutil.Process(server.process.pid)
    messages: dict[str, int] = {}  # how many a whole run of a graph sends
    done: list[Run] = []
    for index in range(runs):
        name, seed = list(all_graphs)[index % len(all_graphs)], rng.choice(SEEDS)
        cancel_at = rng.randint(1, messages[name]) if name in messages and rng.random() < CANCELLED else None
        counted = Counter(server.interrupt, cancel_at)
        prompt = seeded(all_graphs[name], seed)
        try:
            history = server.wait(server.queue(prompt), counted)
            cancelled, results = False, digests(server, prompt, history)
        except RunInterruptedError:
            cancelled, results = True, {}
        server.clear_history()  # which grows with every run, by design: it is no leak
        if cancel_at is None:
            messages[name] = counted.messages
        done.append(Run(name, seed, cancelled, results, process.memory_info().rss))
        ending = f"cancelled at message {cancel_at}" if cancelled else f"{len(results)} results"
        say(f"run {index + 1} of {runs}: {name}, seed {seed}, {ending}, {done[-1].memory / 2**20:.0f} MiB")
    return done


class Counter:
    """A listener that counts a run's messages and stops the run at one of them."""

    def __init__(self, stop: Callable[[], None], at: int | None):
        self.stop, self.at, self.messages = stop, at, 0

    def __call__(self, message: dict) -> None:
        self.messages += 1
        if self.messages == self.at:
            self.stop()


def digests(server: ComfyServer, prompt: Prompt, history: dict) -> dict[str, str]:
    """Of every picture that was saved, by its node and place, and of the merged LoRA. The files are deleted."""
    result = {}
    for node_id, output in history["outputs"].items():
        if prompt[node_id]["class_type"] != "SaveImage":
            continue
        for place, image in enumerate(output["images"]):
            path = server.output / image["subfolder"] / image["filename"]
            pixels = np.asarray(Image.open(path).convert("RGB"))
            result[f"{node_id}, picture {place}"] = hashlib.sha256(pixels.tobytes()).hexdigest()
            path.unlink()
    if (merged := server.output / MERGED).exists():
        digest = hashlib.sha256()  # not of the file, whose metadata the library writes in any order
        for name, tensor in sorted(safetensors.torch.load_file(merged).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        result["merged LoRA"] = digest.hexdigest()
        merged.unlink()
    return result


def summary(done: list[Run]) -> dict:
    first: dict[tuple[int, str], str] = {}
    compared, different = 0, []
    for index, run in enumerate(done):
        for what, digest in run.digests.items():
            compared += (run.seed, what) in first
            if digest != first.setdefault((run.seed, what), digest):
                different.append(f"run {index + 1} ({run.graph}, seed {run.seed}): {what}")
    warm = done[round(WARM_UP * len(done)) :]
    quarter = max(1, len(warm) // 4)
    begin, end = (statistics.median(r.memory for r in part) for part in (warm[:quarter], warm[-quarter:]))
    result = {
        "runs": len(done),
        "cancelled": sum(run.cancelled for run in done),
        "compared": compared,
        "different": len(different),
        "memory_ratio": round(end / begin, 4),
        "growth_mib": round(statistics.linear_regression(range(len(warm)), [r.memory for r in warm]).slope / 2**20, 3),
        "blocks_left": round(blocks_left(), 2),
        "memory_range": round(max(memory_range(warm, name) for name in {run.graph for run in warm}), 4),
    }
    print(f"\n{len(done)} runs in one server without a cache, the first {len(done) - len(warm)} of them to warm up")
    print(f"{'graph':8} {'runs':>5} {'cancelled':>10} {'MiB at first':>13} {'MiB at last':>12}")
    for name in dict.fromkeys(run.graph for run in done):
        runs = [run for run in done if run.graph == name]
        memory = [f"{run.memory / 2**20:.0f}" for run in warm if run.graph == name] or ["-"]
        print(f"{name:8} {len(runs):5} {sum(run.cancelled for run in runs):10} {memory[0]:>13} {memory[-1]:>12}")
    print(f"results compared with their first: {compared}, different: {len(different)}")
    for run in different:
        print(f"  {run}")
    print(f"memory, last quarter / first quarter: {result['memory_ratio']}, highest / lowest: {result['memory_range']}")
    print(
        f"growth: {result['growth_mib']} MiB a run; safetensors leaves {result['blocks_left']} blocks per tensor read"
    )
    return result


def memory_range(warm: list[Run], name: str) -> float:
    """Highest / lowest memory of one graph's runs, as medians of ten neighbours: one run's rubbish is no leak."""
    memory = [run.memory for run in warm if run.graph == name]
    medians = [statistics.median(memory[at : at + 10]) for at in range(max(1, len(memory) - 9))]
    return max(medians) / min(medians)


def blocks_left(tensors: int = 100, times: int = 50) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        safetensors.torch.save_file({str(number): torch.zeros(1) for number in range(tensors)}, path)

        def read() -> int:
            for _ in range(times):
                safetensors.torch.load_file(path)
            gc.collect()
            return sys.getallocatedblocks()

        before = read()  # the first reads fill caches
        return (read() - before) / (tensors * times)
