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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from graph import Graph, Node, NodeInfos, Output, api_format, blueprint, boundary, page_format

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "example_workflows"


class Subject(NamedTuple):
    """A concept LoRA: its name in prompts, its file, the phrase it was trained on, plain words for it."""

    name: str
    file: str
    trigger: str
    class_word: str


class Models(NamedTuple):
    """What the workflows run on, and settings that fit it. url: where the checkpoint can be had."""

    checkpoint: str
    url: str
    subjects: tuple[Subject, ...]
    scene: str
    side: int
    steps: int
    capture_steps: int
    cfg: float

    def prompt(self, subjects: Iterable[Subject], named: Callable[[Subject], str]) -> str:
        return f"a photo of {' and '.join(f'a {named(each)}' for each in subjects)} {self.scene}"


REAL = Models(
    "v1-5-pruned-emaonly-fp16.safetensors",
    "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    (
        Subject("cat", "my_cat_lora.safetensors", "sks cat", "cat"),
        Subject("dog", "my_dog_lora.safetensors", "zwx dog", "dog"),
    ),
    "in a park",
    512,
    30,
    20,
    7.0,
)
DEMO = Models(
    "loraclr_demo.safetensors",
    "",
    (
        Subject("ball", "loraclr_demo_ball.safetensors", "sks ball", "ball"),
        Subject("box", "loraclr_demo_box.safetensors", "zwx box", "box"),
        Subject("cross", "loraclr_demo_cross.safetensors", "ohwx cross", "cross"),
    ),
    "on grass",
    128,
    20,
    8,
    4.0,
)

MODELS_HINT = (
    "**Models.** Checkpoint: any SD1.5 model in `models/checkpoints`; this is ComfyUI's usual one. LoRAs: subjects trained"
    " on an SD1.5 model (a person, a pet, an object), in `models/loras`. Missing files are marked red: choose your own"
    " instead.\n\n"
)


def by_trigger(subject: Subject) -> str:
    return subject.trigger


def in_braces(subject: Subject) -> str:
    return f"{{{subject.name}}}"


class Description:
    """One workflow being described, for some models. The methods add what several workflows share."""

    def __init__(self, infos: NodeInfos, models: Models):
        self.graph = Graph(infos)
        self.add = self.graph.add
        self.group = self.graph.group
        self.models = models
        self.pair = models.subjects[:2]

    def note(self, text: str, height: int) -> None:
        self.graph.note("What to change first", MODELS_HINT + text, (-420, 0, 380, height))

    def model(self) -> None:
        """Checkpoint and empty latent."""
        self.group("Model", (-20, -60, 340, 420))
        models = self.models
        self.checkpoint = self.add("CheckpointLoaderSimple", (0, 0, 300, 120), {"ckpt_name": models.checkpoint})
        if models.url:
            self.checkpoint.offer(models.checkpoint, models.url, "checkpoints")
        size = {"width": models.side, "height": models.side}
        self.latent = self.add("EmptyLatentImage", (0, 200, 300, 130), size)["LATENT"]

    def concepts(self, subjects: Iterable[Subject], masks: Iterable[Output] = ()) -> Output:
        """Chained; the list of all."""
        subjects, given = tuple(subjects), tuple(masks)
        self.group("Concepts", (340, -60, 360, 30 + 330 * len(subjects)))
        chained: dict[str, Output] = {}
        for row, subject in enumerate(subjects):
            values = {"lora_name": subject.file, "trigger": subject.trigger, "class_word": subject.class_word}
            own = {"mask": given[row]} if given else {}
            title = f"Concept: {subject.name}"
            box = (360, 330 * row, 320, 270)
            concept = self.add("LoRACLR_LoadConceptLoRA", box, {**values, **own, **chained}, title)
            chained = {"concepts": concept["concepts"]}
        return chained["concepts"]

    def prompts(self, x: int, y: int, clip: Output, text: str) -> dict[str, Output]:
        title = "Prompt: the triggers"
        positive = self.add("CLIPTextEncode", (x, y, 400, 180), {"text": text, "clip": clip}, title)
        negative = self.add("CLIPTextEncode", (x, y + 240, 400, 140), {"text": "", "clip": clip}, "Negative prompt")
        return {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}

    def sampling(
        self, x: int, y: int, sampled_from: dict[str, Output], prefix: str, title: str = "Picture", seed: int = 4
    ) -> tuple[Output, Output]:
        """Sampling and saving, with one seed for pictures that are compared. Latent, picture."""
        values = {"steps": self.models.steps, "cfg": self.models.cfg, "sampler_name": "euler", "scheduler": "normal"}
        values = {"latent_image": self.latent, "seed": seed, **values, **sampled_from}
        sampled = self.add("KSampler", (x, y, 300, 300), values)
        vae = self.checkpoint["VAE"]
        decoded = self.add("VAEDecode", (x, y + 360, 300, 60), {"samples": sampled["LATENT"], "vae": vae})
        values = {"images": decoded["IMAGE"], "filename_prefix": f"loraclr/{prefix}"}
        self.add("SaveImage", (x + 330, y, 320, 420), values, title)
        return sampled["LATENT"], decoded["IMAGE"]

    def picture(self, x: int, y: int, patched: dict[str, Output], **sampling: Any) -> None:
        """Prompts, sampling and saving with an ordinary model. patched: its MODEL and CLIP."""
        prompts = self.prompts(x, y, patched["CLIP"], self.models.prompt(self.pair, by_trigger))
        self.sampling(x + 430, y, {"model": patched["MODEL"], **prompts}, **sampling)

    def merge(self, box: tuple[int, int, int, int], concepts: Output) -> Node:
        values = {"model": self.checkpoint["MODEL"], "clip": self.checkpoint["CLIP"], "latent": self.latent}
        return self.add(
            "LoRACLR_Merge", box, {**values, "concepts": concepts, "capture_steps": self.models.capture_steps}
        )

    def clora(self, x: int, y: int, concepts: Output) -> dict[str, Output]:
        """What a sampler node takes of CLoRA."""
        values = {"model": self.checkpoint["MODEL"], "clip": self.checkpoint["CLIP"], "concepts": concepts}
        prompt = self.models.prompt(self.pair, in_braces)
        clora = self.add("LoRACLR_CLoRASampler", (x, y, 400, 560), {**values, "prompt": prompt})
        return {"model": clora["MODEL"], "positive": clora["positive"], "negative": clora["negative"]}

    def mask(self, x: int, y: int, left: int, top: int, width: int, height: int, title: str) -> Output:
        """A rectangle of the picture, in pixels."""
        side = {"width": self.models.side, "height": self.models.side}
        nothing = self.add("SolidMask", (x, y, 220, 110), {"value": 0.0, **side}, f"{title}: picture size")
        full = {"value": 1.0, "width": width, "height": height}
        rectangle = self.add("SolidMask", (x, y + 160, 220, 110), full, f"{title}: size")
        values = {"destination": nothing["MASK"], "source": rectangle["MASK"], "x": left, "y": top, "operation": "add"}
        return self.add("MaskComposite", (x + 250, y, 220, 150), values, f"{title}: where")["MASK"]


def loraclr_merge(at: Description) -> None:
    at.note(
        "1. **Trigger** of each concept: the phrase its LoRA was trained on. **Class word**: plain words for it.\n"
        "2. **Prompt**: name the subjects by their triggers.\n"
        "3. **Size**: 512×512 for SD1.5, 1024×1024 for SDXL. The captures use it, too.\n\n"
        "The merged LoRA is saved as `loraclr/merged`; the template **loraclr_reload** loads it with the stock Load LoRA."
        " The merge node shows how closely it matches each concept.",
        460,
    )
    at.model()
    concepts = at.concepts(at.models.subjects)
    at.group("Merge", (720, -60, 380, 1240))
    merge = at.merge((740, 0, 340, 650), concepts)
    at.add("PreviewAny", (1120, 700, 540, 300), {"source": merge["report"]}, "Report")
    values = {"lora": merge["lora"], "merge_info": merge["merge_info"]}
    values |= {"filename": "loraclr/merged", "if_exists": "overwrite"}
    at.add("LoRACLR_SaveMergedLoRA", (740, 860, 340, 240), values)
    at.group("Picture", (1120, -60, 1120, 700))
    at.picture(1140, 0, {"MODEL": merge["MODEL"], "CLIP": merge["CLIP"]}, prefix="merged", seed=7)


def loraclr_reload(at: Description) -> None:
    at.note(
        "Loads the LoRA that **loraclr_merge** saved, using the stock Load LoRA at strength 1. The same prompt and seed"
        " give the same picture.\n\n"
        "1. **Checkpoint**: the one the LoRAs were merged on.\n"
        "2. **LoRA**: the name that Save Merged LoRA reported. If it is not in the list, press R.\n"
        "3. **Prompt**: name the subjects by their triggers.",
        440,
    )
    at.model()
    at.group("Merged LoRA", (320, -60, 340, 420))
    patched = {"model": at.checkpoint["MODEL"], "clip": at.checkpoint["CLIP"]}
    values = {**patched, "lora_name": "loraclr/merged.safetensors", "strength_model": 1.0, "strength_clip": 1.0}
    lora = at.add("LoraLoader", (340, 0, 300, 150), values)
    at.group("Picture", (680, -60, 1120, 700))
    at.picture(700, 0, {"MODEL": lora["MODEL"], "CLIP": lora["CLIP"]}, prefix="reloaded", seed=7)


def clora_two_concepts(at: Description) -> None:
    at.note(
        "1. **Trigger** of each concept: the phrase its LoRA was trained on. **Name**: what the prompt calls it.\n"
        "2. **Prompt**: write each concept by its name in braces; type `{` to choose one.\n"
        "3. **Size**: 512×512 for SD1.5, 1024×1024 for SDXL; 30 to 50 steps.\n\n"
        "The node shows the plain picture first, then the area of each concept. If a subject is missing, check whether"
        " the plain picture has an object for it. If not, try another seed.",
        440,
    )
    at.model()
    concepts = at.concepts(at.pair)
    at.group("CLoRA", (720, -60, 440, 1020))
    sampled_from = at.clora(740, 0, concepts)
    at.group("Picture", (1180, -60, 700, 700))
    samples, image = at.sampling(1200, 0, sampled_from, "clora")
    at.group("What it looked at", (1900, -60, 720, 980))
    values = {"model": sampled_from["model"], "latent": samples, "image": image}
    maps = at.add("LoRACLR_CLoRAMaps", (1920, 0, 300, 160), values)
    masks = at.add("MaskToImage", (1920, 220, 300, 60), {"mask": maps["masks"]})
    for row, (title, shown, prefix) in enumerate(
        [("Heat maps", maps["heat_maps"], "loraclr/clora_heat"), ("Masks", masks["IMAGE"], "loraclr/clora_masks")]
    ):
        at.add("SaveImage", (2260, 470 * row, 320, 400), {"images": shown, "filename_prefix": prefix}, title)
    at.add("LossGraphNode", (1920, 340, 300, 300), {"loss": maps["loss"]}, "Separation loss")


def clora_masks(at: Description) -> None:
    at.note(
        "Draws each concept inside its **mask**, instead of at an object found by attention.\n\n"
        "1. **Trigger** and **name** of each concept, and the **prompt** with the names in braces.\n"
        "2. **Masks**: here, the left and right half. For other shapes, replace them with *Load Image (as Mask)*, or with"
        " *Load Image*: right-click it and open the mask editor.\n"
        "3. **Size**: use the same for the picture and the masks.",
        460,
    )
    at.model()
    half = at.models.side // 2
    at.group("Masks", (-20, 540, 720, 660))
    areas = [
        at.mask(0, 600 + 300 * row, half * row, 0, half, at.models.side, f"Mask of {subject.name}")
        for row, subject in enumerate(at.pair)
    ]
    concepts = at.concepts(at.pair, areas)
    at.group("CLoRA", (720, -60, 440, 1020))
    sampled_from = at.clora(740, 0, concepts)
    at.group("Picture", (1180, -60, 700, 700))
    at.sampling(1200, 0, sampled_from, "clora_masks", seed=8)


def clora_inpaint(at: Description) -> None:
    at.note(
        "Makes a picture without the concepts first, then paints the concepts into a part of it.\n\n"
        "1. **Trigger** and **name** of each concept, and the **prompt** with the names in braces.\n"
        "2. **Picture to paint into**: to use your own, replace it with *Load Image* and *VAE Encode*.\n"
        "3. **Mask**: the part to repaint. For any shape, use *Load Image* with its mask editor.\n"
        "4. **denoise** of the second sampler: 1 repaints from scratch; lower values keep more.",
        480,
    )
    at.model()
    concepts = at.concepts(at.pair)
    side = at.models.side
    at.group("Picture to paint into", (-20, 720, 1120, 700))
    scene = f"a photo {at.models.scene}"
    plain = at.prompts(0, 780, at.checkpoint["CLIP"], scene)
    first, _ = at.sampling(430, 780, {"model": at.checkpoint["MODEL"], **plain}, "clora_before", "Before", seed=8)
    at.group("Mask", (1120, 720, 520, 380))
    area = at.mask(1140, 780, 0, side // 4, side, side - side // 4, "What is painted anew")
    masked = at.add("SetLatentNoiseMask", (1390, 1000, 220, 60), {"samples": first, "mask": area})
    at.group("CLoRA", (720, -60, 440, 760))
    sampled_from = at.clora(740, 0, concepts)
    at.group("Picture", (1180, -60, 700, 700))
    at.sampling(1200, 0, {**sampled_from, "latent_image": masked["LATENT"]}, "clora_inpaint", seed=8)


def side_by_side(at: Description) -> None:
    at.note(
        "Compares three ways to use the same two LoRAs, seed and prompt: **stacked** with the stock Load LoRA, **merged**,"
        " and composed by **CLoRA**.\n\n"
        "1. **LoRAs**: choose the same files in *Load LoRA* and *Load Concept LoRA*.\n"
        "2. **Triggers** and **class words** of the concepts, and the three prompts: use triggers in the first two, names"
        " in braces in the third.\n"
        "3. **Size**: 512×512 for SD1.5, 1024×1024 for SDXL.\n\n"
        "Try several seeds before you judge.",
        500,
    )
    at.model()
    concepts = at.concepts(at.pair)

    at.group("Stacked", (720, -60, 1560, 520))
    patched = {"MODEL": at.checkpoint["MODEL"], "CLIP": at.checkpoint["CLIP"]}
    for row, subject in enumerate(at.pair):
        values = {"model": patched["MODEL"], "clip": patched["CLIP"], "lora_name": subject.file}
        lora = at.add("LoraLoader", (740, 200 * row, 300, 150), values, f"Load LoRA: {subject.name}")
        patched = {"MODEL": lora["MODEL"], "CLIP": lora["CLIP"]}
    at.picture(1180, 0, patched, prefix="stacked", title="Picture: stacked")

    at.group("Merged", (720, 540, 1560, 800))
    merge = at.merge((740, 600, 400, 700), concepts)
    patched = {"MODEL": merge["MODEL"], "CLIP": merge["CLIP"]}
    at.picture(1180, 600, patched, prefix="merged", title="Picture: merged")

    at.group("CLoRA", (720, 1360, 1560, 980))
    at.sampling(1610, 1420, at.clora(740, 1420, concepts), "clora", "Picture: CLoRA")


WORKFLOWS = {
    describe.__name__: describe
    for describe in (loraclr_merge, loraclr_reload, clora_two_concepts, clora_masks, clora_inpaint, side_by_side)
}
BLUEPRINT = "CLoRA with two concepts"


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


CORE_NODES = ("nodes_preview_any.py", "nodes_mask.py", "nodes_train.py")


def described(name: str, infos: NodeInfos, models: Models) -> Graph:
    at = Description(infos, models)
    WORKFLOWS[name](at)
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
    for name in WORKFLOWS:
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
