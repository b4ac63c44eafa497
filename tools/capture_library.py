"""Capture a folder of LoRAs on running ComfyUI servers that share a user folder; needs Python alone.

python tools/capture_library.py --servers 127.0.0.1:8188 127.0.0.1:8189 --checkpoint model.safetensors --loras characters

Each LoRA of the servers' loras folder whose name begins with --loras becomes one workflow with Capture Concept. The next
goes to whichever server is free; one that failed, or whose server went away, is tried again. Ends with a report.
"""

import argparse
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from dataclasses import dataclass, field

POLL_SECONDS = 0.5
# A server that answers none of so many requests in a row is given up.
UNANSWERED = 5


class JobError(RuntimeError):
    """The server answered that a workflow failed."""


@dataclass
class Jobs:
    """LoRAs that wait, run, are done, or failed; shared by the threads of all servers."""

    waiting: deque[str]
    tries: int
    done: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    running: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self) -> str | None:
        """Return the next LoRA, waiting while one that runs may come back; None when all have ended."""
        with self.changed:
            while not self.waiting and self.running:
                self.changed.wait()
            if not self.waiting:
                return None
            self.running += 1
            return self.waiting.popleft()

    def end(self, lora: str, report: str) -> None:
        with self.changed:
            self.running -= 1
            self.done[lora] = report
            self.changed.notify_all()

    def put_back(self, lora: str, reason: str, counts: bool) -> None:
        """Let a LoRA be tried again. counts: whether the fault may be its own, so that it fails after `tries`."""
        with self.changed:
            self.running -= 1
            self.failures[lora] = self.failures.get(lora, 0) + counts
            if self.failures[lora] >= self.tries:
                self.failed[lora] = reason
            else:
                self.waiting.append(lora)
            self.changed.notify_all()


def request(server: str, path: str, body: dict | None = None) -> dict:
    """Return a server's answer. Raises JobError where it refuses, OSError where it does not answer."""
    data = None if body is None else json.dumps(body).encode()
    url = f"{server if '://' in server else f'http://{server}'}{path}"
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=60
        ) as r:
            return json.loads(r.read() or "{}")
    except urllib.error.HTTPError as error:
        raise JobError(f"{server} refused: {error.read().decode(errors='replace')[:500]}") from error


def workflow(lora: str, options: argparse.Namespace) -> dict:
    """Return the capture of one LoRA as an API workflow; its trigger and class word are those in its file."""
    words = {"trigger": "", "class_word": "", "name": "", "strength_model": 1.0, "strength_clip": 1.0}
    size = {"width": options.size, "height": options.size, "batch_size": 1}
    capture = {"capture_prompts": options.prompts, "capture_steps": options.steps, "capture_seed": options.seed}
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": options.checkpoint}},
        "2": {"class_type": "LoRACLR_LoadConceptLoRA", "inputs": {"lora_name": lora, **words}},
        "3": {"class_type": "EmptyLatentImage", "inputs": size},
        "4": {
            "class_type": "LoRACLR_CaptureConcept",
            "inputs": {"model": ["1", 0], "clip": ["1", 1], "concepts": ["2", 0], "latent": ["3", 0], **capture}
            | {"merge_text_encoder": not options.without_text_encoder},
        },
    }


def run(server: str, graph: dict) -> str:
    """Return the report of a workflow. Raises JobError where it fails, OSError where the server goes away."""
    job = request(server, "/prompt", {"prompt": graph})["prompt_id"]
    unanswered = 0
    while True:
        time.sleep(POLL_SECONDS)
        try:
            # The queue first: a run that ends between the two is in the history.
            queue = request(server, "/queue")
            history = request(server, f"/history/{job}").get(job)
        except OSError:
            unanswered += 1
            if unanswered == UNANSWERED:
                raise
            continue
        unanswered = 0
        if history:
            break
        if job not in [entry[1] for entries in queue.values() for entry in entries]:
            raise ConnectionError(f"{server} was restarted")
    for event, data in history["status"]["messages"]:
        if event == "execution_error":
            raise JobError(f"{data['node_type']}: {data['exception_message'].strip()}")
    if history["status"]["status_str"] != "success":
        raise JobError("the run was interrupted")
    return " ".join(history["outputs"].get("4", {}).get("text", ["captured before"]))


def serve(server: str, jobs: Jobs, options: argparse.Namespace) -> None:
    """Run jobs on one server until none is left or it does not answer any more."""
    while (lora := jobs.take()) is not None:
        try:
            report = run(server, workflow(lora, options))
        except JobError as error:
            print(f"{server}: {lora} failed: {error}", flush=True)
            jobs.put_back(lora, str(error), counts=True)
        except (OSError, ValueError) as error:
            print(f"{server}: went away during {lora}: {error}", flush=True)
            jobs.put_back(lora, f"{server} went away", counts=False)
            return
        else:
            print(f"{server}: {lora}: {report}", flush=True)
            jobs.end(lora, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", required=True, help="addresses, such as 127.0.0.1:8188")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--loras", default="", help="what the names of the LoRAs begin with, such as a folder")
    parser.add_argument("--prompts", default="photo of a {trigger}")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--without-text-encoder", action="store_true")
    parser.add_argument("--tries", type=int, default=3, help="how often a LoRA may fail")
    return parser.parse_args()


def names(servers: list[str]) -> list[str]:
    """Return the names of all LoRAs, as the first server that answers knows them. Raises OSError."""
    for server in servers:
        try:
            info = request(server, "/object_info/LoRACLR_LoadConceptLoRA")["LoRACLR_LoadConceptLoRA"]
        except OSError as error:
            print(f"{server} does not answer: {error}")
            continue
        choices = info["input"]["required"]["lora_name"]
        return choices[1]["options"] if choices[0] == "COMBO" else choices[0]
    raise ConnectionError("no server answers: start ComfyUI on at least one of them")


def main() -> int:
    """Capture all LoRAs, print the report, and return how the script ended."""
    options = parse()
    jobs = Jobs(deque(name for name in names(options.servers) if name.startswith(options.loras)), options.tries)
    threads = [threading.Thread(target=serve, args=(server, jobs, options)) for server in options.servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"\n{len(jobs.done)} captured, {len(jobs.failed)} failed, {len(jobs.waiting)} not tried for lack of a server")
    for lora, reason in [*jobs.failed.items(), *((lora, "no server left") for lora in jobs.waiting)]:
        print(f"- {lora}: {reason}")
    return 1 if jobs.failed or jobs.waiting else 0


if __name__ == "__main__":
    sys.exit(main())
