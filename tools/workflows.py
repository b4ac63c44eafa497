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
from pathlib import Path
from typing import Any

from description import (
    ANOTHER_SEED,
    CHOOSE_LORAS,
    NAME_IN_BRACES,
    SCORED,
    Description,
    Models,
    Subject,
    by_trigger,
    in_braces,
)
from further import FURTHER
from graph import Graph, NodeInfos, Output, api_format, blueprint, boundary, page_format
from layout import COLLAPSED

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "example_workflows"


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


def two_characters(at: Description) -> None:
    at.begin(
        325,
        "Draws two characters, each by its own LoRA",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        ANOTHER_SEED,
    )
    at.picture(325, 4, at.composed(330, 415), "clora")


def areas(at: Description) -> None:
    at.begin(
        280,
        "Draws each character in the area you choose",
        "Choose each **area**: a half, a third, a box",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "Any other shape: a mask of *Load Image*",
    )
    at.column(230)
    with at.group("Areas"):
        masks = [at.add("LoRACLR_ConceptArea", 260, {"area": f"{side} half"})["MASK"] for side in ("left", "right")]
    at.picture(245, 8, at.composed(280, 315, masks), "clora_masks")


def paint(at: Description) -> None:
    at.begin(
        270,
        "Paints two characters into a part of a picture",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "Choose the **area** to paint anew",
        "Your own picture: *Load Image*, *VAE Encode*",
    )
    at.column(280)
    concepts = at.concepts(at.pair)
    at.column(240)
    with at.group("Picture before"):
        plain = at.prompts(146, at.patched["clip"], f"a photo {at.models.scene}")
        before, image = at.sampled(COLLAPSED, 8, {"model": at.patched["model"], **plain})
        at.save(400, image, "clora_before", "Before")
    at.column(315)
    with at.group("Painted anew"):
        area = at.add("LoRACLR_ConceptArea", 170, {"area": "bottom half"})["MASK"]
        masked = at.add("SetLatentNoiseMask", COLLAPSED, {"samples": before, "mask": area})
        sampled_from = at.clora(600, concepts)
    at.column(245)
    with at.group("Picture"):
        _, image = at.sampled(347, 8, {**sampled_from, "latent_image": masked["LATENT"]})
        at.save(400, image, "clora_inpaint")


def maps(at: Description) -> None:
    at.begin(
        270,
        "Saves where each character is drawn",
        CHOOSE_LORAS,
        NAME_IN_BRACES,
        "Run: **masks** are where each was drawn, **heat maps** what its words saw",
    )
    sampled_from = at.composed(280, 315)
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
    at.begin(
        275,
        "Merges characters into one model and LoRA file",
        CHOOSE_LORAS,
        "In the **prompt**, name them by their triggers",
        "Run: the bars show how near each LoRA the merge is. “6 use …” loads the file",
    )
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
        _, image = at.sampled(347, 7, {"model": merged["MODEL"], **prompts})
    at.column(235)
    with at.group("Picture"):
        at.save(400, image, "merged")
    with at.group("Report"):
        at.add("PreviewAny", 330, {"source": merged["report"]}, "Report")


def reuse(at: Description) -> None:
    at.column(330)
    at.note(
        405,
        "Loads the LoRA that “5 merge …” saved, for the same picture again",
        "**Checkpoint**: the one the LoRAs were merged on",
        "**LoRA**: what *Save Merged LoRA* reported. Not in the list? Press R",
        "In the **prompt**, name them by their triggers",
    )
    at.column(330)
    at.model()
    with at.group("Merged LoRA"):
        values = {**at.patched, "lora_name": "loraclr/merged.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
        lora = at.add("LoraLoader", 229, values)
    at.column(330)
    with at.group("Sampling"):
        prompts = at.prompts(146, lora["CLIP"], at.models.prompt(at.pair, by_trigger))
        _, image = at.sampled(347, 7, {"model": lora["MODEL"], **prompts})
    at.column(330)
    with at.group("Picture"):
        at.save(400, image, "reloaded")


def compare(at: Description) -> None:
    at.begin(
        280,
        "One picture three ways: stacked, merged, by the sampler",
        "Choose the same LoRAs in *Load LoRA* and *Load Concept LoRA*",
        "Name them by **trigger** in the prompt, in **braces** in the sampler's",
        "Try several **seeds** before you judge",
    )
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
            lora = at.add("LoraLoader", 229, {**patched, "lora_name": subject.file})
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
    at.model(SCORED)
    at.note(
        500,
        "Trains a LoRA of one character",
        CHOOSE_PICTURES,
        WRITE_WORDS,
        RUN_AGAIN,
        "**Scores**: choose a CLIP vision model, right-click the group, *Set Group Nodes to Always*",
        missing="SD1.5 model and folder",
    )
    at.column(390)
    subject, _ = at.pair
    with at.group("Training"):
        trained = at.train(subject)
    at.column(270)
    with at.group("Sampling"):
        seed = at.add("PrimitiveInt", 115, {"value": 4}, "Seed")["INT"]
        loaded = at.add("LoraModelLoader", 186, {"model": at.patched["model"], "lora": trained["lora"]})

        def prompts(title: str, words: str) -> dict[str, Output]:
            return at.prompts(146, at.patched["clip"], f"a photo of a {words} {at.models.scene}", f"Prompt: {title}")

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
    at.model()
    seed = at.add("PrimitiveInt", 115, {"value": 4}, "Seed")["INT"]
    at.note(
        500,
        "Trains two characters, merges them into one model, and draws both by the sampler",
        CHOOSE_PICTURES,
        WRITE_WORDS,
        RUN_AGAIN,
        missing="SD1.5 model and folders",
    )
    chained: dict[str, Output] = {}
    for subject in at.pair:
        at.column(300)
        with at.group(f"Training: {subject.name}"):
            chained = {"concepts": at.train(subject, **chained)["concepts"]}
    at.column(330)
    with at.group("Merged: one at a time"):
        merged = at.merge(COLLAPSED, chained["concepts"])
        prompts = at.prompts(
            146, merged["CLIP"], at.models.prompt(at.pair[:1], by_trigger), "Prompt: one of the triggers"
        )
        _, alone = at.sampled(COLLAPSED, seed, {"model": merged["MODEL"], **prompts})
    with at.group("By the sampler: both"):
        _, both = at.sampled(COLLAPSED, seed, at.clora(600, chained["concepts"]))
    at.column(250)
    with at.group("Pictures"):
        at.save(400, alone, "trained_merged", "Picture: merged")
        at.save(400, both, "trained_both", "Picture: both")


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


# Of ComfyUI's own nodes in `comfy_extras`.
CORE_NODES = ("preview_any", "mask", "train", "primitive", "dataset", "sd3", "flux", "model_advanced")
CORE_NODES += ("model_patch", "controlnet")


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
        for path in (*(extras / f"nodes_{name}.py" for name in CORE_NODES), ROOT):
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
