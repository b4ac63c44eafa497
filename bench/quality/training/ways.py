"""The ways of training that are compared, and the LoRAs they give: each concept by the node **Train Concept LoRA**.

As a user would, with twelve pictures of the concept alone, whose captions say the background and nothing else. No picture
shows anything beside it, and attention is not told where to look, as it is for the LoRAs that the demo ships (`shapes.loras`).
"""

import contextlib
import hashlib
import inspect
import random
from pathlib import Path
from typing import NamedTuple

import folder_paths
import pack
from pack import World
from sd15 import say
from shapes.world import BACKGROUNDS, CLASSES, CONCEPTS, Scene, ShapeConcept, make_scene

from ..cells import hash_weights, strip_documentation
from ..methods import COMMON, ROOT, code
from . import class_pictures

NODE = "LoRACLR_TrainConcept"
PICTURES = 12  # of a concept
# Of every way. The learning rate is the world's: a concept's mark is a few cells of 256.
TRAINING = {"steps": 200, "learning_rate": 2e-3, "rank": 16, "batch": 4, "preview_every": 0}


class Way(NamedTuple):
    """What a way sets on top of TRAINING, the other classes for `beside` and the node's defaults; what it is given beside pictures."""

    settings: dict
    masks: bool = False
    class_pictures: bool = False


WAYS = {
    "plain": Way({"preservation": 0.0}),
    "paper": Way({"preserve_prompts": "class (paper)", "weighting": "noise (paper)", "beside": ""}),
    "default": Way({}),
    "class pictures": Way({"beside": ""}, class_pictures=True),
    "nothing beside": Way({"beside": ""}),
    "class prompts": Way({"preserve_prompts": "class (paper)"}),
    "outside": Way({"outside": 0.5}, masks=True),
    "preservation 0.3": Way({"preservation": 0.3}),
    "preservation 10": Way({"preservation": 10.0}),
}
COMPARED = ("plain", "paper", "default", "class pictures")  # with all of TRAINED, alone and together
IDEAS = tuple(way for way in WAYS if way not in COMPARED)  # each changes the default; with one concept, alone
TRAINED = CONCEPTS[:4]


def concepts_of(way: str) -> tuple[ShapeConcept, ...]:
    """Return the concepts that are trained in a way."""
    return TRAINED if way in COMPARED else TRAINED[:1]


def scenes(concept: ShapeConcept) -> list[Scene]:
    """Return what the concept's pictures show: it alone, on each background in turn."""
    rng, backgrounds = random.Random(concept.name), list(BACKGROUNDS)
    return [make_scene([concept], rng, backgrounds[number % len(backgrounds)]) for number in range(PICTURES)]


def settings(way: str, concept: ShapeConcept) -> dict:
    """Return the values of the node's widgets."""
    others = {"beside": ", ".join(word for word in CLASSES if word != concept.class_word)}
    return pack.defaults(NODE) | TRAINING | others | WAYS[way].settings


def fingerprint(way: str, concept: ShapeConcept) -> str:
    """Hash all that a LoRA depends on: settings, pictures, code and weights."""
    patterns = (*COMMON, "loraclr_core/train/*.py", "loraclr_core/host/train/*.py", "nodes/train.py")
    files = ("bench/shapes/world.py", *code(patterns, set()))
    parts = [
        sorted(settings(way, concept).items()),
        WAYS[way].masks,
        *([strip_documentation(inspect.getsource(class_pictures))] if WAYS[way].class_pictures else []),
        concept,
        *(strip_documentation(inspect.getsource(function)) for function in (scenes, train)),
        *(strip_documentation((ROOT / path).read_text("utf-8")) for path in files),
        *hash_weights(),
    ]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def lora_name(way: str, concept: ShapeConcept) -> str:
    """Return the LoRA's file name, another one for other code."""
    return f"loraclr_bench_{way.replace(' ', '-')}_{concept.name}_{fingerprint(way, concept)}.safetensors"


def ensure_lora(world: World, way: str, concept: ShapeConcept) -> str:
    """Train the LoRA unless it is there, and return its file name."""
    name = lora_name(way, concept)
    if not (Path(folder_paths.get_folder_paths("loras")[0]) / name).exists():
        say(f"training {concept.name}, {way}")
        train(world, way, concept, name.removesuffix(".safetensors"))
    return name


def train(world: World, way: str, concept: ShapeConcept, name: str) -> None:
    """Train one concept through the node, as the executor runs it: every input is a list."""
    shown = scenes(concept)
    values = settings(way, concept) | world._asdict()
    values |= {"name": name, "trigger": concept.trigger, "class_word": concept.class_word}
    others, other_captions = class_pictures.paint(world, concept) if WAYS[way].class_pictures else ([], [])
    node = pack.node(NODE)
    node.VALIDATE_CLASS()
    with class_pictures.learned() if WAYS[way].class_pictures else contextlib.nullcontext():
        node.PREPARE_CLASS_CLONE(None).execute(
            **{key: [value] for key, value in values.items()},
            images=[scene.picture().movedim(0, -1)[None] for scene in shown],
            captions=[scene.prompt() for scene in shown],
            masks=[scene.things[0].mask().float()[None] for scene in shown] if WAYS[way].masks else None,
            others=others,
            other_captions=other_captions,
        )
