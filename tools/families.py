"""The model families that templates are shipped for: their usual files, and the settings of ComfyUI's own templates for them."""

from typing import NamedTuple

HUB = "https://huggingface.co"


class File(NamedTuple):
    """A model's file: its name, where it can be had, and the folder of ComfyUI's models folder that it belongs in."""

    name: str
    url: str
    folder: str


class Words(NamedTuple):
    """How a family's users write their prompts."""

    prompt: str  # names both characters, {one} and {two}
    characters: tuple[str, str] = ("cat", "dog")
    negative: str = ""


class Pose(NamedTuple):
    """What holds the characters to the poses of a picture."""

    file: File  # a ControlNet, or a patch of the model
    strength: float = 1.0
    end: float = 1.0  # share of the steps
    control: str = ""  # which of its controls, where it must be told
    title: str | None = None  # of its loader, where the file's name says too little


class Family(NamedTuple):
    """What a family is loaded from, and how it is sampled."""

    name: str
    # A checkpoint, or a diffusion model, which needs text encoders and a VAE.
    model: File
    latent: str  # the node that makes an empty one
    steps: int
    cfg: float
    words: Words
    sampler: str = "euler"
    scheduler: str = "simple"
    encoders: tuple[File, ...] = ()
    encoder_type: str = ""
    vae: File | None = None
    side: int = 1024
    # Of ModelSamplingAuraFlow and FluxGuidance; None where the family needs none.
    shift: float | None = None
    guidance: float | None = None
    # None where ComfyUI has nothing that reads poses.
    pose: Pose | None = None


def hub(place: str, name: str, folder: str = "") -> File:
    """Return a file on the hub. place: owner, repository and folders. folder: ComfyUI's, if not the last of these."""
    owner, repository, *path = place.split("/")
    return File(name, "/".join((HUB, owner, repository, "resolve/main", *path, name)), folder or path[-1])


SENTENCE = Words("A photo of a {one} on the left and a {two} on the right, sitting apart on the grass of a park")
TAGS = Words(
    "masterpiece, best quality, 1girl, 1boy, {one}, {two}, side by side, full body, park, day",
    ("girl", "boy"),
    "worst quality, low quality, text, signature, watermark",
)
KLEIN, Z_IMAGE = "Comfy-Org/flux2-klein/split_files", "Comfy-Org/z_image_turbo/split_files"
QWEN, KREA = "Comfy-Org/Qwen-Image_ComfyUI/split_files", "Comfy-Org/Krea-2"
ANIMA, FLUX_TEXT = "circlestone-labs/Anima/split_files", "comfyanonymous/flux_text_encoders"
QWEN_VAE = hub(f"{QWEN}/vae", "qwen_image_vae.safetensors")
FLUX_VAE = hub(f"{Z_IMAGE}/vae", "ae.safetensors")
SD15_POSE = Pose(
    hub("comfyanonymous/ControlNet-v1-1_fp16_safetensors", "control_v11p_sd15_openpose_fp16.safetensors", "controlnet"),
    strength=0.8,
)

FAMILIES = [
    Family(
        "SDXL",
        hub("OnomaAIResearch/Illustrious-XL-v2.0", "Illustrious-XL-v2.0.safetensors", "checkpoints"),
        latent="EmptyLatentImage",
        steps=28,
        cfg=5.0,
        sampler="euler_ancestral",
        scheduler="normal",
        words=TAGS,
        pose=Pose(
            hub("xinsir/controlnet-union-sdxl-1.0", "diffusion_pytorch_model_promax.safetensors", "controlnet"),
            strength=0.8,
            control="openpose",
            title="Load Union ProMax for SDXL",
        ),
    ),
    Family(
        "Flux.1",
        hub("Comfy-Org/flux1-dev", "flux1-dev.safetensors", "diffusion_models"),
        latent="EmptySD3LatentImage",
        steps=20,
        cfg=1.0,
        words=SENTENCE,
        encoders=(
            hub(FLUX_TEXT, "clip_l.safetensors", "text_encoders"),
            hub(FLUX_TEXT, "t5xxl_fp16.safetensors", "text_encoders"),
        ),
        encoder_type="flux",
        vae=FLUX_VAE,
        guidance=3.5,
        # With the settings of its authors.
        pose=Pose(
            hub(
                "Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0",
                "diffusion_pytorch_model.safetensors",
                "controlnet",
            ),
            strength=0.9,
            end=0.65,
            title="Load Union Pro 2.0 for Flux",
        ),
    ),
    Family(
        "Flux.2 Klein",
        hub(f"{KLEIN}/diffusion_models", "flux-2-klein-4b.safetensors"),
        latent="EmptyFlux2LatentImage",
        steps=4,
        cfg=1.0,
        words=SENTENCE,
        encoders=(hub(f"{KLEIN}/text_encoders", "qwen_3_4b.safetensors"),),
        encoder_type="flux2",
        vae=hub("Comfy-Org/flux2-dev/split_files/vae", "flux2-vae.safetensors"),
    ),
    Family(
        "Z-Image Turbo",
        hub(f"{Z_IMAGE}/diffusion_models", "z_image_turbo_bf16.safetensors"),
        latent="EmptySD3LatentImage",
        steps=8,
        cfg=1.0,
        sampler="res_multistep",
        words=SENTENCE,
        encoders=(hub(f"{Z_IMAGE}/text_encoders", "qwen_3_4b.safetensors"),),
        encoder_type="lumina2",
        vae=FLUX_VAE,
        shift=3.0,
        pose=Pose(
            hub(
                "alibaba-pai/Z-Image-Turbo-Fun-Controlnet-Union",
                "Z-Image-Turbo-Fun-Controlnet-Union.safetensors",
                "model_patches",
            )
        ),
    ),
    Family(
        "Krea 2 Turbo",
        hub(f"{KREA}/diffusion_models", "krea2_turbo_fp8_scaled.safetensors"),
        latent="EmptyLatentImage",
        steps=8,
        cfg=1.0,
        words=SENTENCE,
        encoders=(hub(f"{KREA}/text_encoders", "qwen3vl_4b_fp8_scaled.safetensors"),),
        encoder_type="krea2",
        vae=QWEN_VAE,
    ),
    Family(
        "Qwen-Image",
        hub(f"{QWEN}/diffusion_models", "qwen_image_2512_fp8_e4m3fn.safetensors"),
        latent="EmptySD3LatentImage",
        steps=20,
        cfg=4.0,
        words=SENTENCE,
        encoders=(hub(f"{QWEN}/text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors"),),
        encoder_type="qwen_image",
        vae=QWEN_VAE,
        side=1328,
        shift=3.1,
        pose=Pose(
            hub(
                "alibaba-pai/Qwen-Image-2512-Fun-Controlnet-Union",
                "Qwen-Image-2512-Fun-Controlnet-Union-2602.safetensors",
                "controlnet",
            )
        ),
    ),
    Family(
        "Anima",
        hub(f"{ANIMA}/diffusion_models", "anima-base-v1.0.safetensors"),
        latent="EmptyLatentImage",
        steps=30,
        cfg=4.0,
        words=TAGS,
        encoders=(hub(f"{ANIMA}/text_encoders", "qwen_3_06b_base.safetensors"),),
        encoder_type="stable_diffusion",
        vae=QWEN_VAE,
    ),
]
