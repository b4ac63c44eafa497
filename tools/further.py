"""Templates of two characters for models that people have and the demo has not."""

from collections.abc import Callable

from description import ANOTHER_SEED, CHOOSE_LORAS, NAME_IN_BRACES, Description, by_trigger, in_braces
from families import FAMILIES, SD15_POSE, Family, Pose
from layout import COLLAPSED

CHOOSE_POSES = "**Poses**: a picture of stick figures (OpenPose)"


def two_characters_on(family: Family, pose: Pose | None = None) -> Callable[[Description], None]:
    """Describe the first template for a family's files, settings and way to write prompts. pose: what holds the characters to the poses of a picture."""
    what = f"Draws two characters with {family.name}, each by its own LoRA"
    changes = [
        f"Choose two LoRAs for {family.name}. No **trigger**? Write the one each was trained on",
        NAME_IN_BRACES,
        ANOTHER_SEED,
    ]
    missing = "model and LoRAs"
    if pose is not None:
        what = f"Draws two characters with {family.name}, in the poses of a picture"
        changes[2:] = [CHOOSE_POSES]
        missing = "model, LoRAs and poses"

    def describe(at: Description) -> None:
        at.column(250)
        if pose is not None:
            at.family(family)  # above the note: the poses need the width of a column
        at.note(445, what, *changes, missing=missing)
        if pose is None:
            at.column(250)
            at.family(family)
        one, two = map(in_braces, at.pair)
        prompt = family.words.prompt.format(one=one, two=two)
        sampled_from = at.composed(280, 330, prompt=prompt, negative=family.words.negative)
        if pose is not None:
            sampled_from = at.posed(245, pose, sampled_from)
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


STYLE_LORA = "my_style_lora.safetensors"

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
    at.begin(
        325,
        "The published method, to compare with: slower, and concepts blend more",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "See all its settings under *Advanced* of the sampler’s node",
    )
    at.picture(325, 4, at.composed(330, 415, **AS_PUBLISHED), "clora", steps=50, cfg=7.5)


def styled(at: Description) -> None:
    at.begin(
        250,
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
    at.picture(245, 4, at.composed(280, 330), "clora")


def enlarged(at: Description) -> None:
    at.begin(
        250,
        "Draws two characters, then draws them again twice as large",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "**denoise** of the second pass: the higher, the more it changes",
    )
    sampled_from = at.composed(280, 330)
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
    at.begin(
        250,
        "Draws two characters in the poses of a picture",
        CHOOSE_POSES,
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        missing="SD1.5 model, LoRAs and poses",
    )
    at.picture(245, 4, at.posed(245, SD15_POSE, at.composed(280, 330)), "clora")


def taught(at: Description) -> None:
    at.column(250)
    at.model(PAINTED)
    at.note(
        500,
        "Teaches a merged LoRA to draw both characters in one picture, by pictures of the sampler",
        CHOOSE_LORAS,
        "In the **prompt with braces**, name each character in braces. Below, write the **triggers**",
        "Run: it takes minutes. The saved LoRA then draws both without this pack, one of them often twice",
    )
    at.column(280)
    concepts = at.concepts(at.pair)
    at.column(330)
    with at.group("Painted by the sampler"):
        text = at.models.prompt(at.pair, in_braces)
        prompt = at.add("PrimitiveStringMultiline", 160, {"value": text}, "Prompt with braces")["STRING"]
        painted, image = at.sampled(COLLAPSED, 4, at.clora(COLLAPSED, concepts, prompt=prompt))
        at.save(400, image, "taught_by", "Picture: by the sampler")
    at.column(330)
    with at.group("Merge"):
        learned = {"distillation_steps": DISTILLED, "pictures_together": painted, "together_prompt": prompt}
        merged = at.merge(560, concepts, **learned)
        values = {"lora": merged["lora"], "merge_info": merged["merge_info"]}
        values |= {"filename": "loraclr/drawn_together", "if_exists": "overwrite"}
        at.add("LoRACLR_SaveMergedLoRA", COLLAPSED, values)
    at.column(250)
    with at.group("Drawn by the merged LoRA"):
        prompts = at.prompts(160, merged["CLIP"], at.models.prompt(at.pair, by_trigger))
        _, image = at.sampled(COLLAPSED, 7, {"model": merged["MODEL"], **prompts})
        at.save(400, image, "taught", "Picture: by the merged LoRA")


STYLED, POSED, ENLARGED = "two characters in one style", "two characters in poses", "two characters twice as large"
PUBLISHED, TAUGHT = "two characters as published", "two characters in one LoRA"
PAINTED, DISTILLED = 8, 200  # pictures that teach, and steps of the distillation
# Title of the template for a family, without poses and with them.
ON = {family: f"two characters on {family.name}" for family in FAMILIES}
POSED_ON = {family: f"{POSED} on {family.name}" for family in FAMILIES if family.pose is not None}
FURTHER = {title: two_characters_on(family) for family, title in ON.items()}
FURTHER |= {STYLED: styled, POSED: posed, ENLARGED: enlarged, PUBLISHED: published, TAUGHT: taught}
FURTHER |= {title: two_characters_on(family, family.pose) for family, title in POSED_ON.items()}
