"""CLoRA's published loop (arXiv 2403.19776) restated: DDIM in the variance-preserving scale, one model copy per branch.

Slow and literal on purpose, and sharing nothing with the pack: models patched by the stock loader, attention read by hooks
on the projections, masks and loss pixel by pixel and pair by pair. Of the published code's faults it has none: attention
of conditional rows only, maps as (height, width), the prediction computed anew after the update.
"""

import copy
import math

import comfy.sd
import comfy.utils
import folder_paths
import torch
from host_sampler.sampling import encode
from torch import Tensor


class Branch:
    """A copy of the U-Net with one LoRA, its prompts, and where each concept's tokens stand."""

    def __init__(self, demo, concept, prompt: str, negative: str, tokens: list[list[int]]):
        model, clip = demo.model, demo.clip
        if concept is not None:
            state = comfy.utils.load_torch_file(folder_paths.get_full_path("loras", concept.lora_name))
            model, clip = comfy.sd.load_lora_for_models(
                model, clip, state, concept.strength_model, concept.strength_clip
            )
        self.cond, self.uncond = (encode(clip, text)[0][0] for text in (prompt, negative))
        self.tokens = tokens
        with torch.inference_mode(False):
            self.cond, self.uncond = self.cond.clone(), self.uncond.clone()
            self.unet = copy.deepcopy(demo.model.model.diffusion_model)
            for key in [key for key in model.patches if key.startswith("diffusion_model.")]:
                weight = model.patch_weight_to_device(key, torch.device("cpu"), return_weight=True).clone()
                owner = self.unet.get_submodule(key.removeprefix("diffusion_model.").rpartition(".")[0])
                setattr(owner, key.rpartition(".")[2], torch.nn.Parameter(weight, requires_grad=False))
            for owner in self.unet.modules():
                for name, parameter in owner.named_parameters(recurse=False):
                    setattr(owner, name, torch.nn.Parameter(parameter.detach().clone(), requires_grad=False))

    def noise(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.unet(z, t, context=context.expand(len(z), -1, -1), transformer_options={})

    def noise_and_maps(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The conditional noise and (batch, height, width, tokens) of attention, mean over heads and layers."""
        layers = [module for name, module in self.unet.named_modules() if name.endswith("attn2")]
        seen: dict = {}
        hooks = []
        for layer in layers:
            for projection in ("to_q", "to_k"):
                key = (layer, projection)
                hooks.append(
                    getattr(layer, projection).register_forward_hook(
                        lambda module, args, output, key=key: seen.__setitem__(key, output)
                    )
                )
        noise = self.noise(z, t, self.cond)
        for hook in hooks:
            hook.remove()
        total = 0
        for layer in layers:
            for head in range(layer.heads):
                part = slice(head * layer.dim_head, (head + 1) * layer.dim_head)
                q, k = seen[layer, "to_q"][..., part], seen[layer, "to_k"][..., part]
                total = total + torch.softmax(q @ k.transpose(1, 2) / math.sqrt(layer.dim_head), dim=-1)
        mean = total / sum(layer.heads for layer in layers)
        return noise, mean.reshape(len(z), *z.shape[-2:], -1)


def separation(branches: list[Branch], maps: list[Tensor], temperature: float) -> Tensor:
    """NT-Xent of one sample, pair by pair."""
    vectors, labels = [], []
    for branch, found in zip(branches, maps, strict=True):
        for label, tokens in enumerate(branch.tokens):
            for token in tokens:
                m = found[0, :, :, token].flatten()
                m = (m - m.min()) / (m.max() - m.min())
                vectors.append(m / m.norm())
                labels.append(label)
    losses = []
    for a in range(len(labels)):
        for p in range(len(labels)):
            if a != p and labels[a] == labels[p]:
                others = sum(
                    torch.exp(vectors[a] @ vectors[n] / temperature)
                    for n in range(len(labels))
                    if labels[n] != labels[a]
                )
                positive = torch.exp(vectors[a] @ vectors[p] / temperature)
                losses.append(-torch.log(positive / (positive + others)))
    return torch.stack(losses).mean()


def run(
    demo,
    branches: list[Branch],
    noise: Tensor,
    sigmas: list[float],
    cfg: float,
    alpha: float,
    updates: list[int],
    threshold: float,
) -> tuple[Tensor, list[float], Tensor]:
    """(1, channels, h, w), the loss of each step, and the masks (concepts, h, w) of the last one.

    updates: how many for each step. noise: of unit size.
    """
    sampling = demo.model.model.model_sampling
    losses = []
    with torch.inference_mode(False):
        z = noise.clone() * math.sqrt(1.0)
        for step, sigma in enumerate(sigmas[:-1]):
            t = sampling.timestep(torch.tensor([sigma])).float().clone()
            for _ in range(updates[step]):
                with torch.enable_grad():
                    moving = z.clone().requires_grad_()
                    loss = separation(branches, [b.noise_and_maps(moving, t)[1] for b in branches], 0.5)
                    (gradient,) = torch.autograd.grad(loss, moving)
                z = z - alpha * gradient
            with torch.no_grad():
                found = [branch.noise_and_maps(z, t) for branch in branches]
                losses.append(float(separation(branches, [maps for _, maps in found], 0.5)))
                masks = torch.zeros(len(branches), *z.shape[-2:])
                for concept in range(len(branches) - 1):
                    own, tokens = found[concept + 1][1], branches[concept + 1].tokens[concept]
                    for y in range(z.shape[-2]):
                        for x in range(z.shape[-1]):
                            masks[concept + 1, y, x] = any(
                                own[0, y, x, token] > threshold * own[0, :, :, token].max() for token in tokens
                            )
                masks[0] = 1 - masks[1:].amax(dim=0)
                cond = [eps for eps, _ in found]
                uncond = [branch.noise(z, t, branch.uncond) for branch in branches]
                cond, uncond = (
                    sum(m * e for m, e in zip(masks, eps, strict=True)) / masks.sum(dim=0) for eps in (cond, uncond)
                )
                eps = uncond + cfg * (cond - uncond)
                a, a_next = 1 / (1 + sigma**2), 1 / (1 + sigmas[step + 1] ** 2)
                clean = (z - math.sqrt(1 - a) * eps) / math.sqrt(a)
                z = math.sqrt(a_next) * clean + math.sqrt(1 - a_next) * eps
        return demo.model.model.process_latent_out(z), losses, masks[1:]
