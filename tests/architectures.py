"""Small models of every architecture that a merge is tested on, each through the host's own configuration class.

The configuration's `get_model` and `clip_target` build them, as they do for a checkpoint; only the sizes in it are smaller
than any checkpoint's. Text encoders are shrunk by the host's own `model_options`. Four take another way:

- The encoders of Qwen-Image and Krea 2 carry a vision tower of one size only. The host's `qwen25_7b_class` and
  `qwen3vl_4b_class` put its text-only Qwen there, whose layers have the same names.
- Anima makes its text by an adapter of one size only, which is shrunk where it is built.
- SD3 is built without T5, which the host takes too: with T5 its conditioning must be 4096 wide, half a gigabyte of
  embeddings. Flux has the same T5 here, small.

The tokenizers of Wan, Lumina 2 and NewBie come with their checkpoints; here they are trained on a few prompts. That of
Flux.2-dev does too, and newer `transformers` cannot read it; here the host's Qwen tokenizer stands in, which as little fills
its tokens up.
"""

import functools
import io
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import comfy.ldm.anima.model
import comfy.model_management
import comfy.sd
import comfy.supported_models as supported
import comfy.text_encoders.flux
import comfy.text_encoders.llama
import comfy.text_encoders.newbie
import comfy.text_encoders.ovis
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.z_image
import sentencepiece
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd1_clip import SDClipModel
from comfy.supported_models_base import BASE, ClipTarget
from torch import Tensor, nn

DTYPE = torch.float32

WIDTH = 32  # of every text encoder
CLIP = {"num_hidden_layers": 3, "hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
T5 = {"num_layers": 2, "d_model": WIDTH, "d_ff": 2 * WIDTH, "d_kv": WIDTH // 2, "num_heads": 2}
QWEN = {"num_hidden_layers": 3, "hidden_size": WIDTH, "num_attention_heads": 1, "num_key_value_heads": 1}
QWEN |= {"intermediate_size": 2 * WIDTH}
SD3_TEXT_WIDTH = 4096  # fixed in the host
PIECES = 64  # of a tokenizer that is trained here
QWEN_WORDS = 151936  # of the host's Qwen tokenizer

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": WIDTH,
    "use_spatial_transformer": True,
    "legacy": False,
}
SIZES_OF_SDXL = 6 * 256  # its conditioning on sizes and crops, beside the pooled text
TRANSFORMER_WIDTH, HEADS = 64, 2
Z_IMAGE_WIDTH = 256  # no less: its modulation takes 256
ROTATED = [8, 12, 12]  # of a head's 32 channels: by frame or text, row, column

WAN = {"image_model": "wan2.1", "dim": TRANSFORMER_WIDTH, "ffn_dim": 2 * TRANSFORMER_WIDTH, "text_dim": WIDTH}
WAN |= {"num_heads": HEADS, "num_layers": 2}
WAN_TEXT = {"umt5xxl": T5 | {"vocab_size": PIECES}}


class SmallAnima(supported.Anima):
    """The host's Anima with a small adapter of its text."""

    def get_model(self, state_dict, prefix="", device=None):
        sizes = {"source_dim": WIDTH, "target_dim": WIDTH, "model_dim": WIDTH, "num_layers": 1, "num_heads": HEADS}
        adapter = functools.partial(comfy.ldm.anima.model.LLMAdapter, **sizes)
        with mock.patch.object(comfy.ldm.anima.model, "LLMAdapter", adapter):
            return super().get_model(state_dict, prefix, device)


class SmallQwen3VL(SDClipModel):
    """Krea 2's text encoder without its vision tower: the same settings, the host's text-only Qwen 3."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            layer=comfy.text_encoders.krea2.KREA2_TAP_LAYERS,
            dtype=dtype,
            textmodel_json_config={},
            special_tokens={"pad": 151643},
            layer_norm_hidden_state=False,
            model_class=comfy.text_encoders.llama.Qwen3_4B,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options,
        )


class SmallQwen25(SDClipModel):
    """Qwen-Image's text encoder without its vision tower: the same settings, the host's text-only Qwen 2.5."""

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config={},
            special_tokens={"pad": 151643},
            layer_norm_hidden_state=False,
            model_class=comfy.text_encoders.llama.Qwen25_3B,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options,
        )


def sentencepiece_model(bos_id: int = -1, kind: str = "char") -> Tensor:
    """A sentencepiece model as text encoder files carry it."""
    prompts = ["photo of a sks cat", "a picture of zwx dog", "qvk bird in the park", "video with people, 0123456789"]
    written = io.BytesIO()
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": bos_id}
    size = {"model_type": kind, "vocab_size": PIECES, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prompts), model_writer=written, minloglevel=2, **size, **special
    )
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


class Architecture(NamedTuple):
    """latent: shape of one it takes, small and not square. detected: what the host tells its variants apart by."""

    config: Callable[[dict], BASE]
    sizes: dict
    latent: tuple[int, ...]
    text: dict[str, dict]
    detected: dict[str, Tensor] = {}
    clip_target: ClipTarget | None = None
    tokenizer_data: Callable[[], dict[str, object]] = dict
    text_class: dict[str, type] = {}


ARCHITECTURES = {
    "SD1.5": Architecture(supported.SD15, UNET, (4, 16, 24), {"clip_l": CLIP}),
    "SD2 v-prediction": Architecture(
        supported.SD20,
        UNET | {"use_linear_in_transformer": True},
        (4, 16, 24),
        {"clip_h": CLIP},
        detected={"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.tensor([-1.0, 1.0])},
    ),
    "SDXL": Architecture(
        supported.SDXL,
        # As in SDXL, no attention at the finest level, and a coarse one of two transformers.
        UNET
        | {"transformer_depth": [0, 2], "transformer_depth_output": [0, 0, 2, 2], "transformer_depth_middle": 2}
        | {"context_dim": 2 * WIDTH, "num_classes": "sequential", "adm_in_channels": WIDTH + SIZES_OF_SDXL}
        | {"use_linear_in_transformer": True},
        (4, 16, 24),
        {"clip_l": CLIP, "clip_g": CLIP},
    ),
    "SD3": Architecture(
        supported.SD3,
        {
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "depth": 2,  # its width is 64 times its depth
            "input_size": None,
            "adm_in_channels": 2 * WIDTH,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": SD3_TEXT_WIDTH, "out_features": 128},
            },
            "qk_norm": "rms",
            "pos_embed_scaling_factor": None,
            "x_block_self_attn_layers": [0],  # as SD3.5 medium
        },
        (16, 12, 16),
        {"clip_l": CLIP, "clip_g": CLIP},
        clip_target=ClipTarget(
            comfy.text_encoders.sd3_clip.SD3Tokenizer, comfy.text_encoders.sd3_clip.sd3_clip(t5=False)
        ),
    ),
    "Flux": Architecture(
        supported.Flux,
        {
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "patch_size": 2,
            "hidden_size": TRANSFORMER_WIDTH,
            "num_heads": HEADS,
            "axes_dim": ROTATED,
            "theta": 10000,
            "mlp_ratio": 4.0,
            "depth": 2,
            "depth_single_blocks": 2,
            "context_in_dim": WIDTH,
            "vec_in_dim": WIDTH,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        },
        (16, 12, 16),
        {"clip_l": CLIP, "t5xxl": T5},
    ),
    "Qwen-Image": Architecture(
        supported.QwenImage,
        {
            "image_model": "qwen_image",
            "in_channels": 64,
            "num_layers": 2,
            "attention_head_dim": sum(ROTATED),
            "num_attention_heads": HEADS,
            "joint_attention_dim": WIDTH,
            "axes_dims_rope": ROTATED,
        },
        (16, 1, 12, 16),
        {"qwen25_7b": QWEN},
        text_class={"qwen25_7b": SmallQwen25},
    ),
    "Z-Image": Architecture(
        supported.ZImage,
        {
            "image_model": "lumina2",
            "patch_size": 2,
            "in_channels": 16,
            "dim": Z_IMAGE_WIDTH,
            "cap_feat_dim": WIDTH,
            "n_layers": 2,
            "n_heads": Z_IMAGE_WIDTH // sum(ROTATED),
            "n_kv_heads": Z_IMAGE_WIDTH // sum(ROTATED),
            "qk_norm": True,
            "axes_dims": ROTATED,
            "axes_lens": [1536, 512, 512],
            "rope_theta": 256.0,
            "ffn_dim_multiplier": 8.0 / 3.0,
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
        },
        (16, 12, 16),
        {"qwen3_4b": QWEN},
    ),
    "Wan": Architecture(
        supported.WAN21_T2V,
        WAN | {"model_type": "t2v"},
        (16, 2, 8, 12),
        WAN_TEXT,
        tokenizer_data=lambda: {"spiece_model": sentencepiece_model()},
    ),
    "Wan image-to-video": Architecture(
        supported.WAN21_I2V,
        WAN | {"model_type": "i2v", "in_dim": 36},
        (16, 2, 8, 12),
        WAN_TEXT,
        tokenizer_data=lambda: {"spiece_model": sentencepiece_model()},
    ),
}

_FLUX = ARCHITECTURES["Flux"].sizes
_FLUX_2 = _FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "axes_dim": 4 * [8],
}
_FLUX_2 |= {"mlp_ratio": 3.0, "theta": 2000, "context_in_dim": 3 * WIDTH, "vec_in_dim": None, "qkv_bias": False}
_FLUX_2 |= {"ops_bias": False, "global_modulation": True, "mlp_silu_act": True, "txt_ids_dims": [3]}
_FLUX_2 |= {"default_ref_method": "index", "ref_index_scale": 10.0}
ARCHITECTURES |= {
    "Flux.2 Klein": Architecture(
        supported.Flux2,
        _FLUX_2,
        (128, 6, 8),
        {"qwen3_4b": QWEN | {"num_hidden_layers": 28}},
        clip_target=ClipTarget(comfy.text_encoders.flux.KleinTokenizer, comfy.text_encoders.flux.klein_te()),
    ),
    "Chroma": Architecture(
        supported.Chroma,
        {
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "patch_size": 2,
            "hidden_size": TRANSFORMER_WIDTH,
            "num_heads": HEADS,
            "axes_dim": ROTATED,
            "theta": 10000,
            "mlp_ratio": 4.0,
            "depth": 2,
            "depth_single_blocks": 2,
            "context_in_dim": WIDTH,
            "qkv_bias": True,
            "in_dim": 64,
            "out_dim": TRANSFORMER_WIDTH,
            "hidden_dim": TRANSFORMER_WIDTH,
            "n_layers": 1,
            "txt_ids_dims": [],
            "vec_in_dim": None,
        },
        (16, 12, 16),
        {"t5xxl": T5},
    ),
    "Anima": Architecture(
        SmallAnima,
        {
            "image_model": "anima",
            "max_img_h": 240,
            "max_img_w": 240,
            "max_frames": 128,
            "in_channels": 16,
            "out_channels": 16,
            "patch_spatial": 2,
            "patch_temporal": 1,
            "concat_padding_mask": True,
            "model_channels": TRANSFORMER_WIDTH,
            "num_blocks": 2,
            "num_heads": HEADS,
            "crossattn_emb_channels": WIDTH,
            "pos_emb_cls": "rope3d",
            "pos_emb_learnable": True,
            "pos_emb_interpolation": "crop",
            "use_adaln_lora": True,
            "adaln_lora_dim": 8,
            "extra_per_block_abs_pos_emb": False,
        },
        (16, 1, 12, 16),
        {"qwen3_06b": QWEN},
    ),
}
if krea2 := getattr(supported, "Krea2", None):  # older hosts than the default have none
    ARCHITECTURES["Krea 2"] = Architecture(
        krea2,
        {
            "image_model": "krea2",
            "features": TRANSFORMER_WIDTH,
            "tdim": TRANSFORMER_WIDTH,
            "txtdim": WIDTH,
            "heads": HEADS,
            "kvheads": 1,
            "multiplier": 4,
            "layers": 2,
            "txtheads": HEADS,
            "txtkvheads": HEADS,
        },
        (16, 1, 12, 16),
        {"qwen3vl_4b": QWEN | {"num_hidden_layers": 36}},
        text_class={"qwen3vl_4b": SmallQwen3VL},
    )

_WITHOUT_POOLED = {"vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}
_LUMINA_2 = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": TRANSFORMER_WIDTH,
    "cap_feat_dim": WIDTH,
    "n_layers": 2,
    "n_heads": HEADS,
    "n_kv_heads": 1,
    "qk_norm": True,
    "axes_dims": ROTATED,
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
}
_GEMMA = QWEN | {"vocab_size": PIECES}

# More of the same layers, whose text stands in other places.
ARCHITECTURES |= {
    "Flux.2-dev": Architecture(
        supported.Flux2,
        _FLUX_2,
        (128, 6, 8),
        {"mistral3_24b": QWEN | {"num_hidden_layers": 31, "vocab_size": QWEN_WORDS}},
        clip_target=ClipTarget(comfy.text_encoders.flux.Flux2Tokenizer, comfy.text_encoders.flux.flux2_te()),
        tokenizer_data=lambda: {"mistral3_24b_tokenizer_class": comfy.text_encoders.z_image.Qwen3Tokenizer},
    ),
    "LongCat-Image": Architecture(
        supported.LongCatImage,
        _FLUX | _WITHOUT_POOLED,
        (16, 12, 16),
        {"qwen25_7b": QWEN},
        text_class={"qwen25_7b": SmallQwen25},
    ),
    "Ovis-Image": Architecture(
        supported.Flux,
        _FLUX | _WITHOUT_POOLED | {"yak_mlp": True, "txt_norm": True},
        (16, 12, 16),
        {"qwen3_2b": QWEN},
        clip_target=ClipTarget(comfy.text_encoders.ovis.OvisTokenizer, comfy.text_encoders.ovis.te()),
    ),
    "Lumina 2": Architecture(
        supported.Lumina2,
        _LUMINA_2,
        (16, 12, 16),
        {"gemma2_2b": _GEMMA},
        tokenizer_data=lambda: {"spiece_model": sentencepiece_model(bos_id=3)},
    ),
    "NewBie": Architecture(
        supported.Lumina2,
        _LUMINA_2 | {"clip_text_dim": WIDTH},
        (16, 12, 16),
        # The host gives both encoders' sizes the same, empty name.
        {"": {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3, "vocab_size": PIECES}},
        clip_target=ClipTarget(comfy.text_encoders.newbie.NewBieTokenizer, comfy.text_encoders.newbie.te()),
        # Two that cut a prompt differently.
        tokenizer_data=lambda: {
            "gemma_spiece_model": sentencepiece_model(bos_id=3),
            "jina_spiece_model": sentencepiece_model(bos_id=3, kind="bpe"),
        },
    ),
}

# Not of those that LoRA formats and merges are tested on.
OTHERS = {
    # As wide as SDXL: its ControlNets for several controls come in no other width.
    "SDXL, wide": ARCHITECTURES["SDXL"]._replace(sizes=ARCHITECTURES["SDXL"].sizes | {"model_channels": 320}),
    # Its VAE makes one latent cell of 16×16 pixels, where others make 8×8.
    "Wan 2.2": Architecture(
        supported.WAN22_T2V,
        WAN | {"model_type": "t2v", "in_dim": 48, "out_dim": 48},
        (48, 1, 8, 12),
        WAN_TEXT,
        tokenizer_data=lambda: {"spiece_model": sentencepiece_model()},
    ),
}

# The sampler makes pictures, and reads no video model.
VIDEO = ["Wan", "Wan image-to-video"]
PICTURES = [name for name in ARCHITECTURES if name not in VIDEO]
# What can make a picture beside others that it is given.
EDITING = ["Flux", "Flux.2-dev", "Flux.2 Klein", "Qwen-Image"]


def support() -> str:
    """Which nodes the tests run on which models, as a Markdown table."""
    lines = ["| model | Merge, Train | Sampler | Sampler, beside reference pictures |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | ✓ | {'✓' if name in PICTURES else 'no: it makes videos'} | {'✓' if name in EDITING else ''} |"
        for name in ARCHITECTURES
    ]
    return "\n".join(lines)


def fill(model: nn.Module, seed: int) -> None:
    """Seeded weights that keep the size of what passes through: the host leaves a new model's memory as it finds it."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        elif weight.ndim > 1:
            size = 1.0 if id(weight) in embeddings else weight[0].numel() ** -0.5
            weight.normal_(0.0, size, generator=generator)


class Model(NamedTuple):
    """latent: shape of one that it takes, without the batch."""

    model: ModelPatcher
    clip: comfy.sd.CLIP
    latent: tuple[int, ...]

    def weights(self) -> dict[str, Tensor]:
        """Every weight of the model and of its text encoders: no two of them share a name.

        By way of the patchers, which keep them while a patched model is loaded in their place.
        """
        patches = self.model.get_key_patches() | self.clip.patcher.get_key_patches()
        return {key: weight for key, ((weight, _), *_) in patches.items()}


@functools.cache
def build(name: str) -> Model:
    """The architecture's small model, the same object at each call, of seeded random weights."""
    architecture = (ARCHITECTURES | OTHERS)[name]
    config = architecture.config(architecture.sizes)
    config.set_inference_dtype(DTYPE, None)
    model = config.get_model(architecture.detected, "")
    fill(model, 0)

    options = {"dtype": DTYPE}
    options |= {f"{encoder}_model_config": sizes for encoder, sizes in architecture.text.items()}
    options |= {f"{encoder}_class": replaced for encoder, replaced in architecture.text_class.items()}
    target = architecture.clip_target or config.clip_target({})
    clip = comfy.sd.CLIP(target, tokenizer_data=architecture.tokenizer_data(), model_options=options)
    fill(clip.cond_stage_model, 1)

    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    return Model(ModelPatcher(model, device, offload), clip, architecture.latent)
