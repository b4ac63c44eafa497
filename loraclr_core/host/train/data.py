"""Pictures as a model is trained on them: latents in its own scale, captions, and where the subject is."""

from typing import NamedTuple

import comfy.latent_formats
import comfy.utils
import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...progress import Progress
from ...train.captions import Caption, captions, find_trigger
from .settings import TrainSettings

SMALLEST = 64  # pixels of a side; less is hardly a cell of the deepest layers
# Side of the square of as many pixels as a model's training pictures have.
SIDE, SIDE_OF_SD1 = 1024, 512


class DataError(ValueError):
    """Pictures, captions or masks that cannot be trained on; the message says which, and what to do."""


class Given(NamedTuple):
    """What is connected to the node: batches (n, h, w, channels) and (n, h, w), texts."""

    images: list[Tensor]
    captions: list[str]
    masks: list[Tensor]
    others: list[Tensor]
    other_captions: list[str]


class Picture(NamedTuple):
    """One picture of the subject."""

    # (1, channels, …), in the model's own scale.
    latent: Tensor
    caption: Caption
    # The subject's place, (h, w), 0…1; None where it is not known.
    subject: Tensor | None


class Other(NamedTuple):
    """A picture without the subject."""

    latent: Tensor
    caption: str


class Dataset(NamedTuple):
    pictures: list[Picture]
    others: list[Other]
    # The subject beside other things (beside.py).
    beside: list[Picture]


class Sources(NamedTuple):
    """Checked pictures before they are encoded."""

    # (1, h, w, 3) each.
    pictures: list[Tensor]
    captions: list[Caption]
    # (1, h, w) each; None where the subject's place is not known.
    subjects: list[Tensor | None]
    others: list[Tensor]
    other_captions: list[str]


def check(given: Given, settings: TrainSettings) -> Sources:
    """Return single pictures with their captions and masks. Raises DataError or CaptionError."""
    pictures, others = _single(given.images), _single(given.others)
    masks = [mask for batch in given.masks for mask in (batch if batch.ndim > 2 else batch[None]).split(1)]
    if not pictures:
        raise DataError("No images: connect pictures of the concept to images, such as a Load Image.")
    if masks and len(masks) != len(pictures):
        raise DataError(f"There are {len(pictures)} images and {len(masks)} masks: connect one mask for each image.")
    if given.other_captions and not others:
        raise DataError("other_captions is connected, but others is not: connect the pictures that they describe.")
    if len(given.other_captions) not in (1, len(others)) and others:
        raise DataError(
            f"There are {len(others)} pictures of others and {len(given.other_captions)} captions for them: connect one"
            " caption for each, which says what it shows, or one for all."
        )
    for what, group in (("image", pictures), ("picture of others", others)):
        for number, picture in enumerate(group):
            _check_size(what, number, picture)
    other_captions = given.other_captions * (len(others) if len(given.other_captions) == 1 else 1)
    for caption in other_captions:
        if find_trigger(settings.trigger, caption):
            raise DataError(
                f"The caption “{caption}” of a picture of others has the trigger “{settings.trigger}” in it: others are"
                " pictures without the concept."
            )
    subjects: list[Tensor | None] = [mask if bool(mask.any()) else None for mask in masks]
    sources = Sources(
        pictures=pictures,
        captions=captions(given.captions, len(pictures), settings.trigger, settings.class_word),
        subjects=subjects or [None] * len(pictures),
        others=others,
        other_captions=other_captions,
    )
    return _with_mirrored(sources) if settings.flip else sources


def _single(batches: list[Tensor]) -> list[Tensor]:
    return [picture[..., :3] for batch in batches for picture in batch.split(1)]


def _check_size(what: str, number: int, picture: Tensor) -> None:
    height, width = picture.shape[1:3]
    if min(height, width) < SMALLEST:
        raise DataError(
            f"The {what} {number + 1} has {width}×{height} pixels: its shorter side needs at least {SMALLEST}. Leave it"
            " out, or use a larger one."
        )


def _with_mirrored(sources: Sources) -> Sources:
    mirrored = [None if subject is None else subject.flip(2) for subject in sources.subjects]
    return sources._replace(
        pictures=[*sources.pictures, *(picture.flip(2) for picture in sources.pictures)],
        captions=sources.captions * 2,
        subjects=[*sources.subjects, *mirrored],
    )


def encode(model: ModelPatcher, vae: VAE, sources: Sources, resolution: int, progress: Progress) -> Dataset:
    """Return the pictures as latents. Raises DataError where the VAE belongs to another model."""
    side = resolution or default_side(model)
    cell = vae.spacial_compression_encode()
    count = len(sources.pictures) + len(sources.others)

    def latent(number: int, picture: Tensor) -> Tensor:
        progress(f"encoding picture {number + 1} of {count}", number / count)
        return encode_picture(model, vae, fitted(picture.movedim(-1, 1), side, cell))

    pictures = []
    triples = zip(sources.pictures, sources.captions, sources.subjects, strict=True)
    for number, (picture, caption, subject) in enumerate(triples):
        encoded = latent(number, picture)
        if subject is not None:
            subject = _subject(subject, picture.shape[1:3], side, cell, encoded)
        pictures.append(Picture(encoded, caption, subject))
    others = [
        Other(latent(len(pictures) + number, picture), caption)
        for number, (picture, caption) in enumerate(zip(sources.others, sources.other_captions, strict=True))
    ]
    return Dataset(pictures, others, [])


def default_side(model: ModelPatcher) -> int:
    """Return the side of the pictures that the model was trained on."""
    latent_format = model.get_model_object("latent_format")
    return SIDE_OF_SD1 if isinstance(latent_format, comfy.latent_formats.SD15) else SIDE


def fitted(picture: Tensor, side: int, cell: int) -> Tensor:
    """Return (1, channels, h, w) with at most side² pixels, cut in the middle to whole cells."""
    height, width = picture.shape[-2:]
    scale = min(1.0, side / (height * width) ** 0.5)
    if scale < 1:
        size = (max(cell, round(width * scale)), max(cell, round(height * scale)))
        picture = comfy.utils.common_upscale(picture, *size, "area", "disabled")
    height, width = picture.shape[-2:]
    top, left = (height % cell) // 2, (width % cell) // 2
    return picture[..., top : top + height - height % cell, left : left + width - width % cell]


def encode_picture(model: ModelPatcher, vae: VAE, picture: Tensor) -> Tensor:
    """Return (1, 3, h, w), whose sides are whole cells, as the model sees it. Raises DataError."""
    encoded = vae.encode(picture.movedim(1, -1))
    wanted = model.get_model_object("latent_format").latent_channels
    if encoded.shape[1] != wanted:
        raise DataError(
            f"The VAE makes latents of {encoded.shape[1]} channels and the model takes {wanted}: connect the VAE that"
            " belongs to the model."
        )
    return _normal(model.model.process_latent_in(encoded.float().cpu()))


def _subject(mask: Tensor, size: torch.Size, side: int, cell: int, latent: Tensor) -> Tensor:
    """Return a mask over the latent's cells: 1 where any of a cell's pixels is the subject's."""
    mask = F.interpolate(mask[:, None].float(), size=tuple(size), mode="nearest")
    return _normal(F.adaptive_max_pool2d(fitted(mask, side, cell), latent.shape[-2:])[0, 0].clamp(0, 1))


def _normal(tensor: Tensor) -> Tensor:
    """Return a copy that autograd takes: ComfyUI runs nodes in inference mode."""
    with torch.inference_mode(False):
        return tensor.clone()
