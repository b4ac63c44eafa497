"""Trains the decoder, shaped like TAESD's, from latents to pictures.

It sees crops, at a quarter of the work of whole pictures.
"""

import random
import time

import demo_assets
import small_models
import torch
from comfy.taesd.taesd import Decoder
from denoising import keep, quick

from . import model
from .world import CELL, PATTERNS, SIDE, Colour, Scene, training_scene

STATE = model.STATES / "decoder.pt"
NAME = "decoder"

BATCH = 16
CROP = 8  # cells
LEARNING_RATE = 1e-3
EVERY = 100


def run(device: torch.device, steps: int = 1200) -> None:
    """Up to so many steps in all, the learning rate falling to zero."""
    decoder = Decoder().to(device)
    small_models.fill(decoder, seed=2, residual_gain=0.4)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=LEARNING_RATE)
    step = 0
    if STATE.exists():
        state = torch.load(STATE, map_location=device, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    losses, start = [], time.monotonic()
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * (1 - step / steps)
        latents, pictures = batch(step)
        with quick(device):
            found = decoder(latents.to(device))
        loss = (found.float() - pictures.to(device)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(float(loss.detach()))
        if step % EVERY == 0 or step == steps:
            seconds = (time.monotonic() - start) / len(losses)
            print(f"step {step}: mean error {sum(losses) / len(losses):.4f}, {seconds:.2f} s per step", flush=True)
            keep(STATE, {"decoder": decoder.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
            losses, start = [], time.monotonic()
    small_models.store(demo_assets.weights_of(NAME), decoder.state_dict(), {})


def repainted(scene: Scene, rng: random.Random) -> Scene:
    """Half of the things in any pattern and colours: a decoder is not to know what there is to draw."""

    def colour() -> Colour:
        return rng.random(), rng.random(), rng.random()

    return scene._replace(
        things=tuple(
            thing._replace(pattern=rng.choice([*PATTERNS]), first=colour(), second=colour())
            if rng.random() < 0.5
            else thing
            for thing in scene.things
        )
    )


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Crops of latents, noised a little as sampled ones are, and of their pictures."""
    rng, generator = random.Random(step), torch.Generator().manual_seed(step)
    latents, crops = [], []
    for _ in range(BATCH):
        picture = repainted(training_scene(rng, rng), rng).picture()
        left, top = (CELL * rng.randint(0, SIDE // CELL - CROP) for _ in range(2))
        crops.append(picture[:, top : top + CELL * CROP, left : left + CELL * CROP])
    pictures = torch.stack(crops)
    latents = model.encode(pictures)
    return latents + 0.05 * torch.randn(latents.shape, generator=generator), pictures
