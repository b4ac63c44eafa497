"""Trains the base model's U-Net on pictures of characters.

It is shown pictures of one character first, then of up to four. An average of its weights is kept beside them; some prompts
are dropped, for guidance. The run's state is in `.host/characters/`, so it goes on where it was stopped; without it, from the
average that was landed.

CLoRA lives on a class word's attention lying on its own object. Models trained on many pictures have this of themselves; one
this small does not, so a second term asks for it, in the base's training only: wherever a word's mean attention inside its
character is less than `LOCALISED` times that outside.
"""

import functools
import hashlib
import inspect
import math
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import denoising
import torch
import torch.nn.functional as F
from denoising import KEPT, SNR, Text, initialise, reading
from small_models import make_unet
from torch import Tensor

from . import autoencoder, sprites, world
from .files import UNET
from .landed import BASE, file_of, land, landed
from .world import CELL, Scene, draw_count, training_scene

STATE = sprites.HOME / "base.pt"
SAMPLES = sprites.HOME / "samples.pt"

BATCH = 12
LEARNING_RATE = 3e-4
WARMUP, COOLDOWN = 200, 2500  # steps; the rate falls to zero in the last ones
DROPPED = 0.1
PROMPTS = 3000
PICTURES = 3  # of each prompt; encoding one takes as long as a step of training on it
AVERAGE = 0.999
# From which step on pictures show up to how many characters.
COURSE = {0: 1, 1500: 4}
EVERY = 250  # steps between reports, each kept

LOCALISED, LOCALISATION_WEIGHT = 5.0, 0.05

# A digest of the code that draws the scenes, as it is when this is loaded: files may change while a training runs.
DRAWN_BY = hashlib.sha256("".join(map(inspect.getsource, (world, sprites))).encode()).hexdigest()[:16]


class Sample(NamedTuple):
    """A picture as the U-Net learns it."""

    prompt: str
    # (4, SIDE / CELL, SIDE / CELL)
    latent: Tensor
    # For each word of the prompt that names a character or what it wears: its tokens' positions, and the character's cells.
    words: list[tuple[list[int], Tensor]]


def places_of_words(scene: Scene, text: Text) -> list[tuple[list[int], Tensor]]:
    """Return for each word that names a character or what it wears: its tokens' positions, and cells (h, w), 0…1."""
    cells = F.avg_pool2d(scene.masks()[:, None], CELL)[:, 0]
    seen: dict[str, int] = {}
    places = []
    for words in scene.named:
        mask = sum(cell for thing, cell in zip(scene.things, cells, strict=True) if thing.words == words)
        for word in words.split():
            if word not in ("with", "a"):
                if mask.sum() >= 1:  # not wholly behind another
                    positions = text.positions(scene.prompt(), word)[seen.get(word, 0)]
                    places.append((positions, mask.clamp(0, 1).half()))
                seen[word] = seen.get(word, 0) + 1
    return places


class Samples:
    """Pictures rendered and encoded when they are first asked for, and kept; those of other code or another encoder are made anew.

    encoded_by: the encoder's steps.
    """

    def __init__(self, device: torch.device):
        network, self.encoded_by = autoencoder.trained()
        self.encoder = network.encoder.to(device)
        self.device = device
        self.text = Text(device)
        self.known: dict[int, Sample] = {}
        if SAMPLES.exists():
            state = torch.load(SAMPLES, map_location="cpu", weights_only=True)
            self.text.known = {prompt: tensor.to(device) for prompt, tensor in state["text"].items()}
            if state["encoded_by"] == self.encoded_by and state["drawn_by"] == DRAWN_BY:
                self.known = {seed: Sample(*values) for seed, values in state["samples"].items()}
        self.stored = len(self.known)

    def keep(self) -> None:
        """Store what is new."""
        if len(self.known) == self.stored:
            return
        samples = {seed: tuple(sample) for seed, sample in self.known.items()}
        made_by = {"encoded_by": self.encoded_by, "drawn_by": DRAWN_BY}
        denoising.keep(SAMPLES, {"text": self.text.known, "samples": samples, **made_by})
        self.stored = len(self.known)

    @torch.no_grad()
    def __call__(self, seeds: list[int]) -> list[Sample]:
        """Return the samples of these seeds."""
        missing = [seed for seed in dict.fromkeys(seeds) if seed not in self.known]
        if missing:
            scenes = [training_scene(random.Random(seed // PICTURES), random.Random(seed + 1)) for seed in missing]
            pictures = torch.stack([scene.picture() for scene in scenes]).to(self.device)
            with denoising.quick(self.device):
                latents = self.encoder(pictures).float().cpu()
            for seed, scene, latent in zip(missing, scenes, latents, strict=True):
                self.known[seed] = Sample(scene.prompt(), latent.half(), places_of_words(scene, self.text))
        return [self.known[seed] for seed in seeds]


def shown_at(step: int, prompts: int) -> list[int]:
    """Return the seeds of the scenes that are shown from a step on."""
    return seeds_of(max(count for first, count in COURSE.items() if first <= step), prompts)


@functools.cache
def seeds_of(most: int, prompts: int) -> list[int]:
    """Return the seeds of the scenes of up to so many characters."""
    chosen = [number for number in range(prompts) if draw_count(random.Random(number)) <= most]
    return [PICTURES * number + picture for number in chosen for picture in range(PICTURES)]


class Trainer:
    """A training and its state: U-Net, optimizer, average and step."""

    def __init__(self, device: torch.device):
        self.device = device
        self.samples = Samples(device)
        self.unet = make_unet(**UNET).train().to(device)
        self.step = 0
        initialise(self.unet)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average = {key: tensor.clone() for key, tensor in self.unet.state_dict().items()}
        if STATE.exists():
            state = torch.load(STATE, map_location=device, weights_only=True)
            self.check_latents(STATE, state["encoded_by"])
            self.unet.load_state_dict(state["unet"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]
        elif (found := landed(BASE)) is not None:
            self.check_latents(file_of(BASE), found.trained_on)
            self.unet.load_state_dict(found.weights)
            self.average, self.step = {key: tensor.to(device) for key, tensor in found.weights.items()}, found.steps

    def check_latents(self, path: Path, encoded_by: int) -> None:
        """End the run if a model was trained on latents of another encoder. encoded_by: the steps of its own."""
        if encoded_by != self.samples.encoded_by:
            sys.exit(
                f"characters: {path} was trained on latents of the encoder after {encoded_by} steps, which now has"
                f" {self.samples.encoded_by}; move it away to train the base model anew"
            )

    def keep(self) -> None:
        """Store the state."""
        self.samples.keep()
        state = {"unet": self.unet.state_dict(), "optimizer": self.optimizer.state_dict()}
        denoising.keep(
            STATE, {**state, "average": self.average, "step": self.step, "encoded_by": self.samples.encoded_by}
        )

    def train(self, steps: int) -> None:
        """Train up to so many steps in all."""
        losses, start = [], time.monotonic()
        while self.step < steps:
            losses.append(self.one_step((steps - self.step) / COOLDOWN))
            if self.step % EVERY == 0 or self.step == steps:
                seconds = (time.monotonic() - start) / len(losses)
                loss, lacking = (sum(values) / len(values) for values in zip(*losses, strict=True))
                print(
                    f"step {self.step}: loss {loss:.4f}, attention lacks {lacking:.3f}; {seconds:.2f} s per step",
                    flush=True,
                )
                self.keep()
                losses, start = [], time.monotonic()
        land(BASE, self.average, self.step, self.samples.encoded_by)

    def one_step(self, most: float = 1.0) -> tuple[float, float]:
        """Return the loss, and what attention lacks. most: of the learning rate."""
        rng, generator = random.Random(self.step), torch.Generator().manual_seed(self.step)
        samples = self.samples(rng.choices(shown_at(self.step, PROMPTS), k=BATCH))
        prompts = ["" if rng.random() < DROPPED else sample.prompt for sample in samples]
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (self.step + 1) / WARMUP, most)
        with reading(self.unet, BATCH) as (recorder, options):
            loss = self.denoising_loss(samples, prompts, generator, options)
        lacking = localisation_loss(samples, prompts, recorder.maps()[0])
        self.optimizer.zero_grad()
        (loss + LOCALISATION_WEIGHT * lacking).backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(AVERAGE, self.step / (self.step + 10))
        with torch.no_grad():
            for key, tensor in self.unet.state_dict().items():
                self.average[key].lerp_(tensor, 1 - decay)
        return float(loss.detach()), float(lacking.detach())

    def denoising_loss(
        self, samples: list[Sample], prompts: list[str], generator: torch.Generator, options: dict
    ) -> Tensor:
        """Return the mean squared error of the noise, timesteps weighted as `SNR` says."""
        latents = torch.stack([sample.latent.float() for sample in samples])
        timesteps = denoising.spread_timesteps(len(samples), generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = denoising.noised(latents, noise, timesteps).to(self.device)
        with denoising.quick(self.device):
            predicted = self.unet(
                noisy, timesteps.float().to(self.device), self.samples.text(prompts), transformer_options=options
            )
        snr = KEPT[timesteps] / (1 - KEPT[timesteps])
        errors = (predicted.float().cpu() - noise).square().mean(dim=(1, 2, 3))
        return (snr.clamp(*SNR) / snr * errors).mean()


def localisation_loss(samples: list[Sample], prompts: list[str], maps: Tensor) -> Tensor:
    """Return what attention lacks of being LOCALISED times denser on a word's own character than elsewhere.

    maps: (samples, h, w, 77)
    """
    ratios = []
    for sample, prompt, attention in zip(samples, prompts, maps, strict=True):
        for positions, mask in sample.words if prompt else ():
            word_map, inside = attention[..., positions].mean(dim=-1), mask.to(attention)
            outside = 1 - inside
            ratios.append((word_map * inside).sum() / inside.sum() * outside.sum() / (word_map * outside).sum())
    if not ratios:
        return torch.zeros(())
    return (math.log(LOCALISED) - torch.stack(ratios).log()).clamp(min=0).square().mean().cpu()


def run(device: torch.device, steps: int = 16000) -> None:
    """Train up to so many steps in all."""
    Trainer(device).train(steps)
