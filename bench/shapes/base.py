"""Trains the base model's U-Net on pictures of plain shapes.

Its average of the weights is what is stored; some prompts are dropped, for guidance. The run's state is kept in
`.host/shapes/`, so it goes on where it was stopped; without one it goes on from the shipped weights, if there are any.

CLoRA lives on a class word's attention lying on its own object. Models trained on many pictures have this of themselves;
one this small draws clear shapes long before (ratio inside to outside 1.1 after 2,900 steps), so a second term asks for it:
wherever a word's mean attention inside its object is less than `LOCALISED` times that outside. It asks for no more.
"""

import math
import random
import time
from pathlib import Path

import demo_assets
import torch
import torch.nn.functional as F
from denoising import Text, initialise, keep, noised, reading
from small_models import make_unet, store
from torch import Tensor

from . import model
from .world import CELL, CLASSES, Scene, make_scene, training_scene

STATE = model.STATES / "base.pt"
NAME = "unet"

BATCH = 8
LEARNING_RATE = 2e-4
WARMUP, COOLDOWN = 100, 2000  # steps; the rate falls to zero in the last ones, without which backgrounds stay speckled
DROPPED = 0.1
PROMPTS = 250  # batches of different ones, in turn: encoding takes a third of a step; places are always new
AVERAGE = 0.998
EVERY = 250  # steps between reports, each kept

LOCALISED, LOCALISATION_WEIGHT = 5.0, 0.05

NOISE_LEVELS = (300, 500, 700)


class Trainer:
    def __init__(self, device: torch.device):
        self.device = device
        self.text = Text(device)
        self.unet = make_unet().train().to(device)
        self.step = 0
        if demo_assets.weights_of(NAME).exists():
            self.unet.load_state_dict(demo_assets.stored(NAME))
        else:
            initialise(self.unet)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
        self.average = {key: tensor.clone() for key, tensor in self.unet.state_dict().items()}
        if STATE.exists():
            state = torch.load(STATE, map_location=device, weights_only=True)
            self.unet.load_state_dict(state["unet"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]

    def keep(self) -> None:
        state = {"unet": self.unet.state_dict(), "optimizer": self.optimizer.state_dict()}
        keep(STATE, {**state, "average": self.average, "step": self.step})

    def train(self, steps: int) -> None:
        """Up to so many steps in all."""
        losses, start = [], time.monotonic()
        while self.step < steps:
            losses.append(self.one_step((steps - self.step) / COOLDOWN))
            if self.step % EVERY == 0 or self.step == steps:
                seconds = (time.monotonic() - start) / len(losses)
                print(
                    f"step {self.step}: loss {sum(losses) / len(losses):.4f}, {seconds:.2f} s per step;"
                    f" attention inside over outside {self.attention()}",
                    flush=True,
                )
                self.keep()
                losses, start = [], time.monotonic()

    def one_step(self, most: float = 1.0) -> float:
        """most: of the learning rate."""
        rng = random.Random(self.step)
        generator = torch.Generator().manual_seed(self.step)
        asked = random.Random(self.step % PROMPTS)
        scenes = [training_scene(asked, rng) for _ in range(BATCH)]
        prompts = ["" if rng.random() < DROPPED else scene.prompt() for scene in scenes]

        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (self.step + 1) / WARMUP, most)
        with reading(self.unet, BATCH) as (recorder, options):
            loss = model.denoising_loss(self.unet, self.text, scenes, prompts, generator, options)
        loss = loss + localisation_loss(scenes, prompts, recorder.maps()[0], self.text)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(AVERAGE, self.step / (self.step + 10))
        with torch.no_grad():
            for key, tensor in self.unet.state_dict().items():
                self.average[key].lerp_(tensor, 1 - decay)
        return float(loss.detach())

    def attention(self) -> str:
        return ", ".join(f"{attention_ratio(self.unet, self.text, level):.2f} at {level}" for level in NOISE_LEVELS)

    def export(self) -> Path:
        path = demo_assets.weights_of(NAME)
        store(path, self.average, {})
        return path


@torch.no_grad()
def attention_ratio(unet: torch.nn.Module, text: Text, timestep: int, count: int = 16) -> float:
    """Attention of a class word inside its own object over that outside of it, the geometric mean of pictures of two."""
    rng = random.Random(1)
    scenes = [make_scene([*rng.sample(CLASSES, 2)], rng) for _ in range(count)]
    latents = model.encode(torch.stack([scene.picture() for scene in scenes]))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    timesteps = torch.full((count,), timestep)
    noisy = noised(latents, noise, timesteps).to(text.device)
    with reading(unet, count) as (recorder, options):
        context = text([scene.prompt() for scene in scenes])
        unet(noisy, timesteps.float().to(text.device), context, transformer_options=options)
    maps = recorder.maps()[0].cpu()
    found = [
        ratio
        for scene, of_scene in zip(scenes, maps, strict=True)
        for ratio in ratios(scene, scene.prompt(), of_scene, text)
    ]
    return float(torch.stack(found).log().mean().exp())


def ratios(scene: Scene, prompt: str, maps: Tensor, text: Text) -> list[Tensor]:
    """maps: (h, w, 77) of one picture -> mean attention inside over outside, for each token of what each thing is called."""
    found = []
    called = dict.fromkeys(thing.words for thing in scene.things)
    for words in called:
        if any(words in other and words != other for other in called):
            continue  # a plain thing of a concept's class: its word stands twice
        masks = torch.stack([thing.mask() for thing in scene.things if thing.words == words])
        inside = F.avg_pool2d(masks.any(dim=0).float()[None], CELL)[0].to(maps)
        outside = 1 - inside
        for places in zip(*text.positions(prompt, words), strict=True):
            of_token = maps[..., list(places)].mean(dim=-1)
            found.append((of_token * inside).sum() / inside.sum() * outside.sum() / (of_token * outside).sum())
    return found


def localisation_loss(scenes: list[Scene], prompts: list[str], maps: Tensor, text: Text) -> Tensor:
    """What attention lacks of being LOCALISED times denser on a token's own object than elsewhere; no more is asked.

    maps: (scenes, h, w, 77)
    """
    asked = [each for each in zip(scenes, prompts, maps, strict=True) if each[1]]
    found = [ratio for scene, prompt, of_scene in asked for ratio in ratios(scene, prompt, of_scene, text)]
    if not found:
        return torch.zeros(())
    lacking = (math.log(LOCALISED) - torch.stack(found).log()).clamp(min=0)
    return LOCALISATION_WEIGHT * lacking.square().mean().cpu()


def run(device: torch.device, steps: int = 8100) -> None:
    trainer = Trainer(device)
    trainer.train(steps)
    print(f"stored: {trainer.export()}")
