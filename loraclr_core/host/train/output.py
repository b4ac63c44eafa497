"""A trained LoRA as tensors and metadata that any ComfyUI, kohya's tools and model managers read."""

import json
import time
from collections import Counter
from dataclasses import asdict

import torch
from torch import Tensor, nn

from ..loaded import Deltas
from ..lora import header
from ..lora.keys import as_stored
from ..lora.layers import Layers
from ..weights import weight_shape
from .data import Sources
from .learner import Losses
from .settings import TrainSettings

# The metadata that says how a file was made, as JSON.
TRAINING = "loraclr.training"
RECENT = 50  # steps of which the mean loss is told


def tensors(layers: Layers, deltas: Deltas) -> dict[str, Tensor]:
    """Return the factors by the names of the model's own modules, which load on every architecture.

    Layers that took no part in any step are left out: their up matrix is still zero.
    """
    result: dict[str, Tensor] = {}
    for key, delta in deltas.items():
        if not bool(delta.up.any()):
            continue
        name = key.removesuffix(".weight")
        up, down = as_stored(delta, _kernel(layers[key]))
        alpha = torch.tensor(float(delta.rank))
        result |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": alpha}
    return result


def _kernel(module: nn.Module) -> torch.Size:
    shape = weight_shape(module)
    assert shape is not None
    return shape[1:]


def mean_losses(losses: list[Losses]) -> dict[str, float]:
    """Return the mean of each term over the last steps that had it."""
    means = {}
    for name in Losses._fields:
        values = [value for step in losses if (value := getattr(step, name)) is not None][-RECENT:]
        if values:
            means[name] = sum(values) / len(values)
    return means


def metadata(
    title: str, family: str, settings: TrainSettings, sources: Sources, losses: list[Losses], identity: str
) -> dict[str, str]:
    """Return the metadata of a file after as many steps as there are losses. identity: of the training."""
    steps, count = len(losses), len(sources.pictures)
    class_word, trigger = settings.class_word, settings.trigger
    training = {
        "trigger": trigger,
        "class_word": class_word,
        "steps": steps,
        "identity": identity,
        "losses": mean_losses(losses),
        "settings": asdict(settings),
    }
    folder = f"1_{trigger}"
    values = {
        TRAINING: json.dumps(training),
        "modelspec.trigger_phrase": trigger,
        "modelspec.description": f"{trigger}: trained with LoRACLR, preservation {settings.preservation:g}",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        "modelspec.resolution": _resolution(sources),
        "ss_num_train_images": str(count),
        "ss_num_reg_images": str(len(sources.others)),
        "ss_learning_rate": f"{settings.learning_rate:g}",
        "ss_max_train_steps": str(steps),
        "ss_steps": str(steps),
        "ss_batch_size_per_device": str(settings.batch),
        "ss_seed": str(settings.seed),
        "ss_prior_loss_weight": f"{settings.preservation:g}",
        "ss_min_snr_gamma": "5.0" if settings.weighting == "Min-SNR 5" else "None",
        "ss_dataset_dirs": json.dumps({folder: {"n_repeats": 1, "img_count": count}}),
        "ss_tag_frequency": json.dumps({folder: _tags(sources)}),
    }
    return values | header.common(title, family, settings.rank, settings.rank)


def _tags(sources: Sources) -> dict[str, int]:
    tags = [tag.strip() for caption in sources.captions for tag in caption.concept.split(",")]
    return dict(Counter(tag for tag in tags if tag))


def _resolution(sources: Sources) -> str:
    """Return the size that most pictures have."""
    sizes = Counter((picture.shape[2], picture.shape[1]) for picture in sources.pictures)
    (width, height), _ = sizes.most_common(1)[0]
    return f"{width}x{height}"
