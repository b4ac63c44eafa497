"""LoRA files in the key layouts that trainers write, for the small models of `architectures`.

Which names a trainer gives to which layers is stated here from the formats' descriptions and from the key lists that people
post with questions about them. It is not taken from the host's own map of names: a layer is written down as the trainer's
name and the host's weight, so that a test can tell whether the one found the other. Where the host keeps one fused weight
and the trainer several layers, `rows` says which part of it is meant.

`table` is the corpus as a Markdown table of formats and architectures.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import lora_files
import torch
from architectures import ARCHITECTURES, Model
from lora_files import StateDict

RANKS = (2, 4, 3)  # of a file's layers, in turn


class Layer(NamedTuple):
    """name: the trainer's. key: the host's weight. rows: (first, count) of a fused weight, in widths of its input."""

    name: str
    key: str
    rows: tuple[int, int] | None = None


Adapter = Callable[[str, tuple[int, ...], int], StateDict]


class Format(NamedTuple):
    """refused: nothing in the host reads these names, and the merge must say so."""

    layers: tuple[Layer, ...]
    adapter: Adapter
    refused: bool = False

    def state(self, model: Model) -> StateDict:
        """A file's tensors, random, for the sizes of `model`."""
        weights, result = model.weights(), {}
        for index, layer in enumerate(self.layers):
            shape = tuple(weights[layer.key].shape)
            if layer.rows:
                shape = (layer.rows[1] * shape[1], shape[1])
            result |= self.adapter(layer.name, shape, RANKS[index % len(RANKS)])
        return result

    def keys(self) -> set[str]:
        """The host's weights that a file changes."""
        return {layer.key for layer in self.layers}


# --- how the adapters are written --------------------------------------------------------------------------------------


def kohya(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    return lora_files.lora(name, shape, rank)


def kohya_without_alpha(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    return lora_files.lora(name, shape, rank, alpha=None)


def peft(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    return lora_files.peft(name, shape, rank)


def peft_with_alpha(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    return lora_files.peft(name, shape, rank) | {f"{name}.alpha": torch.tensor(float(2 * rank))}


def peft_default(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    """As DiffSynth saves it, with the name of PEFT's adapter left in."""
    return _renamed(lora_files.peft(name, shape, rank), {".weight": ".default.weight"})


def processors(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    """diffusers before PEFT, of attention processors."""
    return _renamed(lora_files.lora(name, shape, rank, alpha=None), {".lora_": "_lora."})


def linear_layer(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    """diffusers before PEFT, of text encoders."""
    return _renamed(lora_files.lora(name, shape, rank, alpha=None), {".lora_": ".lora_linear_layer."})


def dora(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    return lora_files.dora(name, shape, rank)


def loha(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    return lora_files.loha(name, shape, rank)


def lokr(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    return lora_files.lokr(name, shape, rank)


def full(name: str, shape: tuple[int, ...], rank: int) -> StateDict:
    return lora_files.full(name, shape)


def _renamed(state: StateDict, endings: dict[str, str]) -> StateDict:
    for old, new in endings.items():
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return state


# --- which layers there are --------------------------------------------------------------------------------------------

TRANSFORMER = "transformer_blocks.0"
OF_ATTENTION = [f"{TRANSFORMER}.{name}" for name in ("attn1.to_q", "attn2.to_k", "attn2.to_v", "attn1.to_out.0")]
OF_TRANSFORMER = [*OF_ATTENTION, f"{TRANSFORMER}.ff.net.0.proj", f"{TRANSFORMER}.ff.net.2"]

# diffusers' blocks and the same in the original U-Net
SD_BLOCKS = {"down_blocks.0.attentions.0": "input_blocks.1.1", "mid_block.attentions.0": "middle_block.1"}
SD_BLOCKS |= {"up_blocks.1.attentions.0": "output_blocks.2.1"}
SDXL_BLOCKS = {"down_blocks.1.attentions.0": "input_blocks.3.1", "mid_block.attentions.0": "middle_block.1"}
SDXL_BLOCKS |= {"up_blocks.0.attentions.1": "output_blocks.1.1"}
CONVOLUTIONS = {
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.resnets.0.time_emb_proj": "input_blocks.1.0.emb_layers.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
}


def unet(blocks: dict[str, str], inner: Iterable[str] = OF_TRANSFORMER, others: dict[str, str] | None = None) -> list:
    """Layers of a U-Net by diffusers' names."""
    pairs = {f"{block}.{name}": f"{own}.{name}" for block, own in blocks.items() for name in inner}
    return of_model(pairs | (others or {}))


def of_model(pairs: dict[str, str]) -> list[Layer]:
    return [Layer(name, f"diffusion_model.{own}.weight") for name, own in pairs.items()]


def fused(parts: dict[str, tuple[str, tuple[int, int]]]) -> list[Layer]:
    return [Layer(name, f"diffusion_model.{own}.weight", rows) for name, (own, rows) in parts.items()]


def as_the_host(names: Iterable[str]) -> list[Layer]:
    """Layers that the trainer calls as the host does."""
    return of_model({name: name for name in names})


CLIP_LAYERS = [f"text_model.encoder.layers.{n}" for n in ("0.self_attn.q_proj", "1.self_attn.out_proj", "2.mlp.fc1")]


def text(encoder: str, names: Iterable[str] = tuple(CLIP_LAYERS)) -> list[Layer]:
    """Layers of a text encoder of the host's by its own names."""
    return [Layer(name, f"{encoder}.transformer.{name}.weight") for name in names]


SD15_UNET, SD15_TEXT = unet(SD_BLOCKS), text("clip_l")
SD15_ALL = unet(SD_BLOCKS, [*OF_TRANSFORMER, "proj_in"], CONVOLUTIONS)
SDXL_UNET, SDXL_TEXT, SDXL_TEXT_2 = unet(SDXL_BLOCKS), text("clip_l"), text("clip_g")
SDXL_ALL = unet(SDXL_BLOCKS, [*OF_TRANSFORMER, "proj_in"], CONVOLUTIONS)
T5_LAYERS = ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.1.layer.1.DenseReluDense.wi_0"]

Q, K, V, MLP = (0, 1), (1, 1), (2, 1), (3, 4)
FLUX_FUSED = as_the_host(
    [
        *("double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.qkv", "double_blocks.0.img_attn.proj"),
        *("double_blocks.1.img_mlp.0", "double_blocks.0.txt_mlp.2", "double_blocks.0.img_mod.lin"),
        *("single_blocks.0.linear1", "single_blocks.1.linear2", "single_blocks.0.modulation.lin"),
    ]
)
FLUX_SPLIT = [
    *fused(
        {
            "transformer_blocks.0.attn.to_q": ("double_blocks.0.img_attn.qkv", Q),
            "transformer_blocks.0.attn.to_k": ("double_blocks.0.img_attn.qkv", K),
            "transformer_blocks.0.attn.to_v": ("double_blocks.0.img_attn.qkv", V),
            "transformer_blocks.0.attn.add_q_proj": ("double_blocks.0.txt_attn.qkv", Q),
            "transformer_blocks.0.attn.add_v_proj": ("double_blocks.0.txt_attn.qkv", V),
            "single_transformer_blocks.0.attn.to_q": ("single_blocks.0.linear1", Q),
            "single_transformer_blocks.0.attn.to_k": ("single_blocks.0.linear1", K),
            "single_transformer_blocks.0.attn.to_v": ("single_blocks.0.linear1", V),
            "single_transformer_blocks.0.proj_mlp": ("single_blocks.0.linear1", MLP),
        }
    ),
    *of_model(
        {
            "transformer_blocks.0.attn.to_out.0": "double_blocks.0.img_attn.proj",
            "transformer_blocks.1.attn.to_add_out": "double_blocks.1.txt_attn.proj",
            "transformer_blocks.0.ff.net.0.proj": "double_blocks.0.img_mlp.0",
            "transformer_blocks.0.ff_context.net.2": "double_blocks.0.txt_mlp.2",
            "transformer_blocks.0.norm1.linear": "double_blocks.0.img_mod.lin",
            "single_transformer_blocks.1.proj_out": "single_blocks.1.linear2",
            "single_transformer_blocks.1.norm.linear": "single_blocks.1.modulation.lin",
        }
    ),
]
SD3_FUSED = as_the_host(
    f"joint_blocks.0.{name}" for name in ("x_block.attn.qkv", "context_block.attn.qkv", "x_block.mlp.fc1")
)
SD3_SPLIT = [
    *fused(
        {
            "transformer_blocks.0.attn.to_q": ("joint_blocks.0.x_block.attn.qkv", Q),
            "transformer_blocks.0.attn.to_v": ("joint_blocks.0.x_block.attn.qkv", V),
            "transformer_blocks.0.attn.add_k_proj": ("joint_blocks.0.context_block.attn.qkv", K),
            "transformer_blocks.0.attn2.to_q": ("joint_blocks.0.x_block.attn2.qkv", Q),
        }
    ),
    *of_model(
        {
            "transformer_blocks.0.attn.to_out.0": "joint_blocks.0.x_block.attn.proj",
            "transformer_blocks.0.attn.to_add_out": "joint_blocks.0.context_block.attn.proj",
            "transformer_blocks.1.ff.net.0.proj": "joint_blocks.1.x_block.mlp.fc1",
            "transformer_blocks.0.ff_context.net.2": "joint_blocks.0.context_block.mlp.fc2",
        }
    ),
]
QWEN = as_the_host(
    f"transformer_blocks.{name}"
    for name in (
        *("0.attn.to_q", "0.attn.to_k", "0.attn.to_v", "0.attn.add_q_proj", "0.attn.add_k_proj", "1.attn.to_out.0"),
        *("0.attn.to_add_out", "0.img_mlp.net.0.proj", "1.img_mlp.net.2", "0.txt_mlp.net.0.proj"),
        *("0.img_mod.1", "0.txt_mod.1"),
    )
)
Z_IMAGE_OTHERS = as_the_host(
    ["layers.0.feed_forward.w1", "layers.1.feed_forward.w2", "layers.0.feed_forward.w3", "layers.0.adaLN_modulation.0"]
)
Z_IMAGE_SPLIT = [
    *fused(
        {
            "layers.0.attention.to_q": ("layers.0.attention.qkv", Q),
            "layers.0.attention.to_k": ("layers.0.attention.qkv", K),
            "layers.0.attention.to_v": ("layers.0.attention.qkv", V),
            "layers.1.attention.to_q": ("layers.1.attention.qkv", Q),
            "context_refiner.0.attention.to_v": ("context_refiner.0.attention.qkv", V),
        }
    ),
    *of_model({"layers.0.attention.to_out.0": "layers.0.attention.out"}),
]
Z_IMAGE_FUSED = as_the_host(["layers.0.attention.qkv", "layers.1.attention.qkv", "layers.0.attention.out"])
WAN = as_the_host(
    f"blocks.{name}"
    for name in (
        *("0.self_attn.q", "0.self_attn.k", "0.self_attn.v", "1.self_attn.o", "0.cross_attn.q", "0.cross_attn.k"),
        *("1.cross_attn.v", "0.ffn.0", "0.ffn.2"),
    )
)
WAN_DIFFUSERS = of_model(
    {
        "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
        "blocks.0.attn2.to_k": "blocks.0.cross_attn.k",
        "blocks.0.ffn.net.0.proj": "blocks.0.ffn.0",
    }
)

_KREA = {
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_gate": "attn.gate",
    "attn.to_out.0": "attn.wo",
    "ff.gate": "mlp.gate",
    "ff.down": "mlp.down",
}
KREA_DIFFUSERS = of_model(
    {
        f"{name}.{theirs}": f"{own}.{ours}"
        for name, own in {
            "transformer_blocks.0": "blocks.0",
            "transformer_blocks.1": "blocks.1",
            "text_fusion.layerwise_blocks.0": "txtfusion.layerwise_blocks.0",
            "text_fusion.refiner_blocks.1": "txtfusion.refiner_blocks.1",
        }.items()
        for theirs, ours in _KREA.items()
    }
    | {"img_in": "first", "txt_in.linear_1": "txtmlp.1", "time_mod_proj": "tproj.1"}
)
KREA = as_the_host(layer.key.removeprefix("diffusion_model.").removesuffix(".weight") for layer in KREA_DIFFUSERS)
# As people post them: the three projections of attention in one.
KREA_IN_ONE = of_model({f"transformer_blocks.{n}.attn.to_qkv": f"blocks.{n}.attn.wq" for n in range(2)})
ANIMA = as_the_host(
    [
        *("blocks.0.self_attn.q_proj", "blocks.0.self_attn.k_proj", "blocks.1.self_attn.v_proj"),
        *("blocks.1.self_attn.output_proj", "blocks.0.cross_attn.q_proj", "blocks.0.cross_attn.k_proj"),
        *("blocks.1.cross_attn.v_proj", "blocks.0.mlp.layer1", "blocks.1.mlp.layer2"),
        *("llm_adapter.blocks.0.self_attn.q_proj", "llm_adapter.blocks.0.cross_attn.v_proj"),
    ]
)
FLUX_2_FUSED = as_the_host(
    [
        *("double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.qkv", "double_blocks.0.img_attn.proj"),
        *("double_blocks.1.img_mlp.0", "double_blocks.0.txt_mlp.2", "single_blocks.0.linear1"),
        *("single_blocks.1.linear2", "double_stream_modulation_img.lin", "single_stream_modulation.lin"),
    ]
)
FLUX_2_SPLIT = [
    *(layer for layer in FLUX_SPLIT if layer.name.startswith("transformer_blocks.0.attn.")),
    *of_model(
        {
            "transformer_blocks.0.ff.linear_in": "double_blocks.0.img_mlp.0",
            "transformer_blocks.1.ff_context.linear_out": "double_blocks.1.txt_mlp.2",
            "single_transformer_blocks.0.attn.to_qkv_mlp_proj": "single_blocks.0.linear1",
            "single_transformer_blocks.1.attn.to_out": "single_blocks.1.linear2",
        }
    ),
]
CHROMA_FUSED = as_the_host(
    [
        *("double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.qkv", "double_blocks.0.img_attn.proj"),
        *("double_blocks.1.img_mlp.0", "double_blocks.0.txt_mlp.2", "single_blocks.0.linear1"),
        *("single_blocks.1.linear2", "distilled_guidance_layer.layers.0.in_layer"),
    ]
)
CHROMA_SPLIT = [layer for layer in FLUX_SPLIT if not layer.name.partition(".")[2].partition(".")[2].startswith("norm")]


# --- how the layers are called in a file -------------------------------------------------------------------------------


def dotted(prefix: str, layers: Iterable[Layer]) -> tuple[Layer, ...]:
    return tuple(layer._replace(name=prefix + layer.name) for layer in layers)


def underscored(prefix: str, layers: Iterable[Layer]) -> tuple[Layer, ...]:
    return tuple(layer._replace(name=prefix + layer.name.replace(".", "_")) for layer in layers)


def original(layers: Iterable[Layer]) -> list[Layer]:
    """By the names of the original model instead of diffusers'."""
    return [layer._replace(name=layer.key.removeprefix("diffusion_model.").removesuffix(".weight")) for layer in layers]


def of_processors(layers: Iterable[Layer]) -> list[Layer]:
    """attn1.to_q -> attn1.processor.to_q, and to_out.0 -> to_out."""
    return [layer._replace(name=layer.name.replace(".to_", ".processor.to_").removesuffix(".0")) for layer in layers]


SD15_KOHYA = underscored("lora_unet_", SD15_UNET) + underscored("lora_te_", SD15_TEXT)
SD15_KOHYA_ALL = underscored("lora_unet_", SD15_ALL)
SD2_KOHYA = underscored("lora_unet_", SD15_UNET) + underscored("lora_te_", text("clip_h"))
SDXL_KOHYA_TEXT = underscored("lora_te1_", SDXL_TEXT) + underscored("lora_te2_", SDXL_TEXT_2)
SDXL_KOHYA = underscored("lora_unet_", original(SDXL_UNET)) + SDXL_KOHYA_TEXT
SDXL_KOHYA_ALL = underscored("lora_unet_", original(SDXL_ALL))
SD15_PEFT = dotted("unet.", unet(SD_BLOCKS, OF_ATTENTION)) + dotted("text_encoder.", SD15_TEXT)
SDXL_PEFT = dotted("unet.", unet(SDXL_BLOCKS, OF_ATTENTION)) + dotted("text_encoder.", SDXL_TEXT)

CORPUS: dict[tuple[str, str], Format] = {
    ("kohya", "SD1.5"): Format(SD15_KOHYA, kohya),
    ("kohya", "SD2 v-prediction"): Format(SD2_KOHYA, kohya),
    ("kohya", "SDXL"): Format(SDXL_KOHYA, kohya),
    ("kohya", "SD3"): Format(underscored("lora_unet_", SD3_FUSED), kohya),
    ("kohya", "Flux"): Format(underscored("lora_unet_", FLUX_FUSED) + underscored("lora_te1_", SD15_TEXT), kohya),
    ("kohya", "Qwen-Image"): Format(underscored("lora_unet_", QWEN), kohya),
    ("kohya", "Wan"): Format(underscored("lora_unet_", WAN), kohya),
    # musubi-tuner's own names have to be converted first, by a script that comes with it.
    ("kohya", "Z-Image"): Format(underscored("lora_unet_", Z_IMAGE_SPLIT), kohya, refused=True),
    ("kohya, converted for ComfyUI", "Z-Image"): Format(
        underscored("lora_unet_", Z_IMAGE_FUSED + Z_IMAGE_OTHERS), kohya
    ),
    ("kohya, without alpha", "SD1.5"): Format(SD15_KOHYA, kohya_without_alpha),
    ("kohya, without alpha", "SDXL"): Format(SDXL_KOHYA, kohya_without_alpha),
    ("kohya, without alpha", "Flux"): Format(underscored("lora_unet_", FLUX_FUSED), kohya_without_alpha),
    ("kohya with convolutions (LoCon)", "SD1.5"): Format(SD15_KOHYA_ALL, kohya),
    ("kohya with convolutions (LoCon)", "SDXL"): Format(SDXL_KOHYA_ALL, kohya),
    # Of a U-Net's attention layers the host knows diffusers' older names only.
    ("diffusers, PEFT", "SD1.5"): Format(SD15_PEFT, peft, refused=True),
    ("diffusers, PEFT", "SDXL"): Format(SDXL_PEFT, peft, refused=True),
    ("diffusers, PEFT", "SD3"): Format(dotted("transformer.", SD3_SPLIT), peft),
    ("diffusers, PEFT", "Flux"): Format(dotted("transformer.", FLUX_SPLIT) + dotted("text_encoder.", SD15_TEXT), peft),
    ("diffusers, PEFT", "Qwen-Image"): Format(dotted("transformer.", QWEN), peft),
    ("diffusers, PEFT", "Z-Image"): Format(dotted("transformer.", Z_IMAGE_SPLIT + Z_IMAGE_OTHERS), peft),
    ("diffusers, PEFT", "Wan"): Format(dotted("transformer.", WAN_DIFFUSERS), peft, refused=True),
    ("diffusers before PEFT, U-Net", "SD1.5"): Format(
        dotted("unet.", of_processors(unet(SD_BLOCKS, OF_ATTENTION))), processors
    ),
    ("diffusers before PEFT, U-Net", "SDXL"): Format(
        dotted("unet.", of_processors(unet(SDXL_BLOCKS, OF_ATTENTION))), processors
    ),
    ("diffusers before PEFT, text encoder", "SD1.5"): Format(dotted("text_encoder.", SD15_TEXT), linear_layer),
    ("diffusers before PEFT, text encoder", "SDXL"): Format(
        dotted("text_encoder.", SDXL_TEXT) + dotted("text_encoder_2.", SDXL_TEXT_2), linear_layer
    ),
    ("OneTrainer", "SD1.5"): Format(SD15_KOHYA, kohya),
    ("OneTrainer", "SDXL"): Format(underscored("lora_unet_", SDXL_UNET) + SDXL_KOHYA_TEXT, kohya),
    ("OneTrainer", "SD3"): Format(
        underscored("lora_transformer_", SD3_SPLIT)
        + underscored("lora_te1_", [*SDXL_TEXT, *text("clip_l", ["text_projection"])])
        + underscored("lora_te2_", [*SDXL_TEXT_2, *text("clip_g", ["text_projection"])]),
        kohya,
    ),
    ("OneTrainer", "Flux"): Format(
        underscored("lora_transformer_", FLUX_SPLIT)
        + underscored("lora_te1_", SD15_TEXT)
        + underscored("lora_te2_", text("t5xxl", T5_LAYERS)),
        kohya,
    ),
    ("OneTrainer, DoRA", "SDXL"): Format(underscored("lora_unet_", SDXL_UNET) + SDXL_KOHYA_TEXT, dora),
    ("ai-toolkit", "Flux"): Format(dotted("transformer.", FLUX_SPLIT), peft_with_alpha),
    ("ai-toolkit", "Qwen-Image"): Format(dotted("diffusion_model.", QWEN), peft),
    ("ai-toolkit", "Z-Image"): Format(dotted("diffusion_model.", Z_IMAGE_SPLIT + Z_IMAGE_OTHERS), peft),
    ("ai-toolkit", "Wan"): Format(dotted("diffusion_model.", WAN), peft),
    ("DiffSynth", "Qwen-Image"): Format(dotted("", QWEN), peft_default),
    ("DiffSynth", "Z-Image"): Format(dotted("", Z_IMAGE_SPLIT), peft_default),
    ("without prefix", "Qwen-Image"): Format(dotted("", QWEN), kohya),
    ("VideoX-Fun", "Wan"): Format(underscored("lora_unet__", WAN), kohya),
    ("LyCORIS LoHa", "SD1.5"): Format(SD15_KOHYA_ALL, loha),
    ("LyCORIS LoHa", "SDXL"): Format(SDXL_KOHYA_ALL, loha),
    ("LyCORIS LoKr", "SD1.5"): Format(SD15_KOHYA_ALL, lokr),
    ("LyCORIS LoKr", "SDXL"): Format(SDXL_KOHYA_ALL, lokr),
    ("LyCORIS DoRA", "SD1.5"): Format(SD15_KOHYA, dora),
    ("LyCORIS DoRA", "SDXL"): Format(SDXL_KOHYA, dora),
    ("LyCORIS full", "SD1.5"): Format(SD15_KOHYA_ALL, full),
    ("LyCORIS full", "SDXL"): Format(SDXL_KOHYA_ALL, full),
    ("SimpleTuner LyCORIS LoKr", "SD3"): Format(underscored("lycoris_", SD3_SPLIT), lokr),
    ("SimpleTuner LyCORIS LoKr", "Flux"): Format(underscored("lycoris_", FLUX_SPLIT), lokr),
    ("SimpleTuner LyCORIS LoKr", "Qwen-Image"): Format(underscored("lycoris_", QWEN), lokr),
    ("SimpleTuner LyCORIS LoKr", "Z-Image"): Format(underscored("lycoris_", Z_IMAGE_SPLIT), lokr),
    ("kohya", "Flux.2 Klein"): Format(underscored("lora_unet_", FLUX_2_FUSED), kohya),
    ("kohya", "Anima"): Format(underscored("lora_unet_", ANIMA), kohya),
    ("kohya", "Chroma"): Format(underscored("lora_unet_", CHROMA_FUSED), kohya),
    ("diffusers, PEFT", "Flux.2 Klein"): Format(dotted("transformer.", FLUX_2_SPLIT), peft),
    ("diffusers, PEFT", "Chroma"): Format(dotted("transformer.", CHROMA_SPLIT), peft),
    ("ai-toolkit", "Flux.2 Klein"): Format(dotted("diffusion_model.", FLUX_2_FUSED), peft),
    ("ai-toolkit", "Anima"): Format(dotted("diffusion_model.", ANIMA), peft),
    ("ai-toolkit", "Chroma"): Format(dotted("diffusion_model.", CHROMA_FUSED), peft),
    ("LyCORIS LoKr", "Anima"): Format(underscored("lora_unet_", ANIMA), lokr),
    # The host's own names, which any architecture takes.
    ("ComfyUI", "Flux.2 Klein"): Format(dotted("diffusion_model.", FLUX_2_FUSED), kohya),
    ("ComfyUI", "Anima"): Format(dotted("diffusion_model.", ANIMA), kohya),
    ("ComfyUI", "Chroma"): Format(dotted("diffusion_model.", CHROMA_FUSED), kohya),
    ("ComfyUI", "SD1.5"): Format(dotted("diffusion_model.", original(SD15_UNET)), kohya),
    ("ComfyUI", "SD2 v-prediction"): Format(dotted("diffusion_model.", original(SD15_UNET)), kohya),
    ("ComfyUI", "SDXL"): Format(dotted("diffusion_model.", original(SDXL_UNET)), kohya),
    ("ComfyUI", "SD3"): Format(dotted("diffusion_model.", SD3_FUSED), kohya),
    ("ComfyUI", "Flux"): Format(dotted("diffusion_model.", FLUX_FUSED), kohya),
    ("ComfyUI", "Qwen-Image"): Format(dotted("diffusion_model.", QWEN), kohya),
    ("ComfyUI", "Z-Image"): Format(dotted("diffusion_model.", Z_IMAGE_FUSED + Z_IMAGE_OTHERS), kohya),
    ("ComfyUI", "Wan"): Format(dotted("diffusion_model.", WAN), kohya),
}
if "Krea 2" in ARCHITECTURES:
    CORPUS |= {
        ("kohya", "Krea 2"): Format(underscored("lora_unet_", KREA), kohya),
        ("diffusers, PEFT", "Krea 2"): Format(dotted("transformer.", KREA_DIFFUSERS), peft),
        ("ai-toolkit", "Krea 2"): Format(dotted("diffusion_model.", KREA), peft),
        ("SimpleTuner LyCORIS LoKr", "Krea 2"): Format(underscored("lycoris_", KREA_IN_ONE), lokr, refused=True),
        ("ComfyUI", "Krea 2"): Format(dotted("diffusion_model.", KREA), kohya),
    }


def table() -> str:
    """Formats × architectures in Markdown: which files merge, and which are refused by name."""
    columns = [name for name in ARCHITECTURES if any(name == architecture for _, architecture in CORPUS)]
    lines = [f"| file format | {' | '.join(columns)} |", "| --- " * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(name for name, _ in CORPUS):
        found = [CORPUS.get((name, architecture)) for architecture in columns]
        cells = ["" if entry is None else "refused" if entry.refused else "✓" for entry in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
