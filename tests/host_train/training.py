"""Running the node as the executor does, and what tests measure of a model."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import architectures
import comfy.samplers
import comfy.sd
import comfy.taesd.taehv
import comfy.taesd.taesd
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from loraclr.loraclr_core.host import differentiable
from loraclr.loraclr_core.host.loaded import changes_in_place, with_model
from loraclr.loraclr_core.host.train import data
from loraclr.loraclr_core.host.train.layers import chosen_layers
from loraclr.loraclr_core.host.train.learner import Learner
from loraclr.loraclr_core.host.train.rows import Rows
from loraclr.loraclr_core.host.train.settings import TrainSettings
from pack import run
from torch import Tensor

NODE = "LoRACLR_TrainConcept"
LISTS = ("images", "captions", "masks", "others", "other_captions")
TRIGGER, CLASS = "sks cat", "cat"
# Short, and without what takes long.
QUICK = {"trigger": TRIGGER, "steps": 2, "rank": 4, "learning_rate": 1e-3, "preview_every": 0, "beside": ""}


class Trained(NamedTuple):
    lora: dict[str, Tensor]
    loss_map: dict[str, list]
    lora_name: str
    concepts: list
    report: str


def train(models, images: list[Tensor], **inputs) -> Trained:
    """Outputs of the node with quick settings. models: with model, clip and vae."""
    given = {"model": models.model, "clip": models.clip, "vae": models.vae, "images": images} | QUICK | inputs
    return Trained(*run(NODE, **{name: value if name in LISTS else [value] for name, value in given.items()}))


def picture(seed: int, height: int = 64, width: int = 96) -> Tensor:
    """A batch of one picture of soft colours."""
    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).movedim(1, -1)


class Models(NamedTuple):
    model: ModelPatcher
    clip: CLIP
    vae: VAE


@functools.cache
def small_models(name: str) -> Models:
    """An architecture's small model with the host's small VAE for its latents, of random weights."""
    model = architectures.build(name)
    return Models(model.model, model.clip, small_vae(model.latent[0], len(model.latent) == 4))


@functools.cache
def small_vae(channels: int, video: bool) -> VAE:
    kind = comfy.taesd.taehv.TAEHV if video else comfy.taesd.taesd.TAESD
    module = kind(latent_channels=channels)
    architectures.fill(module, 2)
    return VAE(sd=module.state_dict(), metadata={"tae_latent_channels": channels})


def evaluate(model: ModelPatcher, prompt_cond: list, latent: Tensor, work: Callable, wrapped: bool = False):
    """`work(denoise, model_sampling)` on the model as ComfyUI's sampler loads it: no part of the pack runs.

    wrapped: `work(model_wrap, extra_args)` instead, as ComfyUI calls its samplers.
    """
    results = []

    class Working(comfy.samplers.Sampler):
        def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
            def denoise(x, sigma):
                return model_wrap(x, sigma, **extra_args)

            sampling = model_wrap.inner_model.model_sampling
            results.append(work(model_wrap, extra_args) if wrapped else work(denoise, sampling))
            return noise

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt_cond, prompt_cond)
    noise = torch.zeros_like(latent)
    guider.sample(noise, noise, Working(), torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
    return results[0]


def encoded(clip: CLIP, prompt: str) -> list:
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def errors(model: ModelPatcher, clip: CLIP, prompt: str, latent: Tensor) -> float:
    """Mean squared error of the predicted picture at a few noise levels, by the host's own sampling."""

    def work(denoise, sampling) -> float:
        found = []
        for seed, level in enumerate((0.3, 0.5, 0.7, 0.9)):
            sigma = torch.tensor([sampling.percent_to_sigma(level)])
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
            prediction = denoise(sampling.noise_scaling(sigma, noise, latent), sigma)
            found.append(float((prediction - latent).square().mean()))
        return sum(found) / len(found)

    return evaluate(model, encoded(clip, prompt), latent, work)


def latent_of(models, image: Tensor) -> Tensor:
    """A picture as the model sees it, by the host's own VAE."""
    return models.model.model.process_latent_in(models.vae.encode(image)).float()


def with_lora(model: ModelPatcher, lora: dict[str, Tensor]) -> ModelPatcher:
    """The model with a LoRA by the stock loader."""
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


@contextlib.contextmanager
def evaluations(model: ModelPatcher) -> Iterator[list]:
    """A list that grows by one with each evaluation of the model."""
    seen: list[int] = []
    hook = model.model.diffusion_model.register_forward_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        hook.remove()


def on_loaded(models, images: list[Tensor], masks: list[Tensor], work: Callable, **settings):
    """`work(rows, learner)` on the loaded model, as the steps of a training see it."""
    chosen = TrainSettings(trigger=TRIGGER, class_word=CLASS, rank=2, preserve_prompts="class (paper)", **settings)
    sources = data.check(data.Given(images, [], masks, [], []), chosen)
    dataset = data.encode(models.model, models.vae, sources, 0, lambda phase, done: None)
    layers = chosen_layers(models.model, chosen.layers)
    with differentiable.gradients(changes_in_place(models.model.model), "", [models.model.model]), torch.no_grad():
        texts = [f"photo of a {TRIGGER}", f"photo of a {CLASS}", ""]
        conds = {text: encoded(models.clip, text) for text in texts}
        sigmas = torch.tensor([1.0, 0.0])
        latent = torch.zeros_like(dataset.pictures[0].latent)

        def on(model):
            return work(Rows(model, dataset, conds, chosen), Learner(layers, chosen))

        return with_model(models.model, layers, [*conds.values()], latent, sigmas, on)
