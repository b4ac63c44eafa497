"""Metadata in a LoRA file's header that kohya's tools and model managers read."""

# kohya's names for base models, by ComfyUI's configuration class.
KOHYA_BASE = {"SD15": "sd_v1", "SD20": "sd_v2", "SDXL": "sdxl_base_v1-0"}
MODELSPEC_ARCHITECTURE = {"SD15": "stable-diffusion-v1/lora", "SD20": "stable-diffusion-v2-768-v/lora"}
MODELSPEC_ARCHITECTURE |= {"SDXL": "stable-diffusion-xl-v1-base/lora", "Flux": "flux-1-dev/lora"}


def common(title: str, family: str, rank: int, alpha: float) -> dict[str, str]:
    """Return the fields that every file of the pack has. family: ComfyUI's name of the architecture."""
    values = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
        "modelspec.architecture": MODELSPEC_ARCHITECTURE.get(family, f"{family}/lora"),
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }
    if family in KOHYA_BASE:
        values["ss_base_model_version"] = KOHYA_BASE[family]
    return values
