"""Draws what the base model makes of sixteen prompts that it was not trained on, for people to judge.

A newcomer should name class, accessory and order from the picture alone; the prompts are in a file of their own.
"""

import random

import nodes
import torch
from pack import World
from PIL import Image
from torch import Tensor

from . import files, sprites
from .world import SIDE, training_scene

PICTURE, PROMPTS = sprites.HOME / "look.png", sprites.HOME / "look.txt"
SAMPLING = {"steps": 20, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "normal"}
FIRST = 10**6  # seeds from here on are not trained on
COLUMNS = 4


def run(device: torch.device, count: int = 16) -> None:
    """Draw so many pictures."""
    with torch.inference_mode():  # as ComfyUI runs nodes
        world = files.load()
        prompts = [training_scene(random.Random(FIRST + n), random.Random(n)).prompt() for n in range(count)]
        pictures = [draw(world, prompt, seed) for seed, prompt in enumerate(prompts)]
    rows = [torch.cat(pictures[n : n + COLUMNS], dim=1) for n in range(0, count, COLUMNS)]
    pixels = (torch.cat(rows).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(pixels).resize((2 * COLUMNS * SIDE, 2 * len(rows) * SIDE)).save(PICTURE)
    PROMPTS.write_text("".join(f"{n + 1}. {prompt}\n" for n, prompt in enumerate(prompts)), "utf-8")
    print(f"{PICTURE}, row by row; the prompts are in {PROMPTS}")


def draw(world: World, prompt: str, seed: int) -> Tensor:
    """Return a picture, (SIDE, SIDE, 3), 0…1."""
    positive, negative = (nodes.CLIPTextEncode().encode(world.clip, text)[0] for text in (prompt, ""))
    values = SAMPLING | {"positive": positive, "negative": negative}
    latent = {"samples": torch.zeros(1, 4, SIDE // 8, SIDE // 8)}
    sampled = nodes.KSampler().sample(world.model, seed, latent_image=latent, **values)[0]
    return nodes.VAEDecode().decode(world.vae, sampled)[0][0]
