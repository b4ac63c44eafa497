"""Trains a judge that tells, place by place, which character is where: its class, whose outfit it wears, its style, and
whether another stands before it.

It sees rendered scenes, sharp and as the autoencoder gives them back. Among them are characters that wear another concept's
outfit, half of one, or one in other colours. Half an outfit or other colours are nobody's; a concept's outfit on another
class is told by the two answers together.
"""

import random
import time

import denoising
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import autoencoder, sprites
from .landed import JUDGE, land, landed
from .sprites import CLASSES, STYLES
from .world import CONCEPTS, RELATIONS, Character, Scene, any_colour, make_scene

STATE = sprites.HOME / "judge.pt"
CELL = 4  # pixels of a place
WIDTH = 64
DILATIONS = 1, 2, 4, 8, 4, 2, 1
HEADS = {"class": len(CLASSES) + 1, "outfit": len(CONCEPTS) + 1, "style": len(STYLES), "covered": 2}  # 0: none
POOL, BATCH = 5000, 16
LEARNING_RATE = 1e-3
EVERY = 100
HELD_OUT = 64  # scenes that are never trained on


class Residual(nn.Module):
    """A block that looks so many places around."""

    def __init__(self, dilation: int):
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.norm = nn.GroupNorm(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(self.norm(x))))


class Judge(nn.Module):
    """A small convolutional network with a head for each question."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(32, WIDTH, 5, stride=2, padding=2)
        )
        self.body = nn.Sequential(*map(Residual, DILATIONS), nn.GroupNorm(8, WIDTH), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Conv2d(WIDTH, count, 1) for name, count in HEADS.items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Return the logits of each head, (n, choices, h/4, w/4). pictures: (n, 3, h, w), 0…1."""
        features = self.body(self.stem(2 * pictures - 1))
        return {name: head(features) for name, head in self.heads.items()}


def judging_scene(rng: random.Random) -> Scene:
    """Return a scene of plain characters, concepts, and characters that are nearly concepts."""
    count = rng.choices((1, 2, 3, 4), (2, 4, 2, 2))[0]
    relation = rng.choice([*RELATIONS]) if count > 1 else "and"
    kinds = [judged_kind(rng) for _ in range(count)]
    return make_scene(kinds, rng, relation=relation, style=rng.choice([*STYLES]), plain=False)


def judged_kind(rng: random.Random) -> str | Character:
    """Return a concept, a class word, or somebody who is nearly a concept."""
    concept = rng.choice(CONCEPTS)
    draw = rng.random()
    if draw < 0.35:
        return concept
    if draw < 0.6:
        return rng.choice(CLASSES)
    outfit = concept.worn
    if draw < 0.8:
        return Character("", "", rng.choice(CLASSES), outfit)
    if draw < 0.9:
        return Character("", "", concept.class_word, (rng.choice(outfit),))
    return Character("", "", concept.class_word, tuple(worn._replace(first=any_colour(rng)) for worn in outfit))


def truth(scene: Scene) -> dict[str, Tensor]:
    """Return the label of each place for each head, (h, w); −1 where nothing is asked."""
    masks = F.avg_pool2d(scene.masks()[:, None], CELL)[:, 0]
    share, thing_at = masks.max(dim=0)
    there, nothing = share > 0.5, share < 0.05
    outfits = {concept.worn: number for number, concept in enumerate(CONCEPTS, start=1)}
    style = [*STYLES].index(scene.style)
    values = {
        "class": [1 + CLASSES.index(thing.class_word) for thing in scene.things],
        "outfit": [outfits.get(thing.worn, 0) for thing in scene.things],
        "style": [style for _ in scene.things],
        "covered": [int(is_hidden) for is_hidden in hidden(scene)],
    }
    labels = {}
    for head, numbers in values.items():
        label = torch.tensor(numbers)[thing_at]
        elsewhere = 0 if head in ("class", "outfit") else -1
        labels[head] = torch.where(there, label, torch.where(nothing, elsewhere, -1))
    return labels


def hidden(scene: Scene) -> list[bool]:
    """Return for each thing whether more than a tenth of it is behind others."""
    visible = scene.masks().sum(dim=(1, 2))
    whole = [scene._replace(things=(thing,)).masks().sum() for thing in scene.things]
    return [bool(seen < 0.9 * all_of_it) for seen, all_of_it in zip(visible, whole, strict=True)]


class Pool:
    """Scenes rendered when they are first asked for: sharp, and as the autoencoder gives them back."""

    def __init__(self, device: torch.device):
        self.autoencoder = autoencoder.trained()[0].to(device)
        self.device = device
        self.known: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}

    @torch.no_grad()
    def __call__(self, seeds: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return pictures, (n, 3, SIDE, SIDE), and the labels of each head, (n, h, w)."""
        missing = [seed for seed in seeds if seed not in self.known]
        scenes = {seed: judging_scene(random.Random(seed)) for seed in missing}
        for seed, scene in scenes.items():
            picture = scene.picture()
            if seed % 3:  # a third stays sharp
                latent = self.autoencoder.encoder(picture[None].to(self.device))
                noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed)).to(latent)
                picture = self.autoencoder.decoder(latent + 0.1 * (seed % 3) * noise)[0].clamp(0, 1).cpu()
            self.known[seed] = (255 * picture).byte(), truth(scene)
        chosen = [self.known[seed] for seed in seeds]
        pictures = torch.stack([picture for picture, _ in chosen]).float() / 255
        return pictures, {head: torch.stack([labels[head] for _, labels in chosen]) for head in HEADS}


def loss(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Return the sum of the heads' mean cross entropies."""
    return sum(
        (F.cross_entropy(logits[head], labels[head], ignore_index=-1, label_smoothing=0.02) for head in HEADS),
        start=torch.zeros(()),
    )


def wrong(logits: dict[str, Tensor], labels: dict[str, Tensor]) -> dict[str, float]:
    """Return each head's share of wrong places, of those that show a character."""
    shares = {}
    for head, label in labels.items():
        asked = (labels["class"] > 0) & (label >= 0)
        shares[head] = float((logits[head].argmax(dim=1) != label)[asked].float().mean())
    return shares


def run(device: torch.device, steps: int = 2500) -> None:
    """Train up to so many steps in all, the learning rate falling to zero."""
    torch.manual_seed(0)  # of the weights it begins with
    judge, pool, step = Judge().to(device), Pool(device), 0
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.02)
    if STATE.exists():
        state = torch.load(STATE, map_location=device, weights_only=True)
        judge.load_state_dict(state["judge"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    elif (found := landed(JUDGE)) is not None:
        judge.load_state_dict(found.weights)
        step = found.steps
    began, start = step, time.monotonic()
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 100) * (1 - step / steps)
        rng = random.Random(step)
        pictures, labels = pool([rng.randrange(POOL) for _ in range(BATCH)])
        value = loss(judge(pictures.to(device)), {head: label.to(device) for head, label in labels.items()})
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % EVERY == 0 or step == steps:
            pictures, labels = pool([POOL + number for number in range(HELD_OUT)])
            with torch.no_grad():
                logits = {head: found.cpu() for head, found in judge(pictures.to(device)).items()}
            shares = wrong(logits, labels)
            words = ", ".join(f"{head} {share:.3f}" for head, share in shares.items())
            seconds = (time.monotonic() - start) / (step - began)
            print(f"step {step}: loss {float(value.detach()):.3f}; wrong {words}; {seconds:.2f} s per step", flush=True)
            denoising.keep(STATE, {"judge": judge.state_dict(), "optimizer": optimizer.state_dict(), "step": step})
            began, start = step, time.monotonic()
    land(JUDGE, judge.state_dict(), step)
