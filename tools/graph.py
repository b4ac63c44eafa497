"""A workflow described once, in the host's formats.

The page opens `page_format`, `POST /prompt` takes `api_format`, and `blueprint` is a graph as one node to drop in. Slots and
widget order come from the host's own schemas.
"""

import uuid
from dataclasses import dataclass, field
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEED_NAMES = {"seed", "noise_seed"}  # the page adds control_after_generate to these unless the schema says otherwise
SEED_CONTROL = "fixed"
ALWAYS, MUTED = 0, 2  # LiteGraph's modes of a node
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
    collapsed: bool = False  # only its title is shown
    muted: bool = False  # it does not run until the user says so
    models: list[dict[str, str]] = field(
        default_factory=list
    )  # which the page offers to download where they are missing

    def offer(self, file: str, url: str, folder: str) -> None:
        self.models.append({"name": file, "url": url, "directory": folder})

    def mute(self) -> None:
        self.muted = True

    def __getitem__(self, output_name: str) -> Output:
        return Output(self, list(self.info["output_name"]).index(output_name))


@dataclass
class Graph:
    infos: NodeInfos
    nodes: list[Node] = field(default_factory=list)
    notes: list[tuple[str, str, Box]] = field(default_factory=list)
    groups: list[tuple[str, Box]] = field(default_factory=list)

    def add(
        self, type: str, box: Box, inputs: dict[str, Any], title: str | None = None, collapsed: bool = False
    ) -> Node:
        info = self.infos[type]
        known = {name: spec for name, spec, _ in schema(info)}
        if unknown := inputs.keys() - known.keys():
            raise ValueError(f"{type} has no input {sorted(unknown)}; it has {sorted(known)}")
        widgets = {name: default(spec) for name, spec in known.items() if is_widget(spec)}
        node = Node(len(self.nodes) + 1, type, box, {**widgets, **inputs}, info, title, collapsed)
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
        if not node.muted
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


INPUTS, OUTPUTS = -10, -20  # ids of a subgraph's own ends


def boundary(types: dict[str, str], values: dict[str, Any]) -> Node:
    """Where a blueprint's inputs come from: their types by name, and the values of those that are widgets."""
    return Node(INPUTS, "", (0, 0, 0, 0), values, {"output_name": list(types), "output": list(types.values())})


def blueprint(graph: Graph, name: str, description: str, start: Node, outputs: list[Output]) -> dict:
    """A file of the host's `subgraphs/`. start: a `boundary` that nodes are linked to."""
    links: list[list] = []
    nodes = [_page_node(node, order, links) for order, node in enumerate(graph.nodes)]
    for slot, output in enumerate(outputs):
        kind = output.node.info["output"][output.slot]
        links.append([len(links) + 1, output.node.id, output.slot, OUTPUTS, slot, kind])
    for link, source, slot, *_ in links:
        if source != INPUTS:
            nodes[source - 1]["outputs"][slot]["links"].append(link)

    def linked(end: int, slot: int, at: int) -> list[int]:
        return [link[0] for link in links if (link[at], link[at + 1]) == (end, slot)]

    def identity(text: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {text}"))

    names = list(zip(start.info["output_name"], start.info["output"], strict=True))
    inputs = [
        {"id": identity(f"in {label}"), "name": label, "type": kind, "linkIds": linked(INPUTS, slot, 1), "pos": [0, 0]}
        for slot, (label, kind) in enumerate(names)
    ]
    given = [
        (output.node.info["output_name"][output.slot], output.node.info["output"][output.slot]) for output in outputs
    ]
    ends = [
        {
            "id": identity(f"out {label}"),
            "name": label,
            "type": kind,
            "linkIds": linked(OUTPUTS, slot, 3),
            "pos": [0, 0],
        }
        for slot, (label, kind) in enumerate(given)
    ]
    right = max(x + width for x, _, width, _ in (node.box for node in graph.nodes))
    definition = {
        "id": identity("definition"),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": INPUTS, "bounding": [-260, 0, 140, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + 120, 0, 140, 40 + 20 * len(ends)]},
        **{"inputs": inputs, "outputs": ends, "widgets": [], "nodes": nodes, "groups": []},
        "links": [
            dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
            for link in links
        ],
        "extra": {},
        "category": "LoRACLR",
        "description": description,
    }
    node = {
        **_frame(1, definition["id"], (0, 0, 400, 60 + 30 * len(inputs)), 0),
        "inputs": [
            {
                "name": label,
                "type": kind,
                "link": None,
                **({"widget": {"name": label}} if label in start.inputs else {}),
            }
            for label, kind in names
        ],
        "outputs": [{"name": label, "type": kind, "links": None} for label, kind in given],
        "title": name,
        "properties": {"proxyWidgets": [["-1", label] for label in start.inputs]},
        "widgets_values": [*start.inputs.values()],
    }
    return {
        **{"revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [node], "links": [], "version": 0.4},
        "definitions": {"subgraphs": [definition]},
        "extra": {},
    }


def _page_node(node: Node, order: int, links: list[list]) -> dict[str, Any]:
    sockets, values = [], []
    for name, spec, optional in schema(node.info):
        value = node.inputs.get(name)
        linked = isinstance(value, Output)
        if is_widget(spec):
            values.append(_behind(value, spec) if linked else value)
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
        **_frame(node.id, node.type, node.box, order, node.collapsed),
        "mode": MUTED if node.muted else ALWAYS,
        "inputs": sockets,
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in outputs],
        **({"title": node.title} if node.title else {}),
        "properties": {"Node name for S&R": node.type, **({"models": node.models} if node.models else {})},
        "widgets_values": values,
    }


def _behind(link: Output, spec: list) -> Any:
    """What a linked widget holds: a blueprint's own value, or anything."""
    name = link.node.info["output_name"][link.slot]
    return link.node.inputs[name] if link.node.id == INPUTS else default(spec)


def _frame(id: int, type: str, box: Box, order: int, collapsed: bool = False) -> dict[str, Any]:
    flags = {"collapsed": True} if collapsed else {}
    return {"id": id, "type": type, "pos": box[:2], "size": box[2:], "flags": flags, "order": order, "mode": ALWAYS}


def to_api(workflow: dict[str, Any], node_infos: NodeInfos) -> dict[str, dict]:
    """The API format of a workflow in the page's format. `node_infos`: as `/object_info` gives them.

    Raises ValueError for a node type that the host does not know.
    """
    links = {link: [str(source), slot] for link, source, slot, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTE_TYPES or node["mode"] == MUTED:
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
