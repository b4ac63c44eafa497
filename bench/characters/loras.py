"""Trains the concepts' LoRAs by the node **Train Concept LoRA**, as a user would.

Each is shown in a dozen pictures of it alone, in both styles, whose captions say its trigger, style, ground and props, and nothing
of its look. The LoRAs are landed in 8 bits; those that are measured are made from what was landed.
"""

import itertools
import json
import random
from pathlib import Path

import folder_paths
import pack
import torch
from loraclr.loraclr_core.host.train import output
from pack import World
from safetensors import safe_open
from safetensors.torch import load_file

from . import files
from .landed import BASE, land, landed, require
from .sprites import CLASSES, STYLES
from .world import CONCEPTS, GROUNDS, Character, Scene, make_scene

NODE = "LoRACLR_TrainConcept"
PICTURES = 12  # of a concept
TRAINING = {"learning_rate": 2e-3, "rank": 4, "batch": 4, "preview_every": 0}


def run(device: torch.device, steps: int = 200) -> None:
    """Train every concept that has no LoRA of so many steps for today's base model. ComfyUI chooses the device."""
    base_steps = require(BASE).steps
    missing = [concept for concept in CONCEPTS if not is_trained(concept, steps, base_steps)]
    print(f"{len(CONCEPTS) - len(missing)} of {len(CONCEPTS)} concepts are there", flush=True)
    if not missing:
        return
    with torch.inference_mode():  # as ComfyUI runs nodes
        world = files.load()
        for concept in missing:
            print(f"{concept.name}: training", flush=True)
            path = train(world, concept, steps, base_steps)
            land(concept.name, load_file(path), steps_of(path), base_steps)


def is_trained(concept: Character, steps: int, base_steps: int) -> bool:
    """Return whether a concept has a LoRA of so many steps, for the base model after `base_steps`."""
    found = landed(concept.name)
    return found is not None and found.trained_on == base_steps and found.steps >= steps


def train(world: World, concept: Character, steps: int, base_steps: int) -> Path:
    """Return the file of a LoRA that the node has trained; a training that was stopped goes on."""
    shown = scenes(concept)
    values = {"beside": ", ".join(word for word in CLASSES if word != concept.class_word)} | TRAINING | world._asdict()
    values |= {"steps": steps, "trigger": concept.trigger, "class_word": concept.class_word}
    values["name"] = f"loraclr_training_{concept.name}_{base_steps}"
    _, _, name, *_ = pack.run(
        NODE,
        **{key: [value] for key, value in values.items()},
        images=[scene.picture().movedim(0, -1)[None] for scene in shown],
        captions=[scene.prompt() for scene in shown],
    )
    # Where an earlier training's file has the name that was asked for, this one has another.
    return Path(folder_paths.get_folder_paths("loras")[0]) / name


def steps_of(path: Path) -> int:
    """Return how many steps a file of the node was trained for."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[output.TRAINING])["steps"]


def scenes(concept: Character) -> list[Scene]:
    """Return what the concept's pictures show: it alone, in each style on each ground in turn."""
    rng = random.Random(concept.name)
    looks = itertools.cycle(itertools.product(GROUNDS, STYLES))
    return [
        make_scene([concept], rng, asked=random.Random(number), ground=ground, style=style)
        for number, (ground, style) in zip(range(PICTURES), looks, strict=False)
    ]
