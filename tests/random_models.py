"""The models that tests run on: a small checkpoint of random weights and three random LoRAs in three file formats.

The checkpoint differs from the demo's in what tests need: it has a middle block, its LoRAs change the text encoder too, which
has two layers (most tests encode a few prompts; twelve would take as long as what they test), and nothing in it was trained
but for the last convolution of the U-Net and of the decoder, which are fitted by least squares: sampling then ends in soft
colours that follow the prompt.
"""

import math
from collections.abc import Callable
from pathlib import Path

import comfy.clip_model
import comfy.latent_formats
import comfy.sd
import folder_paths
import torch
import torch.nn.functional as F
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from demo_assets import LOHA_METADATA, Factors, kohya, kohya_metadata, loha, peft
from small_models import checkpoint, ensure, fill, lora_layers, make_text_encoder, make_unet
from torch import Tensor, nn

RECIPE = "3"  # raise it whenever a file of the same name would come out different
CHECKPOINT = "loraclr_random.safetensors"
TRIGGERS = {"cat": "sks cat", "dog": "zwx dog", "bird": "qvk bird"}
MIDDLE = {"transformer_depth_middle": 1}
SHORT = {"num_hidden_layers": 2}
START_TOKEN, END_TOKEN, WORD_TOKENS = 49406, 49407, 49406
RESIDUAL_GAIN = 0.4
STRENGTH = 0.1  # size of a layer's change beside a random layer's own size


@torch.no_grad()
def fit(
    conv: nn.Conv2d, run: Callable[[Tensor], object], samples: Tensor, targets: Tensor, ridge: float = 1e-3
) -> None:
    """Set a 3×3 convolution to the least-squares map from what reaches it in `run(indices)` to `targets[indices]`.

    In double precision: the features' largest direction is thousands of times their mean, so that in single precision the
    rounding of one kind of CPU or another would make another model.
    """
    seen: list[Tensor] = []
    hook = conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    size = conv.weight[0].numel() + 1
    gram, cross = torch.zeros(size, size).double(), torch.zeros(size, conv.out_channels).double()
    for indices in samples.split(8):
        run(indices)
        features = F.unfold(seen.pop(), 3, padding=1).movedim(1, -1).reshape(-1, size - 1)
        features = F.pad(features, (0, 1), value=1.0).double()
        gram += features.T @ features
        cross += features.T @ targets[indices].movedim(1, -1).reshape(-1, conv.out_channels).double()
    hook.remove()
    gram += ridge * gram.diagonal().mean() * torch.eye(size).double()
    solution = torch.linalg.solve(gram, cross).T
    conv.weight.copy_(solution[:, :-1].reshape(conv.weight.shape))
    conv.bias.copy_(solution[:, -1])


def smooth_noise(count: int, channels: int, size: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(count, channels, 3, 3, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)


@torch.no_grad()
def fit_unet(unet: UNetModel, text_encoder: comfy.clip_model.CLIPTextModel, seed: int, count: int = 128) -> None:
    """Teach the last layer to tell noise from soft colours whose mean follows the text (latents 16×16)."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(WORD_TOKENS, (count, 77), generator=generator)
    words[torch.arange(77) > torch.randint(2, 12, (count, 1), generator=generator)] = END_TOKEN
    words[:, 0] = START_TOKEN
    text = torch.cat([text_encoder(part)[0] for part in words.split(16)])

    colour = text.mean(1) @ torch.randn(768, 4, generator=generator)
    colour = (colour - colour.mean(0)) / colour.std(0)
    clean = 0.5 * smooth_noise(count, 4, 16, generator) + colour[:, :, None, None]

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)
    steps = torch.linspace(0, 999, count).long()
    noise = torch.randn(clean.shape, generator=generator)
    noisy = kept[steps].sqrt()[:, None, None, None] * clean + (1 - kept[steps]).sqrt()[:, None, None, None] * noise

    fit(unet.out[2], lambda i: unet(noisy[i], steps[i].float(), text[i]), torch.arange(count), noise)


@torch.no_grad()
def fit_decoder(taesd: TAESD, seed: int, count: int = 16) -> None:
    """Teach the last layer the colours that SD1.5 latents stand for."""
    latents = smooth_noise(count, 4, 8, torch.Generator().manual_seed(seed))
    to_rgb = torch.tensor(comfy.latent_formats.SD15().latent_rgb_factors)
    colours = torch.einsum("nchw,cr->nrhw", latents, to_rgb) * 0.5 + 0.5
    targets = F.interpolate(colours.clamp(0, 1), scale_factor=8, mode="bilinear")
    decoder = taesd.taesd_decoder
    fit(decoder[-1], lambda i: decoder(latents[i]), torch.arange(count), targets)


def random_checkpoint(seed: int = 0) -> dict[str, Tensor]:
    unet, text_encoder, taesd = make_unet(**MIDDLE), make_text_encoder(**SHORT), TAESD()
    for offset, model in enumerate((unet, text_encoder, taesd)):
        fill(model, seed + offset, RESIDUAL_GAIN)
    fit_unet(unet, text_encoder, seed + 3)
    fit_decoder(taesd, seed + 4)
    return checkpoint(unet, text_encoder, taesd)


def layer_shapes() -> dict[str, torch.Size]:
    """Weight shape of every layer that LoRA trainers touch, by its diffusers name with `unet.` or `text_encoder.`."""
    unet, text_encoder = make_unet("meta", **MIDDLE), make_text_encoder("meta", **SHORT).text_model.encoder
    of_unet = {
        f"unet.{name}": unet.get_submodule(key).weight.shape for name, key in lora_layers(unet, **MIDDLE).items()
    }
    of_text = {
        f"text_encoder.text_model.encoder.{name}": module.weight.shape
        for name, module in text_encoder.named_modules()
        if isinstance(module, nn.Linear)
    }
    return of_unet | of_text


def factors(rank: int, size: Callable[[torch.Size], float], generator: torch.Generator) -> Factors:
    """Random, with a product whose entries have the standard deviation `size(shape)`."""
    found = {}
    for layer, shape in layer_shapes().items():
        std = math.sqrt(size(shape) / math.sqrt(rank))
        up = torch.randn(shape[0], rank, generator=generator) * std
        down = torch.randn(rank, math.prod(shape[1:]), generator=generator) * std
        ones = (1,) * (len(shape) - 2)
        found[layer] = up.reshape(shape[0], rank, *ones), down.reshape(rank, shape[1], *ones)
    return found


def of_layer(shape: torch.Size) -> float:
    return STRENGTH * math.prod(shape[1:]) ** -0.5


def random_kohya(rank: int = 8, alpha: float = 4.0) -> tuple[dict[str, Tensor], dict[str, str]]:
    found = factors(rank, lambda shape: of_layer(shape) * rank / alpha, torch.Generator().manual_seed(1))
    return kohya(found, alpha), kohya_metadata("loraclr_random_cat", TRIGGERS["cat"], rank, alpha)


def random_peft(rank: int = 6) -> tuple[dict[str, Tensor], dict[str, str]]:
    return peft(factors(rank, of_layer, torch.Generator().manual_seed(2))), {"format": "pt"}


def random_loha(rank: int = 4, alpha: float = 2.0) -> tuple[dict[str, Tensor], dict[str, str]]:
    generator = torch.Generator().manual_seed(3)
    one, other = (factors(rank, lambda shape: math.sqrt(of_layer(shape) * rank / alpha), generator) for _ in range(2))
    return loha(one, other, alpha), LOHA_METADATA


def write_assets() -> None:
    """The files in the host's model folders, where they are not there already."""
    checkpoints, loras = (Path(folder_paths.get_folder_paths(folder)[0]) for folder in ("checkpoints", "loras"))
    ensure(checkpoints / CHECKPOINT, RECIPE, lambda: (random_checkpoint(), {}))
    for name, make in (("cat", random_kohya), ("dog", random_peft), ("bird", random_loha)):
        ensure(loras / f"loraclr_random_{name}.safetensors", RECIPE, make)


def load(**options) -> tuple:
    """MODEL, CLIP, VAE by the stock loader, which takes every CLIP-L for one of twelve layers unless it is told.

    options: for MODEL.
    """
    path = folder_paths.get_full_path_or_raise("checkpoints", CHECKPOINT)
    text_options = {"clip_l_model_config": SHORT}
    return comfy.sd.load_checkpoint_guess_config(path, model_options=options, te_model_options=text_options)[:3]
