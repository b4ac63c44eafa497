"""Trains the autoencoder, of TAESD's shape: pictures to latents of a 64th of their places, and back.

It sees crops around characters, at a quarter of the work of whole pictures. Latents are kept near mean 0 and variance 1, and
the decoder learns from slightly noisy ones, as sampled latents are.
"""

import random
import sys
import time

import torch
from comfy.taesd.taesd import Block, Decoder, Encoder
from shapes import model
from torch import Tensor, nn

from . import sprites
from .world import SIDE, training_scene

STATE = sprites.HOME / "autoencoder.pt"
POOL = 3000  # pictures, rendered once
BATCH = 12
CROP = 64  # pixels
LEARNING_RATE = 2e-3
BRANCH = 0.3  # of the usual size: what a block adds at first, since there is no normalisation
NOISE = 0.1  # of latents
EDGES, SPREAD = 0.3, 0.01  # weights of the error of differences between neighbours, and of the latents' moments
EVERY = 100


class Autoencoder(nn.Module):
    """TAESD's encoder and decoder, with weights to begin with."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for block in self.modules():
            if isinstance(block, Block):
                block.conv[-1].weight.data.mul_(BRANCH)


def trained() -> tuple[Autoencoder, int]:
    """Return the autoencoder as far as it is trained, and its steps."""
    if not STATE.exists():
        sys.exit("characters: the autoencoder is not trained yet; run the stage “autoencoder” first")
    network, state = Autoencoder(), torch.load(STATE, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    return network.eval().requires_grad_(False), state["step"]


def edges(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences between neighbours, across and down."""
    return picture.diff(dim=-1), picture.diff(dim=-2)


def error(decoded: Tensor, picture: Tensor) -> Tensor:
    """Return the mean absolute error of the pixels and of the differences between neighbours."""
    differences = zip(edges(decoded), edges(picture), strict=True)
    return (decoded - picture).abs().mean() + EDGES * sum((a - b).abs().mean() for a, b in differences)


def unevenness(latents: Tensor) -> Tensor:
    """Return how far each channel's mean and variance are from 0 and 1."""
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    return (mean.square() + variance.log().square()).mean()


def crop(picture: Tensor, x: float, y: float, rng: random.Random) -> Tensor:
    """Return a crop near a place, on the latent's grid or not."""
    left, top = (min(max(round(at - CROP / 2 + rng.uniform(-20, 20)), 0), SIDE - CROP) for at in (x, y))
    return picture[:, top : top + CROP, left : left + CROP]


class Pool:
    """Pictures rendered when they are first asked for."""

    def __init__(self):
        self.known: dict[int, tuple[Tensor, list[tuple[float, float]]]] = {}

    def crops(self, step: int) -> Tensor:
        """Return the batch of a step, (BATCH, 3, CROP, CROP), 0…1."""
        rng = random.Random(step)
        chosen = []
        for _ in range(BATCH):
            seed = rng.randrange(POOL)
            if seed not in self.known:
                scene = training_scene(random.Random(seed), random.Random(seed))
                places = [thing.place for thing in scene.things] + ([scene.prop[1]] if scene.prop else [])
                self.known[seed] = ((scene.picture() * 255).byte(), [(place.x, place.y) for place in places])
            picture, places = self.known[seed]
            chosen.append(crop(picture, *rng.choice(places), rng).float() / 255)
        return torch.stack(chosen)


def run(device: torch.device, steps: int = 10000) -> None:
    """Train up to so many steps in all, the learning rate falling to zero."""
    torch.manual_seed(0)  # of the weights it begins with
    network = Autoencoder().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    step, pool = 0, Pool()
    if STATE.exists():
        state = torch.load(STATE, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    losses, start = [], time.monotonic()
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 100) * (1 - step / steps)
        pictures = pool.crops(step).to(device)
        generator = torch.Generator().manual_seed(step)
        with model.quick(device):
            latents = network.encoder(pictures).float()
            noise = NOISE * torch.randn(latents.shape, generator=generator).to(device)
            decoded = network.decoder(latents + noise).float()
        loss = error(decoded, pictures)
        optimizer.zero_grad()
        (loss + SPREAD * unevenness(latents)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(float((decoded - pictures).detach().abs().mean()))
        if step % EVERY == 0 or step == steps:
            seconds = (time.monotonic() - start) / len(losses)
            spread = latents.detach().std(dim=(0, 2, 3)).tolist()
            print(
                f"step {step}: mean error {sum(losses) / len(losses):.4f}, {seconds:.2f} s per step,"
                f" deviation {' '.join(f'{value:.2f}' for value in spread)}",
                flush=True,
            )
            model.keep(STATE, {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
            losses, start = [], time.monotonic()
