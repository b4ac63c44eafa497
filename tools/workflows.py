"""The example workflows, described once and written in both formats.

python3 tools/host.py tools/workflows.py          # write example_workflows/*.json, example_workflows/api/*.json, subgraphs/*.json
python3 tools/host.py tools/workflows.py --check  # exit 1 where a file is not what would be written

They are shipped for `REAL` models, which users have or are told where to get; `make demo` and the tests run the same
graphs on the `DEMO`'s.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from families import FAMILIES, HUB, Family, File
from graph import Graph, Node, NodeInfos, Output, api_format, blueprint, boundary, page_format
from layout import COLLAPSED, GAP, Columns

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "example_workflows"


class Subject(NamedTuple):
    """A concept LoRA: its name in prompts, its file, the phrase it was trained on, plain words for it, and a folder of
    pictures to train it on.
    """

    name: str
    file: str
    trigger: str
    class_word: str
    pictures: str = ""


class Models(NamedTuple):
    """What the workflows run on, and settings that fit it.

    url: where the checkpoint can be had. training: what a training sets beside the node's defaults.
    """

    checkpoint: str
    url: str
    subjects: tuple[Subject, ...]
    scene: str
    side: int
    steps: int
    capture_steps: int
    cfg: float
    training: dict[str, Any]

    def prompt(self, subjects: Iterable[Subject], named: Callable[[Subject], str]) -> str:
        return f"a photo of {' and '.join(f'a {named(each)}' for each in subjects)} {self.scene}"


REAL = Models(
    "v1-5-pruned-emaonly-fp16.safetensors",
    "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    (
        Subject("cat", "my_cat_lora.safetensors", "sks cat", "cat", "my_cat"),
        Subject("dog", "my_dog_lora.safetensors", "zwx dog", "dog", "my_dog"),
    ),
    "in a park",
    512,
    30,
    20,
    7.0,
    {},
)
DEMO = Models(
    "loraclr_demo.safetensors",
    "",
    (
        Subject("ball", "loraclr_demo_ball.safetensors", "sks ball", "ball", "loraclr_demo_ball"),
        Subject("box", "loraclr_demo_box.safetensors", "zwx box", "box", "loraclr_demo_box"),
        Subject("cross", "loraclr_demo_cross.safetensors", "ohwx cross", "cross"),
    ),
    "on grass",
    128,
    20,
    8,
    4.0,
    # A small model of plain shapes learns at a rate that would ruin a real one, and knows no man and no woman.
    {"steps": 100, "learning_rate": 2e-3, "batch": 4, "beside": "kite, cross"},
)
ENCODER = "sigclip_vision_patch14_384.safetensors"
ENCODER_URL = "https://huggingface.co/Comfy-Org/sigclip_vision_384/resolve/main/sigclip_vision_patch14_384.safetensors"
SCORED = 4  # pictures of each kind that a training is scored by


def by_trigger(subject: Subject) -> str:
    return subject.trigger


def in_braces(subject: Subject) -> str:
    return f"{{{subject.name}}}"


class Description:
    """One workflow being described, for some models. The methods add what several workflows share."""

    def __init__(self, infos: NodeInfos, models: Models):
        self.graph = Graph(infos)
        self.columns = Columns(self.graph)
        self.column = self.columns.column
        self.group = self.columns.group
        self.models = models
        self.pair = models.subjects[:2]

    def add(self, type: str, height: int, inputs: dict[str, Any], title: str | None = None) -> Node:
        """Add a node below the last one. height: with its title; COLLAPSED for a node that nobody needs to see."""
        return self.graph.add(type, self.columns.place(height), inputs, title, collapsed=height == COLLAPSED)

    def note(self, height: int, what: str, *changes: str, missing: str = "SD1.5 model and LoRAs") -> None:
        """Say what the workflow does, and what to change first: in headings, whose text is large enough at any zoom."""
        steps = [f"## {number}. {change}" for number, change in enumerate(changes, 1)]
        text = "\n\n".join([f"### {what}", *steps, f"### Red means missing: choose your own {missing}"])
        self.graph.note("What to change first", text, self.columns.place(height))
        self.columns.top += GAP

    def model(self, pictures: int = 1) -> None:
        """Load the checkpoint, and add the empty pictures that are sampled."""
        models = self.models
        with self.group("Model"):
            loaded = self.add("CheckpointLoaderSimple", 156, {"ckpt_name": models.checkpoint})
            size = {"width": models.side, "height": models.side, "batch_size": pictures}
            self.latent = self.add("EmptyLatentImage", 160, size)["LATENT"]
        if models.url:
            loaded.offer(models.checkpoint, models.url, "checkpoints")
        self.patched = {"model": loaded["MODEL"], "clip": loaded["CLIP"]}
        self.vae = loaded["VAE"]

    def family(self, family: Family) -> None:
        """Load a family's files, and add the empty picture that is sampled."""
        with self.group("Model"):
            if family.vae is None:
                loaded = self.load("CheckpointLoaderSimple", 156, [family.model], "ckpt_name")
                model, clip, self.vae = loaded["MODEL"], loaded["CLIP"], loaded["VAE"]
            else:
                names = ("clip_name",) if len(family.encoders) == 1 else ("clip_name1", "clip_name2")
                kind = "CLIPLoader" if len(names) == 1 else "DualCLIPLoader"
                text = {"type": family.encoder_type, "title": "Text encoder"}
                model = self.load("UNETLoader", 140, [family.model], "unet_name", weight_dtype="default")["MODEL"]
                clip = self.load(kind, 165 + 25 * (len(names) - 1), family.encoders, *names, **text)["CLIP"]
                self.vae = self.load("VAELoader", 115, [family.vae], "vae_name")["VAE"]
            if family.shift is not None:
                values = {"model": model, "shift": family.shift}
                model = self.add("ModelSamplingAuraFlow", COLLAPSED, values)["MODEL"]
            size = {"width": family.side, "height": family.side, "batch_size": 1}
            self.latent = self.add(family.latent, COLLAPSED, size)["LATENT"]
        self.patched = {"model": model, "clip": clip}

    def load(
        self, loader: str, height: int, files: Sequence[File], *names: str, title: str | None = None, **values: str
    ) -> Node:
        """Add a loader of these files. names: of its inputs, one for each."""
        chosen = {name: file.name for name, file in zip(names, files, strict=True)}
        loaded = self.add(loader, height, chosen | values, title)
        for file in files:
            loaded.offer(*file)
        return loaded

    def concepts(self, subjects: Iterable[Subject], masks: Iterable[Output] = ()) -> Output:
        """Chain the concepts, and return the list of all."""
        given = list(masks)
        chained: dict[str, Output] = {}
        with self.group("Concepts"):
            for row, subject in enumerate(subjects):
                values = {"lora_name": subject.file, "trigger": subject.trigger, "class_word": subject.class_word}
                mask = {"mask": given[row]} if given else {}
                concept = self.add("LoRACLR_LoadConceptLoRA", 405, {**values, **mask, **chained})
                chained = {"concepts": concept["concepts"]}
        return chained["concepts"]

    def prompts(
        self, height: int, clip: Output, text: str | Output, title: str = "Prompt: the triggers"
    ) -> dict[str, Output]:
        """Add the prompt of an ordinary model and an empty negative one."""
        positive = self.add("CLIPTextEncode", height, {"text": text, "clip": clip}, title)
        negative = self.add("CLIPTextEncode", COLLAPSED, {"text": "", "clip": clip}, "Negative prompt")
        return {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}

    def sampled(
        self, height: int, seed: int | Output, sampled_from: dict[str, Output], **settings: Any
    ) -> tuple[Output, Output]:
        """Sample and decode; return latent and picture. settings: of the sampler, if not those of the models."""
        values = {"steps": self.models.steps, "cfg": self.models.cfg, "sampler_name": "euler", "scheduler": "normal"}
        values |= {"latent_image": self.latent, "seed": seed, **settings}
        sampled = self.add("KSampler", height, {**values, **sampled_from})
        decoded = self.add("VAEDecode", COLLAPSED, {"samples": sampled["LATENT"], "vae": self.vae})
        return sampled["LATENT"], decoded["IMAGE"]

    def ordinary(self, seed: Output, patched: dict[str, Output], prompt: Output) -> Output:
        """Sample an ordinary model, all out of sight; return the picture. patched: its model and clip."""
        prompts = self.prompts(COLLAPSED, patched["clip"], prompt)
        return self.sampled(COLLAPSED, seed, {"model": patched["model"], **prompts})[1]

    def save(self, height: int, images: Output, prefix: str, title: str = "Picture") -> None:
        self.add("SaveImage", height, {"images": images, "filename_prefix": f"loraclr/{prefix}"}, title)

    def merge(self, height: int, concepts: Output) -> Node:
        values = {
            **self.patched,
            "concepts": concepts,
            "latent": self.latent,
            "capture_steps": self.models.capture_steps,
        }
        return self.add("LoRACLR_Merge", height, values)

    def train(self, subject: Subject, **concepts: Output) -> Node:
        """Train a concept on its folder of pictures. concepts: those before it."""
        folder = self.add("LoadImageTextDataSetFromFolder", 165, {"folder": subject.pictures}, "Pictures and captions")
        values = {**self.patched, "vae": self.vae, "images": folder["images"], "captions": folder["texts"]}
        values |= {"trigger": subject.trigger, "class_word": subject.class_word}
        return self.add("LoRACLR_TrainConcept", 850, {**values, **self.models.training, **concepts})

    def scores(self, **pictures: Output) -> None:
        """Score a training by its pictures: muted, since few have a model that compares pictures."""
        with self.group("Scores: need CLIP vision"):
            encoder = self.add("CLIPVisionLoader", 120, {"clip_name": ENCODER})
            encoder.offer(ENCODER, ENCODER_URL, "clip_vision")
            scores = self.add("LoRACLR_PreservationScores", 260, {"clip_vision": encoder["CLIP_VISION"], **pictures})
            report = self.add("PreviewAny", 500, {"source": scores["report"]}, "Report")
        for node in (encoder, scores, report):
            node.mute()

    def clora(self, height: int, concepts: Output, **settings: Any) -> dict[str, Output]:
        """Return what a sampler node takes of CLoRA. settings: beside the defaults and the prompt of the models."""
        values = {**self.patched, "concepts": concepts, "prompt": self.models.prompt(self.pair, in_braces)}
        clora = self.add("LoRACLR_CLoRASampler", height, {**values, **settings})
        return {"model": clora["MODEL"], "positive": clora["positive"], "negative": clora["negative"]}


CHOOSE_LORAS = "Choose your LoRAs. No **trigger**? Write the one each was trained on"
NAME_IN_BRACES = "In the **prompt**, name each character in braces: type {"


def two_characters(at: Description) -> None:
    at.column(325)
    at.note(
        445,
        "Draws two characters, each by its own LoRA",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "Run: the node shows who is drawn where. One is missing? Try another **seed**",
    )
    at.model()
    at.column(330)
    concepts = at.concepts(at.pair)
    at.column(415)
    with at.group("Sampler"):
        sampled_from = at.clora(800, concepts)
    at.column(325)
    with at.group("Picture"):
        _, image = at.sampled(310, 4, sampled_from)
        at.save(400, image, "clora")


def areas(at: Description) -> None:
    at.column(280)
    at.note(
        445,
        "Draws each character in the area you choose",
        "Choose each **area**: a half, a third, a box",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "Any other shape: a mask of *Load Image*",
    )
    at.model()
    at.column(230)
    with at.group("Areas"):
        masks = [at.add("LoRACLR_ConceptArea", 260, {"area": f"{side} half"})["MASK"] for side in ("left", "right")]
    at.column(280)
    concepts = at.concepts(at.pair, masks)
    at.column(315)
    with at.group("Sampler"):
        sampled_from = at.clora(800, concepts)
    at.column(245)
    with at.group("Picture"):
        _, image = at.sampled(310, 8, sampled_from)
        at.save(400, image, "clora_masks")


def paint(at: Description) -> None:
    at.column(270)
    at.note(
        445,
        "Paints two characters into a part of a picture",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "Choose the **area** to paint anew",
        "Your own picture: *Load Image*, *VAE Encode*",
    )
    at.model()
    at.column(280)
    concepts = at.concepts(at.pair)
    at.column(240)
    with at.group("Picture before"):
        plain = at.prompts(140, at.patched["clip"], f"a photo {at.models.scene}")
        before, image = at.sampled(COLLAPSED, 8, {"model": at.patched["model"], **plain})
        at.save(400, image, "clora_before", "Before")
    at.column(315)
    with at.group("Painted anew"):
        area = at.add("LoRACLR_ConceptArea", 170, {"area": "bottom half"})["MASK"]
        masked = at.add("SetLatentNoiseMask", COLLAPSED, {"samples": before, "mask": area})
        sampled_from = at.clora(600, concepts)
    at.column(245)
    with at.group("Picture"):
        _, image = at.sampled(310, 8, {**sampled_from, "latent_image": masked["LATENT"]})
        at.save(400, image, "clora_inpaint")


def maps(at: Description) -> None:
    at.column(270)
    at.note(
        445,
        "Saves where each character is drawn",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "Run: **masks** are where each was drawn, **heat maps** what its words saw",
    )
    at.model()
    at.column(280)
    concepts = at.concepts(at.pair)
    at.column(315)
    with at.group("Sampler"):
        sampled_from = at.clora(800, concepts)
    at.column(240)
    with at.group("Picture"):
        samples, image = at.sampled(COLLAPSED, 4, sampled_from)
        at.save(345, image, "clora")
    with at.group("What it looked at"):
        maps = at.add("LoRACLR_CLoRAMaps", 225, {"model": sampled_from["model"], "latent": samples, "image": image})
    at.column(245)
    with at.group("Masks and heat maps"):
        masks = at.add("MaskToImage", COLLAPSED, {"mask": maps["masks"]})
        at.save(335, masks["IMAGE"], "clora_masks", "Masks")
        at.save(335, maps["heat_maps"], "clora_heat", "Heat maps")
        at.add("LossGraphNode", COLLAPSED, {"loss": maps["loss"]}, "Separation loss")


def merge(at: Description) -> None:
    at.column(275)
    at.note(
        445,
        "Merges characters into one model and LoRA file",
        CHOOSE_LORAS,
        "In the **prompt**, name them by their triggers",
        "Run: the bars show how near each LoRA the merge is. “6 use …” loads the file",
    )
    at.model()
    at.column(280)
    concepts = at.concepts(at.models.subjects)
    at.column(330)
    with at.group("Merge"):
        merged = at.merge(520, concepts)
        values = {"lora": merged["lora"], "merge_info": merged["merge_info"]}
        values |= {"filename": "loraclr/merged", "if_exists": "overwrite"}
        at.add("LoRACLR_SaveMergedLoRA", 270, values)
    at.column(240)
    with at.group("Sampling"):
        prompts = at.prompts(160, merged["CLIP"], at.models.prompt(at.pair, by_trigger))
        _, image = at.sampled(310, 7, {"model": merged["MODEL"], **prompts})
    at.column(235)
    with at.group("Picture"):
        at.save(400, image, "merged")
    with at.group("Report"):
        at.add("PreviewAny", 330, {"source": merged["report"]}, "Report")


def reuse(at: Description) -> None:
    at.column(330)
    at.note(
        445,
        "Loads the LoRA that “5 merge …” saved, for the same picture again",
        "**Checkpoint**: the one the LoRAs were merged on",
        "**LoRA**: what *Save Merged LoRA* reported. Not in the list? Press R",
        "In the **prompt**, name them by their triggers",
    )
    at.column(330)
    at.model()
    with at.group("Merged LoRA"):
        values = {**at.patched, "lora_name": "loraclr/merged.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
        lora = at.add("LoraLoader", 195, values)
    at.column(330)
    with at.group("Sampling"):
        prompts = at.prompts(140, lora["CLIP"], at.models.prompt(at.pair, by_trigger))
        _, image = at.sampled(310, 7, {"model": lora["MODEL"], **prompts})
    at.column(330)
    with at.group("Picture"):
        at.save(400, image, "reloaded")


def compare(at: Description) -> None:
    at.column(280)
    at.note(
        445,
        "One picture three ways: stacked, merged, by the sampler",
        "Choose the same LoRAs in *Load LoRA* and *Load Concept LoRA*",
        "Name them by **trigger** in the prompt, in **braces** in the sampler's",
        "Try several **seeds** before you judge",
    )
    at.model()
    at.column(290)
    concepts = at.concepts(at.pair)
    at.column(280)
    patched = at.patched
    with at.group("For all three"):
        text = at.models.prompt(at.pair, by_trigger)
        prompt = at.add("PrimitiveStringMultiline", 160, {"value": text}, "Prompt: the triggers")["STRING"]
        seed = at.add("PrimitiveInt", 115, {"value": 4}, "Seed")["INT"]
    with at.group("Stacked"):
        for subject in at.pair:
            lora = at.add("LoraLoader", 195, {**patched, "lora_name": subject.file})
            patched = {"model": lora["MODEL"], "clip": lora["CLIP"]}
        stacked = at.ordinary(seed, patched, prompt)
    at.column(330)
    with at.group("Merged"):
        merged = at.merge(COLLAPSED, concepts)
        merged = at.ordinary(seed, {"model": merged["MODEL"], "clip": merged["CLIP"]}, prompt)
    with at.group("By the sampler"):
        _, composed = at.sampled(COLLAPSED, seed, at.clora(600, concepts))
    at.column(250)
    with at.group("Pictures"):
        for title, image in (("stacked", stacked), ("merged", merged), ("sampler", composed)):
            at.save(345, image, title, f"Picture: {title}")


CHOOSE_PICTURES = (
    "Put ten to twenty pictures in a **folder** of ComfyUI’s input folder, each with a caption: 01.png, 01.txt"
)
WRITE_WORDS = (
    "**Trigger**: a rare word and the class. **Class word**: the class alone. Write them in the **prompts**, too"
)
RUN_AGAIN = "Run: the LoRA goes to the loras folder. You may cancel: run again to go on"


def train(at: Description) -> None:
    at.column(300)
    at.note(
        500,
        "Trains a LoRA of one character",
        CHOOSE_PICTURES,
        WRITE_WORDS,
        RUN_AGAIN,
        "**Scores**: choose a CLIP vision model, right-click the group, *Set Group Nodes to Always*",
        missing="SD1.5 model and folder",
    )
    at.model(SCORED)
    at.column(390)
    subject, _ = at.pair
    with at.group("Training"):
        trained = at.train(subject)
    at.column(270)
    with at.group("Sampling"):
        seed = at.add("PrimitiveInt", 115, {"value": 4}, "Seed")["INT"]
        loaded = at.add("LoraModelLoader", 170, {"model": at.patched["model"], "lora": trained["lora"]})

        def prompts(title: str, words: str) -> dict[str, Output]:
            return at.prompts(140, at.patched["clip"], f"a photo of a {words} {at.models.scene}", f"Prompt: {title}")

        def pictures(model: Output, prompts: dict[str, Output]) -> Output:
            return at.sampled(COLLAPSED, seed, {"model": model, **prompts})[1]

        asked, unasked = prompts("the trigger", subject.trigger), prompts("the class word", subject.class_word)
        with_trigger, without_trigger = pictures(loaded["model"], asked), pictures(loaded["model"], unasked)
        base = pictures(at.patched["model"], unasked)
    at.column(250)
    with at.group("Pictures"):
        at.save(345, with_trigger, "with_trigger", "Picture: with trigger")
        at.save(345, without_trigger, "without_trigger", "Picture: without")
        at.save(345, base, "before_training", "Picture: before training")
    at.column(330)
    images = trained.inputs["images"]
    at.scores(with_trigger=with_trigger, without_trigger=without_trigger, base=base, references=images)


def train_two(at: Description) -> None:
    at.column(300)
    at.note(
        500,
        "Trains two characters, merges them into one model, and draws both by the sampler",
        CHOOSE_PICTURES,
        WRITE_WORDS,
        RUN_AGAIN,
        missing="SD1.5 model and folders",
    )
    at.model()
    seed = at.add("PrimitiveInt", 115, {"value": 4}, "Seed")["INT"]
    chained: dict[str, Output] = {}
    for subject in at.pair:
        at.column(300)
        with at.group(f"Training: {subject.name}"):
            chained = {"concepts": at.train(subject, **chained)["concepts"]}
    at.column(330)
    with at.group("Merged: one at a time"):
        merged = at.merge(COLLAPSED, chained["concepts"])
        prompts = at.prompts(
            140, merged["CLIP"], at.models.prompt(at.pair[:1], by_trigger), "Prompt: one of the triggers"
        )
        _, alone = at.sampled(COLLAPSED, seed, {"model": merged["MODEL"], **prompts})
    with at.group("By the sampler: both"):
        _, both = at.sampled(COLLAPSED, seed, at.clora(600, chained["concepts"]))
    at.column(250)
    with at.group("Pictures"):
        at.save(400, alone, "trained_merged", "Picture: merged")
        at.save(400, both, "trained_both", "Picture: both")


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
        at.column(330)
        with at.group("Sampler"):
            prompt = family.prompt.format(**dict(zip(("one", "two"), map(in_braces, pair), strict=True)))
            sampled_from = at.clora(800, concepts, prompt=prompt, negative=family.negative)
        at.column(245)
        with at.group("Picture"):
            if family.guidance is not None:
                values = {"conditioning": sampled_from["positive"], "guidance": family.guidance}
                sampled_from["positive"] = at.add("FluxGuidance", COLLAPSED, values)["CONDITIONING"]
            settings = {"steps": family.steps, "cfg": family.cfg}
            settings |= {"sampler_name": family.sampler, "scheduler": family.scheduler}
            _, image = at.sampled(310, 4, sampled_from, **settings)
            at.save(400, image, "clora")

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
    at.note(
        445,
        "The published method, to compare with: slower, and concepts blend more",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "See all its settings under *Advanced* of the sampler’s node",
    )
    at.model()
    at.column(330)
    concepts = at.concepts(at.pair)
    at.column(415)
    with at.group("Sampler"):
        sampled_from = at.clora(800, concepts, **AS_PUBLISHED)
    at.column(325)
    with at.group("Picture"):
        _, image = at.sampled(310, 4, sampled_from, steps=50, cfg=7.5)
        at.save(400, image, "clora")


def styled(at: Description) -> None:
    at.column(250)
    at.note(
        445,
        "Draws two characters in one style, each by its own LoRA",
        "**Style**: choose a LoRA for the whole picture",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
    )
    at.model()
    at.column(250)
    with at.group("Style"):
        values = {**at.patched, "lora_name": STYLE_LORA, "strength_model": 0.8, "strength_clip": 0.8}
        style = at.add("LoraLoader", 195, values)
        at.patched = {"model": style["MODEL"], "clip": style["CLIP"]}
    at.column(280)
    concepts = at.concepts(at.pair)
    at.column(330)
    with at.group("Sampler"):
        sampled_from = at.clora(800, concepts)
    at.column(245)
    with at.group("Picture"):
        _, image = at.sampled(310, 4, sampled_from)
        at.save(400, image, "clora")


def enlarged(at: Description) -> None:
    at.column(250)
    at.note(
        445,
        "Draws two characters, then draws them again twice as large",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "**denoise** of the second pass: the higher, the more it changes",
    )
    at.model()
    at.column(280)
    concepts = at.concepts(at.pair)
    at.column(330)
    with at.group("Sampler"):
        sampled_from = at.clora(800, concepts)
    at.column(245)
    with at.group("Picture"):
        samples, small = at.sampled(310, 4, sampled_from)
        at.save(270, small, "clora_small", "Picture: small")
    at.column(250)
    with at.group("Twice as large"):
        values = {"samples": samples, "upscale_method": "bislerp", "scale_by": 2.0}
        larger = at.add("LatentUpscaleBy", 135, values)
        _, image = at.sampled(310, 4, {**sampled_from, "latent_image": larger["LATENT"]}, denoise=0.5)
        at.save(270, image, "clora_large", "Picture: large")


def posed(at: Description) -> None:
    at.column(250)
    at.note(
        445,
        "Draws two characters in the poses of a picture",
        "**Poses**: a picture of stick figures (OpenPose)",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        missing="SD1.5 model, LoRAs and poses",
    )
    at.model()
    at.column(280)
    concepts = at.concepts(at.pair)
    at.column(330)
    with at.group("Sampler"):
        sampled_from = at.clora(800, concepts)
    at.column(245)
    with at.group("Poses"):
        picture = at.add("LoadImage", 400, {"image": POSE_PICTURE})
        control = at.load("ControlNetLoader", 115, [POSES], "control_net_name")
        wires = {"positive": sampled_from["positive"], "negative": sampled_from["negative"]}
        wires |= {"control_net": control["CONTROL_NET"], "image": picture["IMAGE"], "vae": at.vae}
        held = at.add("ControlNetApplyAdvanced", 240, {**wires, "strength": 0.8})
        sampled_from |= {"positive": held["positive"], "negative": held["negative"]}
    at.column(245)
    with at.group("Picture"):
        _, image = at.sampled(310, 4, sampled_from)
        at.save(400, image, "clora")


# What the template browser calls them, in the order that teaches.
TWO = "1 two characters in one picture"
AREAS = "2 characters in areas you choose"
PAINT = "3 paint characters into a picture"
MAPS = "4 see where each character is drawn"
MERGE = "5 merge characters into one LoRA"
REUSE = "6 use the merged LoRA"
COMPARE = "7 compare three ways"
TRAIN = "8 train a character"
TRAIN_TWO = "9 train two characters and draw both"
WORKFLOWS = {
    TWO: two_characters,
    AREAS: areas,
    PAINT: paint,
    MAPS: maps,
    MERGE: merge,
    REUSE: reuse,
    COMPARE: compare,
    TRAIN: train,
    TRAIN_TWO: train_two,
}
# For models that people have and the demo has not.
STYLED, POSED, ENLARGED = "two characters in one style", "two characters in poses", "two characters twice as large"
FURTHER = {f"two characters on {family.name}": two_characters_on(family) for family in FAMILIES}
PUBLISHED = "two characters as published"
FURTHER |= {STYLED: styled, POSED: posed, ENLARGED: enlarged, PUBLISHED: published}
BLUEPRINT = "Two concepts with CLoRA"


def clora_blueprint(infos: NodeInfos) -> dict[str, Any]:
    """The commonest chain as one node: two concepts and the sampler, from a model to what a sampler node takes."""
    graph = Graph(infos)
    types = {"model": "MODEL", "clip": "CLIP", "prompt": "STRING", "negative": "STRING"}
    words = {"prompt": REAL.prompt(REAL.subjects, in_braces), "negative": ""}
    for number, subject in enumerate(REAL.subjects, 1):
        types |= {f"lora {number}": "COMBO", f"trigger {number}": "STRING", f"name {number}": "STRING"}
        words |= {f"lora {number}": subject.file, f"trigger {number}": subject.trigger, f"name {number}": subject.name}
    start = boundary(types, words)
    chained: dict[str, Output] = {}
    for number in (1, 2):
        values = {
            "lora_name": start[f"lora {number}"],
            "trigger": start[f"trigger {number}"],
            "name": start[f"name {number}"],
        }
        box = (0, 330 * (number - 1), 320, 270)
        concept = graph.add("LoRACLR_LoadConceptLoRA", box, {**values, **chained}, f"Concept {number}")
        chained = {"concepts": concept["concepts"]}
    values = {name: start[name] for name in ("model", "clip", "prompt", "negative")}
    clora = graph.add("LoRACLR_CLoRASampler", (380, 0, 400, 900), {**values, **chained})
    outputs = [clora[name] for name in ("MODEL", "positive", "negative")]
    description = (
        "Composes two concept LoRAs while sampling. Connect a model and clip, then all outputs to any sampler."
    )
    return blueprint(graph, BLUEPRINT, description, start, outputs)


CORE_NODES = ("nodes_preview_any.py", "nodes_mask.py", "nodes_train.py", "nodes_primitive.py", "nodes_dataset.py")
CORE_NODES += ("nodes_sd3.py", "nodes_flux.py", "nodes_model_advanced.py")


def described(name: str, infos: NodeInfos, models: Models) -> Graph:
    at = Description(infos, models)
    (WORKFLOWS | FURTHER)[name](at)
    return at.graph


def load_node_infos() -> NodeInfos:
    """Schemas of the core nodes and this pack's, as `/object_info` gives them, without a server."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True
    import nodes
    from comfy_api.latest import io

    async def load() -> None:
        extras = Path(os.environ["COMFYUI_PATH"]) / "comfy_extras"
        for path in (*(extras / name for name in CORE_NODES), ROOT):
            if not await nodes.load_custom_node(str(path)):
                raise RuntimeError(f"the host could not load {path}; its reason is above")

    asyncio.run(load())
    return {name: _node_info(name, node, nodes, io) for name, node in nodes.NODE_CLASS_MAPPINGS.items()}


def _node_info(name: str, node: Any, nodes: Any, io: Any) -> dict[str, Any]:
    if issubclass(node, io.ComfyNode):
        return node.GET_NODE_INFO_V1()
    return {
        "input": node.INPUT_TYPES(),
        "output": node.RETURN_TYPES,
        "output_name": getattr(node, "RETURN_NAMES", node.RETURN_TYPES),
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
    }


def files(infos: NodeInfos) -> dict[Path, str]:
    """Every shipped workflow file and its text."""
    texts = {}
    for name in (*WORKFLOWS, *FURTHER):
        graph = described(name, infos, REAL)
        texts[FOLDER / f"{name}.json"] = _json(page_format(graph, name))
        texts[FOLDER / "api" / f"{name}.json"] = _json(api_format(graph))
    texts[ROOT / "subgraphs" / f"{BLUEPRINT}.json"] = _json(clora_blueprint(infos))
    return texts


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the example workflows in both formats.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is out of date")
    check = parser.parse_args().check
    texts = files(load_node_infos())
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in stale:
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path], "utf-8")
        print(f"{'out of date' if check else 'wrote'}: {path.relative_to(ROOT)}")
    if check and stale:
        sys.exit("run `python3 tools/host.py tools/workflows.py` to write them again")


if __name__ == "__main__":
    main()
