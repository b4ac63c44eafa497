"""Templates of two characters for models that people have and the demo has not."""

from collections.abc import Callable

from description import CHOOSE_LORAS, NAME_IN_BRACES, Description, Subject, in_braces
from families import FAMILIES, HUB, Family, File
from layout import COLLAPSED


def two_characters_on(family: Family) -> Callable[[Description], None]:
    """Describe the first template for a family's files, settings and way to write prompts."""
    rare = ("sks", "zwx")
    pair = [
        Subject(name, f"my_{name}_lora.safetensors", f"{word} {name}", name)
        for word, name in zip(rare, family.characters, strict=True)
    ]

    def describe(at: Description) -> None:
        at.column(250)
        at.note(
            445,
            f"Draws two characters with {family.name}, each by its own LoRA",
            f"Choose two LoRAs for {family.name}. No **trigger**? Write the one each was trained on",
            NAME_IN_BRACES,
            "Run: the node shows who is drawn where. One is missing? Try another **seed**",
            missing="model and LoRAs",
        )
        at.column(250)
        at.family(family)
        at.column(280)
        concepts = at.concepts(pair)
        one, two = map(in_braces, pair)
        prompt = family.prompt.format(one=one, two=two)
        sampled_from = at.sampler(330, concepts, prompt=prompt, negative=family.negative)
        at.column(245)
        with at.group("Picture"):
            if family.guidance is not None:
                values = {"conditioning": sampled_from["positive"], "guidance": family.guidance}
                sampled_from["positive"] = at.add("FluxGuidance", COLLAPSED, values)["CONDITIONING"]
            settings = {"steps": family.steps, "cfg": family.cfg}
            settings |= {"sampler_name": family.sampler, "scheduler": family.scheduler}
            _, image = at.sampled(347, 4, sampled_from, **settings)
            at.save(370, image, "clora")

    return describe


POSES = File(
    "control_v11p_sd15_openpose_fp16.safetensors",
    f"{HUB}/comfyanonymous/ControlNet-v1-1_fp16_safetensors/resolve/main/control_v11p_sd15_openpose_fp16.safetensors",
    "controlnet",
)
STYLE_LORA, POSE_PICTURE = "my_style_lora.safetensors", "my_poses.png"


# CLoRA as its authors run it on SD1.5 (arXiv 2403.19776 and their code).
AS_PUBLISHED = {
    "update_strength": 20.0,
    "update_unit": "absolute (paper)",
    "update_start": 0.0,
    "update_end": 0.5,
    "refine_steps": "0, 10, 20",
    "refine_repeats": 20,
    "temperature": 0.5,
    "mask_threshold": 0.3,
    "mask_morphology": "none",
    "mask_overlap": "average (paper)",
    "surroundings": "composed (paper)",
}


def published(at: Description) -> None:
    at.column(325)
    at.model()
    at.note(
        405,
        "The published method, to compare with: slower, and concepts blend more",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "See all its settings under *Advanced* of the sampler’s node",
    )
    at.column(330)
    concepts = at.concepts(at.pair)
    sampled_from = at.sampler(415, concepts, **AS_PUBLISHED)
    at.picture(325, 4, sampled_from, "clora", steps=50, cfg=7.5)


def styled(at: Description) -> None:
    at.column(250)
    at.model()
    at.note(
        405,
        "Draws two characters in one style, each by its own LoRA",
        "**Style**: choose a LoRA for the whole picture",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
    )
    at.column(250)
    with at.group("Style"):
        values = {**at.patched, "lora_name": STYLE_LORA, "strength_model": 0.8, "strength_clip": 0.8}
        style = at.add("LoraLoader", 229, values)
        at.patched = {"model": style["MODEL"], "clip": style["CLIP"]}
    at.column(280)
    concepts = at.concepts(at.pair)
    sampled_from = at.sampler(330, concepts)
    at.picture(245, 4, sampled_from, "clora")


def enlarged(at: Description) -> None:
    at.column(250)
    at.model()
    at.note(
        405,
        "Draws two characters, then draws them again twice as large",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "**denoise** of the second pass: the higher, the more it changes",
    )
    at.column(280)
    concepts = at.concepts(at.pair)
    sampled_from = at.sampler(330, concepts)
    at.column(245)
    with at.group("Picture"):
        samples, small = at.sampled(347, 4, sampled_from)
        at.save(260, small, "clora_small", "Picture: small")
    at.column(250)
    with at.group("Twice as large"):
        values = {"samples": samples, "upscale_method": "bislerp", "scale_by": 2.0}
        larger = at.add("LatentUpscaleBy", 145, values)
        _, image = at.sampled(347, 4, {**sampled_from, "latent_image": larger["LATENT"]}, denoise=0.5)
        at.save(250, image, "clora_large", "Picture: large")


def posed(at: Description) -> None:
    at.column(250)
    at.model()
    at.note(
        405,
        "Draws two characters in the poses of a picture",
        "**Poses**: a picture of stick figures (OpenPose)",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        missing="SD1.5 model, LoRAs and poses",
    )
    at.column(280)
    concepts = at.concepts(at.pair)
    sampled_from = at.sampler(330, concepts)
    at.column(245)
    with at.group("Poses"):
        picture = at.add("LoadImage", 402, {"image": POSE_PICTURE})
        control = at.load("ControlNetLoader", 141, [POSES], "control_net_name")
        wires = {"positive": sampled_from["positive"], "negative": sampled_from["negative"]}
        wires |= {"control_net": control["CONTROL_NET"], "image": picture["IMAGE"], "vae": at.vae}
        held = at.add("ControlNetApplyAdvanced", 270, {**wires, "strength": 0.8})
        sampled_from |= {"positive": held["positive"], "negative": held["negative"]}
    at.picture(245, 4, sampled_from, "clora")


STYLED, POSED, ENLARGED = "two characters in one style", "two characters in poses", "two characters twice as large"
FURTHER = {f"two characters on {family.name}": two_characters_on(family) for family in FAMILIES}
PUBLISHED = "two characters as published"
FURTHER |= {STYLED: styled, POSED: posed, ENLARGED: enlarged, PUBLISHED: published}
