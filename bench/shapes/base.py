"""Trains the base model's U-Net on pictures of plain shapes.

Min-SNR weighting (arXiv 2303.09556), an average of the weights, prompts dropped for guidance. The run's state is kept in
`.host/shapes/`, so it goes on where it was stopped; without one it goes on from the shipped weights, if there are any.
While it trains it tells how much more attention a class word pays to its own object than to the rest of the picture,
which CLoRA lives on.
"""

import random
import time
from pathlib import Path

import demo_assets
import torch
import torch.nn.functional as F
from loraclr.loraclr_core.host.attention import Read, Recorder, read_layers
from torch import Tensor

from . import model
from .model import Text
from .world import CELL, CLASSES, Scene, make_scene, training_scene

STATE = model.STATES / "base.pt"
NAME = "unet"

BATCH = 8
LEARNING_RATE = 2e-4
WARMUP = 100
DROPPED = 0.1
AVERAGE = 0.998
EVERY = 250  # steps between reports, each kept

NOISE_LEVELS = (300, 500, 700)


class Trainer:
    def __init__(self, device: torch.device):
        self.device = device
        self.text = Text(device)
        self.unet = model.make_unet().to(device, memory_format=torch.channels_last)
        self.step = 0
        shipped = model.WEIGHTS / f"{NAME}.safetensors"
        if shipped.exists():
            self.unet.load_state_dict(model.stored(shipped))
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
        model.keep(STATE, {**state, "average": self.average, "step": self.step})

    def train(self, steps: int) -> None:
        """Up to so many steps in all."""
        losses, start = [], time.monotonic()
        while self.step < steps:
            losses.append(self.one_step())
            if self.step % EVERY == 0 or self.step == steps:
                seconds = (time.monotonic() - start) / len(losses)
                print(
                    f"step {self.step}: loss {sum(losses) / len(losses):.4f}, {seconds:.2f} s per step;"
                    f" attention inside over outside {self.attention()}",
                    flush=True,
                )
                self.keep()
                losses, start = [], time.monotonic()

    def one_step(self) -> float:
        rng = random.Random(self.step)
        generator = torch.Generator().manual_seed(self.step)
        scenes = [training_scene(rng) for _ in range(BATCH)]
        prompts = ["" if rng.random() < DROPPED else scene.prompt() for scene in scenes]

        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (self.step + 1) / WARMUP)
        loss = model.denoising_loss(self.unet, self.text, scenes, prompts, generator)
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
        path = model.WEIGHTS / f"{NAME}.safetensors"
        model.store(path, self.average)
        return path


def initialise(unet: torch.nn.Module) -> None:
    """As U-Nets of this kind start: no block adds anything yet."""
    demo_assets.fill(unet, seed=0)
    for name, weight in unet.named_parameters():
        if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            torch.nn.init.zeros_(weight)


@torch.no_grad()
def attention_ratio(unet: torch.nn.Module, text: Text, timestep: int, count: int = 16) -> float:
    """Mean attention of a class word's token inside its own object over that outside of it, two objects per picture."""
    rng = random.Random(1)
    scenes = [make_scene([*rng.sample(CLASSES, 2)], rng) for _ in range(count)]
    latents = model.encode(torch.stack([scene.picture() for scene in scenes]))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    noisy = model.noised(latents, noise, torch.full((count,), timestep))
    device = next(unet.parameters()).device
    maps = read(unet, noisy.to(device), timestep, text([scene.prompt() for scene in scenes])).cpu()
    return sum(ratio for scene, found in zip(scenes, maps, strict=True) for ratio in ratios(scene, found, text)) / (
        2 * count
    )


def read(unet: torch.nn.Module, noisy: Tensor, timestep: int, context: Tensor) -> Tensor:
    """Cross attention as CLoRA reads it: (batch, h, w, 77)."""
    recorder = Recorder(read_layers(unet, *noisy.shape[-2:]), stop=False)
    recorder.begin([Read(range(len(noisy)), 0, context.shape[1])])
    timesteps = torch.full((len(noisy),), float(timestep), device=noisy.device)
    options = {"patches_replace": {"attn2": recorder.patches({})}}
    unet(noisy, timesteps, context, transformer_options=options)
    recorder.end()
    return recorder.maps()[0]


def ratios(scene: Scene, maps: Tensor, text: Text) -> list[float]:
    """maps: (h, w, 77) of one picture -> inside over outside, for each thing."""
    found = []
    for thing in scene.things:
        inside = F.avg_pool2d(thing.mask().float()[None], CELL)[0]
        of_word = maps[..., text.positions(scene.prompt(), thing.class_word)[0][-1]]
        mean_inside = float((of_word * inside).sum() / inside.sum())
        mean_outside = float((of_word * (1 - inside)).sum() / (1 - inside).sum())
        found.append(mean_inside / mean_outside)
    return found


def run(device: torch.device, steps: int = 6000) -> None:
    trainer = Trainer(device)
    trainer.train(steps)
    print(f"stored: {trainer.export()}")
