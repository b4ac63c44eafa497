"""The gradient of the separation loss with respect to the latent (arXiv 2403.19776), with much memory or with little.

The loss needs the attention maps of all branches; a forward pass ends after the last layer that is read.
"""

import logging
from collections.abc import Callable, Sequence

import comfy.model_management
import torch
from torch import Tensor

from ...sampler import separation
from ...sampler.separation import Branch, Maps
from .. import differentiable
from .attention import Recorder
from .evaluation import Evaluation
from .layers import TransformerLayers, read_layers
from .patches import suspects
from .settings import UpdateSettings

log = logging.getLogger("loraclr")

ReadMaps = Callable[[Sequence[int]], Maps]  # branches -> their maps at the latent
Loss = Callable[[Maps], Tensor]  # these branches' maps -> the sum of all samples' losses


def gradient(
    evaluation: Evaluation, z: Tensor, branches: Sequence[Branch], prepared_maps: Maps, settings: UpdateSettings
) -> Tensor:
    """Return ∇ of each sample's loss with respect to its latent, (batch, channels, h, w) like `z`.

    prepared_maps: the maps of the branches that do not depend on `z`.
    """
    layers = read_layers(evaluation.model.diffusion_model, *z.shape[-2:])
    missing = [number for number in range(len(branches)) if number not in prepared_maps]
    with differentiable.gradients(isinstance(layers, TransformerLayers), "update_strength"):
        z = z.detach().clone().requires_grad_()
        # Autograd refuses inference tensors.
        constant = {number: maps.clone() for number, maps in prepared_maps.items()}

        def read(chosen: Sequence[int]) -> Maps:
            recorder = Recorder(layers, stop=True)
            evaluation.read(z, recorder, list(chosen))
            return require_maps(evaluation, recorder.maps(), chosen)

        def loss(maps: Maps) -> Tensor:
            return separation.loss(branches, constant | maps, settings.temperature).sum()

        if settings.gradient_memory == "all at once":
            try:
                return _differentiate_at_once(z, missing, read, loss)
            except comfy.model_management.OOM_EXCEPTION:
                log.warning(
                    "CLoRA: too little memory for the gradients of all branches at once; going on with one branch at a time."
                )
                comfy.model_management.soft_empty_cache()
        return _differentiate_in_turn(z, missing, read, loss)


def _differentiate_at_once(z: Tensor, branches: Sequence[int], read: ReadMaps, loss: Loss) -> Tensor:
    return torch.autograd.grad(loss(read(branches)), z)[0]


def _differentiate_in_turn(z: Tensor, branches: Sequence[int], read: ReadMaps, loss: Loss) -> Tensor:
    """Differentiate by the maps first, which are small, then by the latent through one branch's graph after another."""
    first, *others = branches
    with torch.no_grad():
        maps = read(others)
    maps |= read([first])  # its graph is kept, so it need not run twice
    leaves = {number: branch_maps.detach().requires_grad_() for number, branch_maps in maps.items()}
    to_maps = torch.autograd.grad(loss(leaves), [leaves[number] for number in branches])
    total = torch.autograd.grad(maps[first], z, to_maps[0])[0]
    del maps
    for number, to_map in zip(others, to_maps[1:], strict=True):
        comfy.model_management.throw_exception_if_processing_interrupted()
        total += torch.autograd.grad(read([number])[number], z, to_map)[0]
    return total


def require_maps(evaluation: Evaluation, maps: Maps, branches: Sequence[int]) -> Maps:
    """Return `maps`. Raises ValueError where one of these branches is missing."""
    if all(number in maps for number in branches):
        return maps
    others = evaluation.wrappers()
    hint = " may have kept the model from running: remove that node. LazyCache, which skips whole steps, works."
    raise ValueError(
        "The attention of a branch was not seen in this step. Remove timestep ranges from the positive conditioning, reference"
        " images where the model does not take them, and patches that skip attention to text from the model."
        + (f" {suspects(others)}{hint}" if others else "")
    )
