"""The layers whose attention of image to text is read, by the model's class.

In a U-Net (SD1.x, SD2.x, SDXL), the published method reads 16×16 maps at 512×512 pixels: a quarter of the latent's side.
The level whose number of queries comes nearest to that is read, with all of its cross-attention layers.

In a transformer, the four blocks that end a third of the way down are read. In Flux these are the last blocks with two
streams, where attention best covers the thing that a word names (ConceptAttention, arXiv 2502.04320); nobody has
published the like for the other transformers. A gradient through them costs a third of a pass. Each map has one place
per image token.
"""

import math
from typing import NamedTuple

from comfy.ldm.modules.attention import SpatialTransformer, SpatialVideoTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from torch import nn

Block = tuple[str, int, int]  # "input" | "middle" | "output", number, transformer block within

UNETS = "SD1.x, SD2.x, SDXL"
READ_BLOCKS = 4  # number of a transformer's blocks that are read


class Transformer(NamedTuple):
    """How a transformer is built."""

    # The models that it is, as their users call them.
    names: str
    # Its lists of blocks, in the order in which they run.
    blocks: tuple[str, ...]
    # The side of an image token, in cells of the latent.
    patch: str = "patch_size"
    # Whether a block attends to the image and then to the text, rather than to both together.
    is_cross: bool = False


# By the class within comfy.ldm; older versions of ComfyUI lack some of them. Subclasses may be built otherwise.
TRANSFORMERS = {
    "flux.model.Flux": Transformer("Flux, Flux.2, LongCat-Image, Ovis-Image", ("double_blocks", "single_blocks")),
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": Transformer("SD3", ("joint_blocks",)),
    "chroma.model.Chroma": Transformer("Chroma", ("double_blocks", "single_blocks")),
    "lumina.model.NextDiT": Transformer("Lumina 2, NewBie, Z-Image", ("layers",)),
    "qwen_image.model.QwenImageTransformer2DModel": Transformer("Qwen-Image", ("transformer_blocks",)),
    "krea2.model.SingleStreamDiT": Transformer("Krea 2", ("blocks",), "patch"),
    "anima.model.Anima": Transformer("Anima", ("blocks",), "patch_spatial", is_cross=True),
}


class UNetLayers(NamedTuple):
    """Cross-attention layers of a U-Net."""

    blocks: list[Block]

    @property
    def number(self) -> int:
        return len(self.blocks)


class TransformerLayers(NamedTuple):
    """Attentions of a transformer.

    Joint ones see the text tokens, then the image's, each padded to a multiple of `padding`, then those of reference
    images.
    """

    # The attentions that are read, counted in the order in which they run.
    numbers: range
    # Rows and columns of the image in tokens.
    size: tuple[int, int]
    padding: int
    is_cross: bool

    @property
    def number(self) -> int:
        return len(self.numbers)

    def padded(self, tokens: int) -> int:
        return math.ceil(tokens / self.padding) * self.padding

    def lengths(self, text: int, references: int) -> tuple[int, int]:
        """Return the numbers of queries and keys of an attention to `text` tokens, with so many tokens of references."""
        image = math.prod(self.size)
        if self.is_cross:
            return image, text
        joint = self.padded(text) + self.padded(image) + references
        return joint, joint

    def image(self, text: int) -> slice:
        """Return the image's place among the queries."""
        first = 0 if self.is_cross else self.padded(text)
        return slice(first, first + math.prod(self.size))


Layers = UNetLayers | TransformerLayers


def read_layers(model: nn.Module, height: int, width: int) -> Layers:
    """Return the layers to read for a latent of height × width. Raises ValueError for a model without any."""
    if isinstance(model, UNetModel):
        return _unet_layers(model, height, width)
    name = f"{type(model).__module__}.{type(model).__qualname__}".removeprefix("comfy.ldm.")
    if name not in TRANSFORMERS:
        raise ValueError(
            f"CLoRA reads the attention of {', '.join([UNETS, *(known.names for known in TRANSFORMERS.values())])};"
            f" {type(model).__name__} is none of them. Use LoRACLR Merge with this model."
        )
    transformer = TRANSFORMERS[name]
    blocks = sum(len(getattr(model, part)) for part in transformer.blocks)
    last = max(math.ceil(blocks / 3), min(blocks, READ_BLOCKS))
    patch = getattr(model, transformer.patch)
    size = math.ceil(height / patch), math.ceil(width / patch)
    padding = getattr(model, "pad_tokens_multiple", None) or 1
    return TransformerLayers(range(max(0, last - READ_BLOCKS), last), size, padding, transformer.is_cross)


def _unet_layers(model: UNetModel, height: int, width: int) -> UNetLayers:
    levels: dict[int, list[Block]] = {}
    level = 0
    for name, number, module in _blocks(model):
        for child in module:
            level += isinstance(child, Downsample) or (isinstance(child, ResBlock) and _resamples(child, Downsample))
            if isinstance(child, SpatialTransformer) and not isinstance(child, SpatialVideoTransformer):
                for index, block in enumerate(child.transformer_blocks):
                    if block.attn2 is not None:
                        levels.setdefault(level, []).append((name, number, index))
            level -= isinstance(child, Upsample) or (isinstance(child, ResBlock) and _resamples(child, Upsample))
    if not levels:
        raise ValueError("CLoRA reads cross attention, and this model has none. Use LoRACLR Merge with it.")
    cells = math.ceil(height / 4) * math.ceil(width / 4)
    return UNetLayers(levels[min(levels, key=lambda n: abs(_halve(height, n) * _halve(width, n) - cells))])


def _blocks(model: UNetModel):
    yield from (("input", i, module) for i, module in enumerate(model.input_blocks))
    if model.middle_block is not None:
        yield "middle", 0, model.middle_block
    yield from (("output", i, module) for i, module in enumerate(model.output_blocks))


def _resamples(block: ResBlock, kind: type) -> bool:
    return block.updown and isinstance(block.h_upd, kind)


def _halve(side: int, times: int) -> int:
    for _ in range(times):
        side = math.ceil(side / 2)
    return side
