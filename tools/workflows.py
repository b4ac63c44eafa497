"""The example workflows, described once and written in both formats.

python3 tools/host.py tools/workflows.py          # write example_workflows/*.json and example_workflows/api/*.json
python3 tools/host.py tools/workflows.py --check  # exit 1 where a file is not what would be written
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from graph import Graph, Node, NodeInfos, Output, api_format, page_format

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "example_workflows"

# As the demo's LoRAs were trained (tools/demo_assets.py).
CONCEPTS = {"ball": "sks ball", "box": "zwx box", "cross": "ohwx cross"}
CLORA_PROMPT = "a photo of a {ball} and a {box} on grass"
PAIR = ("ball", "box")
CHECKPOINT = "loraclr_demo.safetensors"


def prompt_of(names: Iterable[str]) -> str:
    return "a photo of " + " and ".join(f"a {CONCEPTS[name]}" for name in names) + " on grass"


def add_model(graph: Graph) -> tuple[Node, Output]:
    """Checkpoint and empty latent."""
    graph.group("Model", (-20, -60, 340, 420))
    checkpoint = graph.add("CheckpointLoaderSimple", (0, 0, 300, 120), {"ckpt_name": CHECKPOINT})
    latent = graph.add("EmptyLatentImage", (0, 200, 300, 130), {"width": 128, "height": 128})
    return checkpoint, latent["LATENT"]


def add_prompts(graph: Graph, x: int, y: int, clip: Output, prompt: str) -> dict[str, Output]:
    positive = graph.add("CLIPTextEncode", (x, y, 400, 180), {"text": prompt, "clip": clip}, "Prompt: the triggers")
    negative = graph.add("CLIPTextEncode", (x, y + 240, 400, 140), {"text": "", "clip": clip}, "Negative prompt")
    return {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}


def add_sampling(
    graph: Graph, x: int, y: int, sampled_from: dict[str, Output], vae: Output, prefix: str, title: str = "Picture"
) -> tuple[Output, Output]:
    """Sampling and saving, with the same seed everywhere, so that pictures can be compared. Latent, picture."""
    values = {"seed": 1, "steps": 20, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
    sampled = graph.add("KSampler", (x, y, 300, 300), {**sampled_from, **values})
    decoded = graph.add("VAEDecode", (x, y + 360, 300, 60), {"samples": sampled["LATENT"], "vae": vae})
    values = {"images": decoded["IMAGE"], "filename_prefix": f"loraclr/{prefix}"}
    graph.add("SaveImage", (x + 330, y, 320, 420), values, title)
    return sampled["LATENT"], decoded["IMAGE"]


def add_picture(
    graph: Graph, x: int, y: int, patched: dict[str, Output], latent: Output, vae: Output, prompt: str, **names: str
) -> None:
    """Prompts, sampling and saving with an ordinary model. patched: its MODEL and CLIP."""
    prompts = add_prompts(graph, x, y, patched["CLIP"], prompt)
    sampled_from = {"model": patched["MODEL"], "latent_image": latent, **prompts}
    add_sampling(graph, x + 430, y, sampled_from, vae, **names)


def add_clora(graph: Graph, x: int, y: int, checkpoint: Node, concepts: Output, latent: Output) -> dict[str, Output]:
    """What a sampler node takes of CLoRA."""
    values = {"model": checkpoint["MODEL"], "clip": checkpoint["CLIP"], "concepts": concepts}
    clora = graph.add("LoRACLR_CLoRASampler", (x, y, 400, 560), {**values, "prompt": CLORA_PROMPT})
    outputs = {"model": clora["MODEL"], "positive": clora["positive"], "negative": clora["negative"]}
    return {**outputs, "latent_image": latent}


def add_concepts(graph: Graph, names: tuple[str, ...]) -> Output:
    """Some of the demo's concepts, chained; returns the list of all."""
    graph.group("Concepts", (340, -60, 360, 30 + 330 * len(names)))
    chained: dict[str, Output] = {}
    for row, name in enumerate(names):
        values = {"lora_name": f"loraclr_demo_{name}.safetensors", "trigger": CONCEPTS[name], "class_word": name}
        box = (360, 330 * row, 320, 270)
        concept = graph.add("LoRACLR_LoadConceptLoRA", box, {**values, **chained}, f"Concept: {name}")
        chained = {"concepts": concept["concepts"]}
    return chained["concepts"]


def loraclr_merge(infos: NodeInfos) -> Graph:
    graph = Graph(infos)
    graph.note(
        "What to change first",
        "1. **Checkpoint** and **LoRAs**: your own. The ones here are tiny, made by `make demo`, and paint plain"
        " shapes.\n"
        "2. **Trigger** of each concept: the phrase its LoRA was trained on. **Class word**: plain words for it.\n"
        "3. **Prompt**: name the subjects by their triggers.\n"
        "4. **Size**: 512×512 for SD1.5, 1024×1024 for SDXL. It is also the size of the captures.\n"
        "5. **capture_steps**: 20 for real models; 8 here, to be quick.\n\n"
        "The merged LoRA is saved as `loraclr/merged`; **loraclr_reload** loads it again with the stock Load LoRA.",
        (-420, 0, 380, 400),
    )
    checkpoint, latent = add_model(graph)
    concepts = add_concepts(graph, tuple(CONCEPTS))
    graph.group("Merge", (720, -60, 380, 1020))
    merge = graph.add(
        "LoRACLR_Merge",
        (740, 0, 340, 430),
        {
            **{"model": checkpoint["MODEL"], "clip": checkpoint["CLIP"], "latent": latent},
            **{"capture_steps": 8, "concepts": concepts},
        },
    )
    graph.add("PreviewAny", (1120, 700, 540, 300), {"source": merge["report"]}, "Report")
    graph.add(
        "LoRACLR_SaveMergedLoRA",
        (740, 660, 340, 240),
        {
            **{"lora": merge["lora"], "merge_info": merge["merge_info"]},
            **{"filename": "loraclr/merged", "if_exists": "overwrite"},
        },
    )
    graph.group("Picture", (1120, -60, 1120, 700))
    patched = {"MODEL": merge["MODEL"], "CLIP": merge["CLIP"]}
    add_picture(graph, 1140, 0, patched, latent, checkpoint["VAE"], prompt_of(CONCEPTS), prefix="merged")
    return graph


def loraclr_reload(infos: NodeInfos) -> Graph:
    graph = Graph(infos)
    graph.note(
        "What to change first",
        "Loads the LoRA that **loraclr_merge** saved, with the stock Load LoRA at strength 1: the same prompt and seed give"
        " the same picture.\n\n"
        "1. **Checkpoint**: the one the LoRAs were merged on.\n"
        "2. **LoRA**: the name that Save Merged LoRA reported. Press R if it is not in the list.\n"
        "3. **Prompt**: name the subjects by their triggers.",
        (-420, 0, 380, 300),
    )
    checkpoint, latent = add_model(graph)
    graph.group("Merged LoRA", (320, -60, 340, 420))
    lora = graph.add(
        "LoraLoader",
        (340, 0, 300, 150),
        {
            **{"model": checkpoint["MODEL"], "clip": checkpoint["CLIP"]},
            **{"lora_name": "loraclr/merged.safetensors", "strength_model": 1.0, "strength_clip": 1.0},
        },
    )
    graph.group("Picture", (680, -60, 1120, 700))
    patched = {"MODEL": lora["MODEL"], "CLIP": lora["CLIP"]}
    add_picture(graph, 700, 0, patched, latent, checkpoint["VAE"], prompt_of(CONCEPTS), prefix="reloaded")
    return graph


def clora_two_concepts(infos: NodeInfos) -> Graph:
    graph = Graph(infos)
    graph.note(
        "What to change first",
        "1. **Checkpoint** and **LoRAs**: your own. The ones here are tiny, made by `make demo`, and paint plain"
        " shapes.\n"
        "2. **Trigger** of each concept: the phrase its LoRA was trained on. **Name**: what the prompt calls it.\n"
        "3. **Prompt**: each concept by its name in braces.\n"
        "4. **Size**: 512×512 for SD1.5, 1024×1024 for SDXL; 30 to 50 steps.\n\n"
        "If subjects still blend, raise **update_strength**; if the picture breaks up, lower it. The masks show what each"
        " concept was given.",
        (-420, 0, 380, 340),
    )
    checkpoint, latent = add_model(graph)
    concepts = add_concepts(graph, PAIR)
    graph.group("CLoRA", (720, -60, 440, 700))
    sampled_from = add_clora(graph, 740, 0, checkpoint, concepts, latent)
    graph.group("Picture", (1180, -60, 700, 700))
    samples, image = add_sampling(graph, 1200, 0, sampled_from, checkpoint["VAE"], "clora")
    graph.group("What it looked at", (1900, -60, 720, 980))
    maps = graph.add(
        "LoRACLR_CLoRAMaps",
        (1920, 0, 300, 160),
        {"model": sampled_from["model"], "latent": samples, "image": image},
    )
    masks = graph.add("MaskToImage", (1920, 220, 300, 60), {"mask": maps["masks"]})
    for row, (title, image, prefix) in enumerate(
        [
            ("Heat maps", maps["heat_maps"], "loraclr/clora_heat"),
            ("Masks", masks["IMAGE"], "loraclr/clora_masks"),
        ]
    ):
        graph.add("SaveImage", (2260, 470 * row, 320, 400), {"images": image, "filename_prefix": prefix}, title)
    graph.add("LossGraphNode", (1920, 340, 300, 300), {"loss": maps["loss"]}, "Separation loss")
    return graph


def side_by_side(infos: NodeInfos) -> Graph:
    graph = Graph(infos)
    graph.note(
        "What to change first",
        "The same two LoRAs, seed and prompt three ways: **stacked** with the stock Load LoRA, **merged**, and composed by"
        " **CLoRA**.\n\n"
        "1. **Checkpoint** and **LoRAs**: your own, the same files in *Load LoRA* and in *Load Concept LoRA*. The ones here"
        " are tiny, made by `make demo`, and paint plain shapes.\n"
        "2. **Triggers** and **class words** of the concepts, and the three prompts: triggers in the first two, names in"
        " braces in the third.\n"
        "3. **Size**: 512×512 for SD1.5, 1024×1024 for SDXL. **capture_steps** of the merge: 20; 20 to 50 sampling steps.\n\n"
        "Try several seeds before you judge.",
        (-420, 0, 380, 400),
    )
    checkpoint, latent = add_model(graph)
    vae = checkpoint["VAE"]
    prompt = prompt_of(PAIR)
    concepts = add_concepts(graph, PAIR)

    graph.group("Stacked", (720, -60, 1560, 520))
    patched = {"MODEL": checkpoint["MODEL"], "CLIP": checkpoint["CLIP"]}
    for row, name in enumerate(PAIR):
        values = {"model": patched["MODEL"], "clip": patched["CLIP"], "lora_name": f"loraclr_demo_{name}.safetensors"}
        lora = graph.add("LoraLoader", (740, 200 * row, 300, 150), values, f"Load LoRA: {name}")
        patched = {"MODEL": lora["MODEL"], "CLIP": lora["CLIP"]}
    add_picture(graph, 1180, 0, patched, latent, vae, prompt, prefix="stacked", title="Picture: stacked")

    graph.group("Merged", (720, 540, 1560, 560))
    values = {"model": checkpoint["MODEL"], "clip": checkpoint["CLIP"], "latent": latent, "concepts": concepts}
    merge = graph.add("LoRACLR_Merge", (740, 600, 400, 470), {**values, "capture_steps": 8})
    patched = {"MODEL": merge["MODEL"], "CLIP": merge["CLIP"]}
    add_picture(graph, 1180, 600, patched, latent, vae, prompt, prefix="merged", title="Picture: merged")

    graph.group("CLoRA", (720, 1120, 1560, 660))
    sampled_from = add_clora(graph, 740, 1180, checkpoint, concepts, latent)
    add_sampling(graph, 1610, 1180, sampled_from, vae, "clora", "Picture: CLoRA")
    return graph


WORKFLOWS = {
    "loraclr_merge": loraclr_merge,
    "loraclr_reload": loraclr_reload,
    "clora_two_concepts": clora_two_concepts,
    "side_by_side": side_by_side,
}
CORE_NODES = ("nodes_preview_any.py", "nodes_mask.py", "nodes_train.py")


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
    for name, describe in WORKFLOWS.items():
        graph = describe(infos)
        texts[FOLDER / f"{name}.json"] = _json(page_format(graph, name))
        texts[FOLDER / "api" / f"{name}.json"] = _json(api_format(graph))
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
