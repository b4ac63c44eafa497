"""The model families that templates are shipped for: their usual files, and the settings of ComfyUI's own templates for them."""

from typing import NamedTuple

HUB = "https://huggingface.co"


class File(NamedTuple):
    """A model's file: its name, where it can be had, and the folder of ComfyUI's models folder that it belongs in."""

    name: str
    url: str
    folder: str


class Family(NamedTuple):
    """What a family is loaded from, and how it is sampled."""

    name: str
    # A checkpoint, or a diffusion model, which needs text encoders and a VAE.
    model: File
    latent: str  # the node that makes an empty one
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    # How its users write a prompt that names both characters, {one} and {two}.
    prompt: str
    characters: tuple[str, str] = ("cat", "dog")
    negative: str = ""
    encoders: tuple[File, ...] = ()
    encoder_type: str = ""
    vae: File | None = None
    side: int = 1024
    # Of ModelSamplingAuraFlow and FluxGuidance; None where the family needs none.
    shift: float | None = None
    guidance: float | None = None


def _encoder(name: str, place: str) -> File:
    return File(name, f"{HUB}/{place}/{name}", "text_encoders")


def _vae(name: str, place: str) -> File:
    return File(name, f"{HUB}/{place}/{name}", "vae")


def _model(name: str, place: str) -> File:
    return File(name, f"{HUB}/{place}/{name}", "diffusion_models")


SENTENCE = "A photo of a {one} on the left and a {two} on the right, sitting apart on the grass of a park"
QWEN_VAE = _vae("qwen_image_vae.safetensors", "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files/vae")
FLUX_VAE = _vae("ae.safetensors", "Comfy-Org/z_image_turbo/resolve/main/split_files/vae")
KLEIN, Z_IMAGE = "Comfy-Org/flux2-klein/resolve/main/split_files", "Comfy-Org/z_image_turbo/resolve/main/split_files"
QWEN, KREA = "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files", "Comfy-Org/Krea-2/resolve/main"
ANIMA, FLUX_TEXT = "circlestone-labs/Anima/resolve/main/split_files", "comfyanonymous/flux_text_encoders/resolve/main"
ILLUSTRIOUS = "Illustrious-XL-v2.0.safetensors"
TAGS = "masterpiece, best quality, 1girl, 1boy, {one}, {two}, side by side, full body, park, day"
BAD_TAGS = "worst quality, low quality, text, signature, watermark"

FAMILIES = [
    Family(
        "SDXL",
        File(ILLUSTRIOUS, f"{HUB}/OnomaAIResearch/Illustrious-XL-v2.0/resolve/main/{ILLUSTRIOUS}", "checkpoints"),
        latent="EmptyLatentImage",
        steps=28,
        cfg=5.0,
        sampler="euler_ancestral",
        scheduler="normal",
        prompt=TAGS,
        characters=("girl", "boy"),
        negative=BAD_TAGS,
    ),
    Family(
        "Flux.1",
        _model("flux1-dev.safetensors", "Comfy-Org/flux1-dev/resolve/main"),
        latent="EmptySD3LatentImage",
        steps=20,
        cfg=1.0,
        sampler="euler",
        scheduler="simple",
        prompt=SENTENCE,
        encoders=(_encoder("clip_l.safetensors", FLUX_TEXT), _encoder("t5xxl_fp16.safetensors", FLUX_TEXT)),
        encoder_type="flux",
        vae=FLUX_VAE,
        guidance=3.5,
    ),
    Family(
        "Flux.2 Klein",
        _model("flux-2-klein-4b.safetensors", f"{KLEIN}/diffusion_models"),
        latent="EmptyFlux2LatentImage",
        steps=4,
        cfg=1.0,
        sampler="euler",
        scheduler="simple",
        prompt=SENTENCE,
        encoders=(_encoder("qwen_3_4b.safetensors", f"{KLEIN}/text_encoders"),),
        encoder_type="flux2",
        vae=_vae("flux2-vae.safetensors", "Comfy-Org/flux2-dev/resolve/main/split_files/vae"),
    ),
    Family(
        "Z-Image Turbo",
        _model("z_image_turbo_bf16.safetensors", f"{Z_IMAGE}/diffusion_models"),
        latent="EmptySD3LatentImage",
        steps=8,
        cfg=1.0,
        sampler="res_multistep",
        scheduler="simple",
        prompt=SENTENCE,
        encoders=(_encoder("qwen_3_4b.safetensors", f"{Z_IMAGE}/text_encoders"),),
        encoder_type="lumina2",
        vae=FLUX_VAE,
        shift=3.0,
    ),
    Family(
        "Krea 2 Turbo",
        _model("krea2_turbo_fp8_scaled.safetensors", f"{KREA}/diffusion_models"),
        latent="EmptyLatentImage",
        steps=8,
        cfg=1.0,
        sampler="euler",
        scheduler="simple",
        prompt=SENTENCE,
        encoders=(_encoder("qwen3vl_4b_fp8_scaled.safetensors", f"{KREA}/text_encoders"),),
        encoder_type="krea2",
        vae=QWEN_VAE,
    ),
    Family(
        "Qwen-Image",
        _model("qwen_image_2512_fp8_e4m3fn.safetensors", f"{QWEN}/diffusion_models"),
        latent="EmptySD3LatentImage",
        steps=20,
        cfg=4.0,
        sampler="euler",
        scheduler="simple",
        prompt=SENTENCE,
        encoders=(_encoder("qwen_2.5_vl_7b_fp8_scaled.safetensors", f"{QWEN}/text_encoders"),),
        encoder_type="qwen_image",
        vae=QWEN_VAE,
        side=1328,
        shift=3.1,
    ),
    Family(
        "Anima",
        _model("anima-base-v1.0.safetensors", f"{ANIMA}/diffusion_models"),
        latent="EmptyLatentImage",
        steps=30,
        cfg=4.0,
        sampler="euler",
        scheduler="simple",
        prompt=TAGS,
        characters=("girl", "boy"),
        negative=BAD_TAGS,
        encoders=(_encoder("qwen_3_06b_base.safetensors", f"{ANIMA}/text_encoders"),),
        encoder_type="stable_diffusion",
        vae=QWEN_VAE,
    ),
]
