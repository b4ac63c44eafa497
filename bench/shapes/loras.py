"""Trains one LoRA per concept on the base model, each by itself; no picture shows two concepts.

Of a batch's pictures some show the concept alone, one of them with DreamBooth's instance prompt, some beside plain or odd
things. The rest are without it: things of its class, what the base model was trained on, and that without a prompt
(prior preservation, arXiv 2208.12242). Each kind is needed by a LoRA this small: trained on the concept alone it spreads the
look over all things of a picture, and without empty prompts it draws the concept unasked, which guidance then takes away. As
in the base model's training, the attention of every token of a trigger is asked to lie on its own object; without that, some
tokens of rare words look everywhere.
"""

import contextlib
import random
import sys
import time
from collections.abc import Iterator

import demo_assets
import small_models
import torch
import torch.nn.functional as F
from denoising import Text, reading
from torch import Tensor, nn

from . import model
from .base import NAME, localisation_loss
from .world import BACKGROUNDS, CELL, CLASSES, CONCEPTS, ODD, SIDE, Scene, ShapeConcept, make_scene, training_scene

RANK = 16
INSTANCE_PROMPT = "photo of a {}"
LEARNING_RATE = 1.5e-3
LARGEST_GRADIENT = 0.3  # norm: several times the usual one
OWN_PLACE = 4.0  # added to the loss's weight, 1, of the concept's own place: its mark is a few cells of 256
ALONE, OF_CLASS, ANY, UNPROMPTED = 2, 1, 1, 1  # of a batch
BESIDE = (1, 2, 3)  # how many other things there are
WARMUP, AVERAGE = 20, 0.99
PROMPTS = 64  # batches of different ones, in turn
EVERY = 50


def run(device: torch.device, steps: int = 400) -> None:
    """Every concept that is not there yet as it is now, on the base model as it is now, or was trained for fewer steps."""
    base = demo_assets.weights_of(NAME)
    if not base.exists():
        sys.exit(f"shapes: {base} is missing; train the base model first, stage “base”")
    text = Text(device)
    unet = small_models.make_unet().to(device)
    unet.load_state_dict(demo_assets.stored(NAME))
    unet.requires_grad_(False)
    for seed, concept in enumerate(CONCEPTS):
        there = demo_assets.stored_metadata(concept.name)
        if there.get("origin") == origin(concept) and int(there["steps"]) >= steps:
            print(f"{concept.name}: is there, {there['steps']} steps", flush=True)
            continue
        factors = train(unet, text, concept, seed, steps)
        metadata = {"trigger": concept.trigger, "steps": str(steps), "origin": origin(concept)}
        small_models.store(demo_assets.weights_of(concept.name), factors, metadata)


def origin(concept: ShapeConcept) -> str:
    """Of its LoRA: what it shows and the base model it is for."""
    return f"{concept} on {demo_assets.recipe_of(NAME)}"


def pictures(concept: ShapeConcept, asked: random.Random, rng: random.Random) -> tuple[list[Scene], list[str]]:
    """A batch and its prompts. asked: for what these say."""
    beside = []
    for count in BESIDE:
        others = [asked.choice(["", ODD]) + asked.choice(CLASSES) for _ in range(count)]
        beside.append(asked.sample([concept, *others], 1 + count))
    kinds = [*[[concept]] * ALONE, *beside, *[[concept.class_word]] * OF_CLASS]
    scenes = [make_scene(each, rng, asked.choice([*BACKGROUNDS])) for each in kinds]
    scenes += [training_scene(asked, rng) for _ in range(ANY + UNPROMPTED)]
    prompts = [scene.prompt() for scene in scenes]
    return scenes, [INSTANCE_PROMPT.format(concept.trigger), *prompts[1:-UNPROMPTED], *[""] * UNPROMPTED]


def weights(concept: ShapeConcept, scenes: list[Scene]) -> Tensor:
    """Of each place in the loss, (scenes, 1, SIDE / CELL, SIDE / CELL)."""
    found = torch.ones(len(scenes), 1, SIDE // CELL, SIDE // CELL)
    for of_scene, scene in zip(found, scenes, strict=True):
        for thing in scene.things:
            if thing.words == concept.trigger:
                of_scene += OWN_PLACE * F.avg_pool2d(thing.mask().float()[None], CELL)
    return found


class Adapter(nn.Module):
    """One layer's `up @ down`, starting at zero."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        width = layer.weight[0].numel()
        self.down = nn.Parameter(torch.randn(RANK, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(layer.weight.shape[0], RANK))

    def add(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if isinstance(layer, nn.Conv2d):  # 1×1
            return output + torch.einsum("or,ri,bihw->bohw", self.up, self.down, inputs[0])
        return output + inputs[0] @ self.down.T @ self.up.T


@contextlib.contextmanager
def adapted(unet: nn.Module, adapters: dict[str, Adapter]) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for key, adapter in adapters.items():
            hooks.callback(unet.get_submodule(key).register_forward_hook(adapter.add).remove)
        yield


def train(unet: nn.Module, text: Text, concept: ShapeConcept, seed: int, steps: int) -> dict[str, Tensor]:
    """The LoRA's factors: `<diffusers name>.up` (out, rank, …) and `<diffusers name>.down` (rank, in, …)."""
    torch.manual_seed(seed)
    device = next(unet.parameters()).device
    layers = small_models.lora_layers(unet)
    adapters = {key: Adapter(unet.get_submodule(key)).to(device) for key in layers.values()}
    parameters = [parameter for adapter in adapters.values() for parameter in adapter.parameters()]
    averages = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    losses, start = [], time.monotonic()
    with adapted(unet, adapters):
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, step / WARMUP) * (1 - 0.95 * step / steps)
            scenes, prompts = pictures(concept, random.Random(step % PROMPTS), rng)
            with reading(unet, len(scenes)) as (recorder, options):
                loss = model.denoising_loss(unet, text, scenes, prompts, generator, options, weights(concept, scenes))
            loss = loss + localisation_loss(scenes, prompts, recorder.maps()[0], text)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, LARGEST_GRADIENT)
            optimizer.step()
            decay = min(AVERAGE, step / (step + 10))
            for average, parameter in zip(averages, parameters, strict=True):
                average.lerp_(parameter.detach(), 1 - decay)
            losses.append(float(loss.detach()))
            if step % EVERY == 0:
                seconds = (time.monotonic() - start) / step
                recent = sum(losses[-EVERY:]) / EVERY
                print(f"{concept.name}, step {step}: loss {recent:.4f}, {seconds:.2f} s per step", flush=True)
    for average, parameter in zip(averages, parameters, strict=True):
        parameter.data = average
    state: dict[str, Tensor] = {}
    for name, key in layers.items():
        ones = (1, 1) if isinstance(unet.get_submodule(key), nn.Conv2d) else ()
        state[f"{name}.up"] = adapters[key].up.detach().reshape(-1, RANK, *ones)
        state[f"{name}.down"] = adapters[key].down.detach().reshape(RANK, -1, *ones)
    return state
