"""Trains the autoencoder, of TAESD's shape: pictures to latents of a 64th of their places, and back.

It sees crops around characters, at well under half of the work of whole pictures. Most of them wear something, and characters count
more than what is around them: eyes and what is worn are small. Latents are kept near mean 0 and variance 1, and the decoder
learns from slightly noisy ones, as sampled latents are. An average of the weights is landed, so the training may end at any step.

Once the base model is trained on its latents, the stage “decoder” goes on: the encoder, and so the latents, stay as they are.
"""

import random
import sys
import time

import denoising
import torch
from comfy.taesd.taesd import Block, Decoder, Encoder
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import sprites
from .landed import AUTOENCODER, land, landed, require
from .sprites import ACCESSORIES
from .world import COLOURS, SIDE, Scene, Worn, training_scene

STATE = sprites.HOME / "autoencoder.pt"
POOL = 3000  # pictures, rendered once
BATCH = 8
CROP, NEAR = 80, 24  # pixels: of a side, and most from a crop's middle to a character's
LEARNING_RATE, AVERAGE = 1e-3, 0.999
BRANCH = 0.3  # of the usual size: what a block adds at first, since there is no normalisation
NOISE = 0.1  # of latents
EDGES, SPREAD = 0.3, 0.01  # weights of the error of differences between neighbours, and of the latents' moments
ABSOLUTE, SQUARED = 0.25, 2.0  # weights: an eye that is missing counts for more than a ground slightly off everywhere
CHARACTER = 4.0  # weight of a pixel of a character and what it wears; of the others 1
WEARING = 0, 1, 1, 2, 2  # how many accessories a character has; one of these at random
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
    """Return the autoencoder as it was landed, and its encoder's steps."""
    found = require(AUTOENCODER)
    network = Autoencoder()
    network.load_state_dict(found.weights)
    return network.eval().requires_grad_(False), found.trained_on


def error(decoded: Tensor, picture: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted error of the pixels and of the differences between neighbours. weight: of each pixel."""

    def mean(off: Tensor, weight: Tensor) -> Tensor:
        return ((ABSOLUTE * off.abs() + SQUARED * off.square()) * weight).mean()

    off = decoded - picture
    across, down = mean(off.diff(dim=-1), weight[..., 1:]), mean(off.diff(dim=-2), weight[..., 1:, :])
    return mean(off, weight) + EDGES * (across + down)


def unevenness(latents: Tensor) -> Tensor:
    """Return how far each channel's mean and variance are from 0 and 1."""
    variance, mean = torch.var_mean(latents, dim=(0, 2, 3))
    return (mean.square() + variance.log().square()).mean()


def dressed(scene: Scene, rng: random.Random) -> Scene:
    """Return a scene whose characters wear anything, in any colours."""

    def anything() -> tuple[Worn, ...]:
        names = rng.sample([*ACCESSORIES], rng.choice(WEARING))
        return tuple(Worn(name, *rng.sample(COLOURS, 2)) for name in names)

    return scene._replace(things=tuple(thing._replace(worn=anything()) for thing in scene.things))


class Pool:
    """Pictures rendered when they are first asked for."""

    def __init__(self):
        self.known: dict[int, tuple[Tensor, list[tuple[float, float]]]] = {}

    def crops(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step, (BATCH, 3, CROP, CROP), 0…1, and the weight of each pixel, (BATCH, 1, CROP, CROP)."""
        rng = random.Random(step)
        chosen = []
        for _ in range(BATCH):
            seed = rng.randrange(POOL)
            if seed not in self.known:
                scene = dressed(training_scene(random.Random(seed), random.Random(seed)), random.Random(seed))
                places = [thing.place for thing in scene.things] + ([scene.prop[1]] if scene.prop else [])
                characters = scene.masks().sum(dim=0, keepdim=True).clamp(0, 1)
                layers = (torch.cat([scene.picture(), characters]) * 255).byte()
                self.known[seed] = layers, [(place.x, place.y) for place in places]
            layers, places = self.known[seed]
            chosen.append(crop(layers, *rng.choice(places), rng))
        batch = torch.stack(chosen).float()
        return batch[:, :3] / 255, 1 + (CHARACTER - 1) / 255 * batch[:, 3:]


def crop(layers: Tensor, x: float, y: float, rng: random.Random) -> Tensor:
    """Return a crop near a place, on the latent's grid or not."""
    left, top = (min(max(round(at - CROP / 2 + rng.uniform(-NEAR, NEAR)), 0), SIDE - CROP) for at in (x, y))
    return layers[:, top : top + CROP, left : left + CROP]


def run(device: torch.device, steps: int = 16100, with_encoder: bool = True) -> None:
    """Train up to so many steps in all."""
    torch.manual_seed(0)  # of the weights it begins with
    # Convolutions are a quarter faster with a place's channels side by side.
    network = Autoencoder().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99))
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE))
    step, encoder_steps, pool = 0, 0, Pool()
    if STATE.exists():
        state = torch.load(STATE, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        step, encoder_steps = state["step"], state["encoder_steps"]
    elif (found := landed(AUTOENCODER)) is not None:
        for each in (network, averaged.module):
            each.load_state_dict(found.weights)
        step, encoder_steps = found.steps, found.trained_on
    if not with_encoder:
        landed_steps = require(AUTOENCODER).trained_on
        if landed_steps != encoder_steps:
            sys.exit(
                f"characters: {STATE} has an encoder of {encoder_steps} steps, and the landed one has {landed_steps};"
                " move the state away to go on from the landed one"
            )
        network.encoder.load_state_dict(averaged.module.encoder.state_dict())  # which is landed
        network.encoder.requires_grad_(False)
    losses, start = [], time.monotonic()
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 100)
        pictures, weight = (layers.to(device, memory_format=torch.channels_last) for layers in pool.crops(step))
        generator = torch.Generator().manual_seed(step)
        with denoising.quick(device):
            latents = network.encoder(pictures).float()
            noise = NOISE * torch.randn(latents.shape, generator=generator).to(device)
            decoded = network.decoder(latents + noise).float()
        loss = error(decoded, pictures, weight)
        optimizer.zero_grad()
        (loss + SPREAD * unevenness(latents)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(network)
        step += 1
        encoder_steps = step if with_encoder else encoder_steps
        losses.append(float((decoded - pictures).detach().abs().mean()))
        if step % EVERY == 0 or step == steps:
            seconds = (time.monotonic() - start) / len(losses)
            spread = latents.detach().std(dim=(0, 2, 3)).tolist()
            print(
                f"step {step}: mean error {sum(losses) / len(losses):.4f}, {seconds:.2f} s per step,"
                f" deviation {' '.join(f'{value:.2f}' for value in spread)}",
                flush=True,
            )
            state = {
                "network": network.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "encoder_steps": encoder_steps,
            }
            denoising.keep(STATE, state)
            losses, start = [], time.monotonic()
    land(AUTOENCODER, averaged.module.state_dict(), step, encoder_steps)


def run_decoder(device: torch.device, steps: int = 30000) -> None:
    """Train the decoder alone up to so many steps in all."""
    run(device, steps, with_encoder=False)
