"""The example workflows, described once and written in both formats.

    python3 tools/host.py tools/workflows.py          # write example_workflows/*.json and example_workflows/api/*.json
    python3 tools/host.py tools/workflows.py --check  # exit 1 where a file is not what would be written

The page opens the first format, `POST /prompt` takes the second. Slots and widget order come from the host's own schemas.
"""

import argparse
import asyncio
import json
import os
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "example_workflows"

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEED_NAMES = {"seed", "noise_seed"}  # the page adds control_after_generate to these unless the schema says otherwise
SEED_CONTROL = "fixed"
NOTE_TYPES = {"Note", "MarkdownNote"}
OPTIONAL_SHAPE = 7  # LiteGraph draws optional inputs as a hollow circle
NodeInfos = dict[str, dict[str, Any]]
Box = tuple[int, int, int, int]  # x, y, width, height


@dataclass(frozen=True)
class Output:
    node: "Node"
    slot: int


@dataclass
class Node:
    id: int
    type: str
    box: Box
    inputs: dict[str, Any]  # values and Outputs, by input name
    info: dict[str, Any]
    title: str | None = None

    def __getitem__(self, output_name: str) -> Output:
        return Output(self, list(self.info["output_name"]).index(output_name))


@dataclass
class Graph:
    infos: NodeInfos
    nodes: list[Node] = field(default_factory=list)
    notes: list[tuple[str, str, Box]] = field(default_factory=list)
    groups: list[tuple[str, Box]] = field(default_factory=list)

    def add(self, type: str, box: Box, inputs: dict[str, Any], title: str | None = None) -> Node:
        info = self.infos[type]
        known = {name: spec for name, spec, _ in schema(info)}
        if unknown := inputs.keys() - known.keys():
            raise ValueError(f"{type} has no input {sorted(unknown)}; it has {sorted(known)}")
        widgets = {name: default(spec) for name, spec in known.items() if is_widget(spec)}
        node = Node(len(self.nodes) + 1, type, box, {**widgets, **inputs}, info, title)
        self.nodes.append(node)
        return node

    def note(self, title: str, text: str, box: Box) -> None:
        self.notes.append((title, text, box))

    def group(self, title: str, box: Box) -> None:
        self.groups.append((title, box))


def schema(info: dict[str, Any]) -> list[tuple[str, list, bool]]:
    """(name, spec, optional) of every input a node shows, in the node's order."""
    return [
        (name, spec, part == "optional")
        for part in ("required", "optional")
        for name, spec in info["input"].get(part, {}).items()
    ]


def is_widget(spec: list) -> bool:
    options = spec[1] if len(spec) > 1 else {}
    return (isinstance(spec[0], (list, tuple)) or spec[0] in WIDGET_TYPES) and not options.get("forceInput")


def default(spec: list) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    choices = spec[0] if isinstance(spec[0], (list, tuple)) else options.get("options", ())
    empty = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
    return options.get("default", empty.get(str(spec[0]), next(iter(choices), None)))


def has_seed_control(name: str, spec: list) -> bool:
    options = spec[1] if len(spec) > 1 else {}
    return spec[0] == "INT" and bool(options.get("control_after_generate", name in SEED_NAMES))


def api_format(graph: Graph) -> dict[str, dict]:
    return {
        str(node.id): {
            "class_type": node.type,
            "inputs": {
                name: [str(value.node.id), value.slot] if isinstance(value, Output) else value
                for name, _, _ in schema(node.info)
                if (value := node.inputs.get(name)) is not None
            },
            "_meta": {"title": node.title or node.info["display_name"]},
        }
        for node in graph.nodes
    }


def page_format(graph: Graph, name: str) -> dict[str, Any]:
    links: list[list] = []
    nodes = [_page_node(node, order, links) for order, node in enumerate(graph.nodes)]
    for link, source, slot, *_ in links:
        nodes[source - 1]["outputs"][slot]["links"].append(link)
    for title, text, box in graph.notes:
        nodes.append(
            {
                **_frame(len(nodes) + 1, "MarkdownNote", box, len(nodes)),
                **{"inputs": [], "outputs": [], "title": title, "properties": {}, "widgets_values": [text]},
                **{"color": "#432", "bgcolor": "#653"},
            }
        )
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        "revision": 0,
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [
            {"id": i, "title": title, "bounding": list(box), "color": "#3f789e", "font_size": 24, "flags": {}}
            for i, (title, box) in enumerate(graph.groups, 1)
        ],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _page_node(node: Node, order: int, links: list[list]) -> dict[str, Any]:
    sockets, values = [], []
    for name, spec, optional in schema(node.info):
        value = node.inputs.get(name)
        linked = isinstance(value, Output)
        if is_widget(spec):
            values.append(default(spec) if linked else value)
            if has_seed_control(name, spec):
                values.append(SEED_CONTROL)
            if not linked:
                continue
        kind = "COMBO" if isinstance(spec[0], (list, tuple)) else spec[0]
        socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
        if optional:
            socket["shape"] = OPTIONAL_SHAPE
        if is_widget(spec):
            socket["widget"] = {"name": name}
        if linked:
            socket["link"] = len(links) + 1
            kind = value.node.info["output"][value.slot]
            links.append([len(links) + 1, value.node.id, value.slot, node.id, len(sockets), kind])
        sockets.append(socket)
    outputs = zip(node.info["output_name"], node.info["output"], strict=True)
    return {
        **_frame(node.id, node.type, node.box, order),
        "inputs": sockets,
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        **({"title": node.title} if node.title else {}),
        "properties": {"Node name for S&R": node.type},
        "widgets_values": values,
    }


def _frame(id: int, type: str, box: Box, order: int) -> dict[str, Any]:
    return {"id": id, "type": type, "pos": box[:2], "size": box[2:], "flags": {}, "order": order, "mode": 0}


def to_api(workflow: dict[str, Any], node_infos: NodeInfos) -> dict[str, dict]:
    """The API format of a workflow in the page's format. `node_infos`: as `/object_info` gives them.

    Raises ValueError for a node type that the host does not know.
    """
    links = {link: [str(source), slot] for link, source, slot, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTE_TYPES:
            continue
        if node["type"] not in node_infos:
            raise ValueError(f"node {node['id']}: the host has no node type {node['type']!r}")
        info = node_infos[node["type"]]
        linked = {socket["name"]: socket["link"] for socket in node["inputs"] if socket["link"] is not None}
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for name, spec, _ in schema(info):
            if is_widget(spec):
                inputs[name] = next(values)
                if has_seed_control(name, spec):
                    next(values)
            if name in linked:
                inputs[name] = links[linked[name]]
        title = node.get("title") or info["display_name"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


# The workflows

PROMPT = "photo of a sks cat, a sks dog and a sks bird in a park"
CHECKPOINT = "loraclr_demo.safetensors"
CONCEPTS = ("cat", "dog", "bird")


def add_picture(graph: Graph, x: int, clip: Output, model: Output, vae: Output, latent: Output, prefix: str) -> None:
    """Prompt, sampling and saving; the same in both workflows, so that their pictures can be compared."""
    graph.group("Picture", (x - 20, -60, 1120, 700))
    positive = graph.add("CLIPTextEncode", (x, 0, 400, 180), {"text": PROMPT, "clip": clip}, "Prompt: the triggers")
    negative = graph.add("CLIPTextEncode", (x, 240, 400, 140), {"text": "", "clip": clip}, "Negative prompt")
    sampled = graph.add(
        "KSampler",
        (x + 430, 0, 300, 300),
        {
            **{"model": model, "positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]},
            **{"latent_image": latent, "seed": 1, "steps": 8, "cfg": 5.0},
            **{"sampler_name": "euler", "scheduler": "normal"},
        },
    )
    decoded = graph.add("VAEDecode", (x + 430, 360, 300, 60), {"samples": sampled["LATENT"], "vae": vae})
    graph.add("SaveImage", (x + 760, 0, 320, 420), {"images": decoded["IMAGE"], "filename_prefix": prefix}, "Picture")


def add_concepts(graph: Graph, words: tuple[str, ...]) -> Output:
    """The demo's concepts, chained; returns the list of all."""
    graph.group("Concepts", (340, -60, 360, 30 + 330 * len(words)))
    chained: dict[str, Output] = {}
    for row, word in enumerate(words):
        values = {"lora_name": f"loraclr_demo_{word}.safetensors", "trigger": f"sks {word}", "class_word": word}
        box = (360, 330 * row, 320, 270)
        concept = graph.add("LoRACLR_LoadConceptLoRA", box, {**values, **chained}, f"Concept: {word}")
        chained = {"concepts": concept["concepts"]}
    return chained["concepts"]


def loraclr_merge(infos: NodeInfos) -> Graph:
    graph = Graph(infos)
    graph.note(
        "What to change first",
        "1. **Checkpoint** and **LoRAs**: your own. The ones here are tiny, made by `make demo`, and paint nothing but"
        " colours.\n"
        "2. **Trigger** of each concept: the phrase its LoRA was trained on. **Class word**: plain words for it.\n"
        "3. **Prompt**: name the subjects by their triggers.\n"
        "4. **Size**: 512×512 for SD1.5, 1024×1024 for SDXL. It is also the size of the captures.\n"
        "5. **capture_steps**: 20 for real models; 8 here, to be quick.\n\n"
        "The merged LoRA is saved as `loraclr/merged`; **loraclr_reload** loads it again with the stock Load LoRA.",
        (-420, 0, 380, 400),
    )
    graph.group("Model", (-20, -60, 340, 420))
    checkpoint = graph.add("CheckpointLoaderSimple", (0, 0, 300, 120), {"ckpt_name": CHECKPOINT})
    latent = graph.add("EmptyLatentImage", (0, 200, 300, 130), {"width": 128, "height": 128})

    concepts = add_concepts(graph, CONCEPTS)
    graph.group("Merge", (720, -60, 380, 1020))
    merge = graph.add(
        "LoRACLR_Merge",
        (740, 0, 340, 430),
        {
            **{"model": checkpoint["MODEL"], "clip": checkpoint["CLIP"], "latent": latent["LATENT"]},
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
    add_picture(
        graph, 1140, merge["CLIP"], merge["MODEL"], checkpoint["VAE"], latent["LATENT"], prefix="loraclr/merged"
    )
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
    graph.group("Merged model", (-20, -60, 680, 420))
    checkpoint = graph.add("CheckpointLoaderSimple", (0, 0, 300, 120), {"ckpt_name": CHECKPOINT})
    latent = graph.add("EmptyLatentImage", (0, 200, 300, 130), {"width": 128, "height": 128})
    lora = graph.add(
        "LoraLoader",
        (340, 0, 300, 150),
        {
            **{"model": checkpoint["MODEL"], "clip": checkpoint["CLIP"]},
            **{"lora_name": "loraclr/merged.safetensors", "strength_model": 1.0, "strength_clip": 1.0},
        },
    )
    add_picture(graph, 700, lora["CLIP"], lora["MODEL"], checkpoint["VAE"], latent["LATENT"], prefix="loraclr/reloaded")
    return graph


def clora_two_concepts(infos: NodeInfos) -> Graph:
    graph = Graph(infos)
    graph.note(
        "What to change first",
        "1. **Checkpoint** and **LoRAs**: your own. The ones here are tiny, made by `make demo`, and paint nothing but"
        " colours.\n"
        "2. **Trigger** of each concept: the phrase its LoRA was trained on. **Name**: what the prompt calls it.\n"
        "3. **Prompt**: each concept by its name in braces.\n"
        "4. **Size**: 512×512 for SD1.5, 1024×1024 for SDXL; 30 to 50 steps.\n\n"
        "If subjects still blend, raise **update_strength**; if the picture breaks up, lower it. The masks show what each"
        " concept was given.",
        (-420, 0, 380, 340),
    )
    graph.group("Model", (-20, -60, 340, 420))
    checkpoint = graph.add("CheckpointLoaderSimple", (0, 0, 300, 120), {"ckpt_name": CHECKPOINT})
    latent = graph.add("EmptyLatentImage", (0, 200, 300, 130), {"width": 128, "height": 128})

    concepts = add_concepts(graph, CONCEPTS[:2])
    graph.group("CLoRA", (720, -60, 440, 700))
    clora = graph.add(
        "LoRACLR_CLoRASampler",
        (740, 0, 400, 560),
        {
            **{"model": checkpoint["MODEL"], "clip": checkpoint["CLIP"], "concepts": concepts},
            **{"prompt": "a photo of {cat} and {dog} in a park"},
        },
    )
    graph.group("Picture", (1180, -60, 700, 700))
    sampled = graph.add(
        "KSampler",
        (1200, 0, 300, 300),
        {
            **{"model": clora["MODEL"], "positive": clora["positive"], "negative": clora["negative"]},
            **{"latent_image": latent["LATENT"], "seed": 1, "steps": 8, "cfg": 5.0},
            **{"sampler_name": "euler", "scheduler": "normal"},
        },
    )
    decoded = graph.add("VAEDecode", (1200, 360, 300, 60), {"samples": sampled["LATENT"], "vae": checkpoint["VAE"]})
    graph.add(
        "SaveImage",
        (1530, 0, 320, 420),
        {"images": decoded["IMAGE"], "filename_prefix": "loraclr/clora"},
        "Picture",
    )
    graph.group("What it looked at", (1900, -60, 720, 980))
    maps = graph.add(
        "LoRACLR_CLoRAMaps",
        (1920, 0, 300, 160),
        {"model": clora["MODEL"], "latent": sampled["LATENT"], "image": decoded["IMAGE"]},
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


WORKFLOWS = {
    "loraclr_merge": loraclr_merge,
    "loraclr_reload": loraclr_reload,
    "clora_two_concepts": clora_two_concepts,
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
