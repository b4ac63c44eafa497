"""Trains one LoRA per concept on the base model, each alone, on pictures of the concept alone.

A quarter of the pictures show a plain thing of the class by its plain prompt, so that the LoRA learns its trigger and leaves
the class as it was (DreamBooth's prior preservation, arXiv 2208.12242).
"""

import contextlib
import random
import sys
import time
from collections.abc import Iterator

import demo_assets
import torch
from torch import Tensor, nn

from . import model
from .base import BATCH, NAME
from .model import Text
from .world import CONCEPTS, ShapeConcept, make_scene

RANK = 8
LEARNING_RATE = 1e-3
PLAIN = 2  # of a batch
WARMUP = 20
EVERY = 50


def run(device: torch.device, steps: int = 500) -> None:
    """Every concept whose file is not there yet."""
    base = demo_assets.WEIGHTS / f"{NAME}.safetensors"
    if not base.exists():
        sys.exit(f"shapes: {base} is missing; train the base model first, stage “base”")
    text = Text(device)
    unet = demo_assets.make_unet().to(device)
    unet.load_state_dict(demo_assets.stored(NAME))
    unet.requires_grad_(False)
    for seed, concept in enumerate(CONCEPTS):
        path = demo_assets.WEIGHTS / f"{concept.name}.safetensors"
        if path.exists():
            print(f"{concept.name}: is there", flush=True)
            continue
        demo_assets.store(concept.name, train(unet, text, concept, seed, steps), {"trigger": concept.trigger})


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
    layers = demo_assets.lora_layers(unet)
    adapters = {key: Adapter(unet.get_submodule(key)).to(device) for key in layers.values()}
    parameters = [parameter for adapter in adapters.values() for parameter in adapter.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.01)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    losses, start = [], time.monotonic()
    with adapted(unet, adapters):
        for step in range(1, steps + 1):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1.0, step / WARMUP) * (1 - 0.9 * step / steps)
            scenes = [make_scene([concept.class_word if i < PLAIN else concept], rng) for i in range(BATCH)]
            loss = model.denoising_loss(unet, text, scenes, [scene.prompt() for scene in scenes], generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            if step % EVERY == 0:
                seconds = (time.monotonic() - start) / step
                recent = sum(losses[-EVERY:]) / EVERY
                print(f"{concept.name}, step {step}: loss {recent:.4f}, {seconds:.2f} s per step", flush=True)
    state: dict[str, Tensor] = {}
    for name, key in layers.items():
        ones = (1, 1) if isinstance(unet.get_submodule(key), nn.Conv2d) else ()
        state[f"{name}.up"] = adapters[key].up.detach().reshape(-1, RANK, *ones)
        state[f"{name}.down"] = adapters[key].down.detach().reshape(RANK, -1, *ones)
    return state
