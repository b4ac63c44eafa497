"""Small pictures by the model while a LoRA is trained."""

import torch
from torch import Tensor

from ..loaded import Deltas, LoadedModel
from ..lora import active
from ..pictures import jpeg, rough_picture
from .rows import Conds
from .settings import RunSettings, TrainSettings
from .view import Preview

STEPS = 12  # of Euler
GUIDANCE = 3.0  # of U-Nets; transformers draw without it, and many take none
LONGEST = 64  # cells of a preview's side: 512 pixels with most VAEs


def preview_prompts(settings: TrainSettings, run: RunSettings) -> dict[str, bool]:
    """Return the prompts of the previews with the words filled in, and whether the trigger is in them."""
    filled = {}
    for template in run.preview_prompts:
        class_word = settings.class_word or "thing"
        prompt = template.replace("{trigger}", settings.trigger).replace("{class}", class_word)
        filled[prompt] = settings.trigger in prompt
    return filled


def previews(
    model: LoadedModel, deltas: Deltas, conds: Conds, prompts: dict[str, bool], seed: int, step: int
) -> list[Preview]:
    """Return a small picture of each prompt with these differences, all from the same noise."""
    shape = (*model.noise.shape[:-2], *(min(cells, LONGEST) for cells in model.noise.shape[-2:]))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.noise.device)
    shown = []
    for prompt, with_trigger in prompts.items():
        painted = paint(model, deltas, conds[prompt], conds[""], noise)
        picture = rough_picture(model.inner.latent_format, painted)
        if picture is not None:
            shown.append(Preview(prompt=prompt, with_trigger=with_trigger, picture=jpeg(picture[0]), step=step))
    return shown


def paint(model: LoadedModel, deltas: Deltas, cond: list, empty: list, noise: Tensor) -> Tensor:
    """Return the picture of a prompt with these differences, (1, channels, …), in the model's own scale."""
    guidance = 1.0 if model.in_place else GUIDANCE

    def denoise(x: Tensor, sigma: Tensor, **_) -> Tensor:
        prediction = model.evaluate(cond, x, sigma)
        if guidance == 1.0:
            return prediction
        plain = model.evaluate(empty, x, sigma)
        return plain + guidance * (prediction - plain)

    with torch.no_grad(), active.differentiable(model.layers, deltas):
        return model.paint(denoise, noise)
