"""Graphs as the page stores them: writing them from a few lines of Python, and turning them into the server's form."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AUTOGROW = "COMFY_AUTOGROW_V3"  # any number of sockets, named "input.element0", "input.element1" ...
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings further inputs, named "choice.input"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "IMAGECOMPARE", DYNAMIC}
ROOM = {"VCD_FaceRefine": 280, "VCD_TiledDenoise": 280}  # for the pictures that a node shows below its widgets
SEEDS = {"seed", "noise_seed"}
ObjectInfo = dict[str, Any]


def inputs_of(info: dict[str, Any]) -> dict[str, list[Any]]:
    """A node's inputs in order, ``name -> [type, options]``."""
    return {
        name: spec
        for group in ("required", "optional")
        for name, spec in ((n, info["input"][group][n]) for n in info["input_order"].get(group, []))
    }


def api_node(info: ObjectInfo, kind: str, **inputs: Any) -> dict[str, Any]:
    """A node in API form: its widgets at their defaults but for those that are given, and what is connected."""
    known = {}
    for name, (options, *more) in inputs_of(info[kind]).items():
        settings = more[0] if more else {}
        choices = options if isinstance(options, list) else settings.get("options") or [None]
        default = settings.get("default", choices[0] if choices else None)
        if default is not None:
            known[name] = default
    return {"class_type": kind, "inputs": {**known, **inputs}}


def is_widget(spec: list[Any]) -> bool:
    return (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES) and not (len(spec) > 1 and spec[1].get("forceInput"))


def has_control(name: str, spec: list[Any]) -> bool:
    """Whether the page puts its own "control after generate" widget behind this one."""
    return bool(len(spec) > 1 and spec[1].get("control_after_generate")) or (name in SEEDS and spec[0] == "INT")


def to_api(workflow: dict[str, Any], object_info: ObjectInfo) -> dict[str, Any]:
    """A saved graph in the form that the server's queue takes.  Muted and bypassed nodes and notes are left out."""
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        info = object_info.get(node["type"])
        if info is None or node.get("mode") in (2, 4):
            if info is None and node["type"] not in ("Note", "MarkdownNote"):
                raise KeyError(f"The server has no node {node['type']}.")
            continue
        stored = node.get("widgets_values") or []
        inputs: dict[str, Any] = {}
        if isinstance(stored, dict):  # some packs have the page store them by name
            inputs = {
                name: stored[name] for name, spec in inputs_of(info).items() if name in stored and is_widget(spec)
            }
        elif isinstance(stored, list):
            _read_widgets(inputs_of(info), iter(stored), inputs)
        else:
            raise ValueError(f"The widgets of node {node['id']} are no list.")
        for socket in node.get("inputs") or []:
            if socket.get("link") is not None:
                _, origin, slot, *_ = links[socket["link"]]
                inputs[socket["name"]] = [str(origin), slot]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["type"]}}
    return prompt


def _read_widgets(known: dict[str, list[Any]], values: Iterator[Any], inputs: dict[str, Any], prefix: str = "") -> None:
    for name, spec in known.items():
        if not is_widget(spec):
            continue
        value = inputs[prefix + name] = next(values, _default(spec))
        if has_control(name, spec):
            next(values, None)
        if spec[0] == DYNAMIC:
            chosen = next((option["inputs"] for option in spec[1]["options"] if option["key"] == value), None)
            if chosen is None:
                raise ValueError(f"{prefix}{name} cannot be {value!r}.")
            inner = {**chosen.get("required", {}), **chosen.get("optional", {})}
            _read_widgets(inner, values, inputs, f"{prefix}{name}.")


def _default(spec: list[Any]) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    if any(name.endswith("_upload") for name in options):
        return None  # the choices are the files of whoever opens the graph: the page takes the first
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    first = choices[0] if choices else None
    return options.get("default", first["key"] if isinstance(first, dict) else first)


@dataclass(frozen=True)
class Out:
    """One output of a node that is being laid out."""

    node: int
    slot: int


@dataclass
class Graph:
    """Writes a graph as the page would save it.

    Example:
        graph = Graph(object_info, "02 text to video")
        with_group = graph.group("Noise", x=0)
        noise = graph.add("VCD_NoisePrior", gamma=0.1)
        graph.save(path)
    """

    info: ObjectInfo
    nodes: list[dict[str, Any]] = field(default_factory=list)
    links: list[list[Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    _column: list[dict[str, Any]] = field(default_factory=list)
    _x: float = 0
    _y: float = 0
    _width: float = 0
    _title: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    GAP = 40

    def first(self, kind: str) -> Out:
        """The first output of the first node of a kind that was added."""
        return next(Out(node["id"], 0) for node in self.nodes if node["type"] == kind)

    def app(self, inputs: Sequence[tuple[Out, str]], *outputs: Out) -> None:
        """Open the graph as an app: a form of these widgets (a node, the widget's name) and these nodes' results.

        A widget whose name stands there more than once is labelled by its node's title.
        """
        shown = [[out.node, name] for out, name in inputs]
        names = [name for _, name in inputs]
        for out, name in inputs:
            if names.count(name) > 1:
                self._label(self.nodes[out.node - 1], name)
        self.extra = {"linearMode": True, "linearData": {"inputs": shown, "outputs": [out.node for out in outputs]}}

    def column(self, title: str, width: float = 320) -> None:
        """Start the next group to the right; nodes added from now on stand in it from top to bottom."""
        self._close()
        self._x += (self._width + 2 * self.GAP) if self._width else 0
        self._y, self._width, self._title = 0, width, title

    def add(self, kind: str, /, *, title: str | None = None, tall: float | None = None, **values: Any) -> Out:
        """Add a node; keyword values are widget values, or ``Out`` for links.  Returns its first output; ``tall`` is
        the height of its box."""
        info = self.info[kind]
        node_id = len(self.nodes) + 1
        sockets: list[dict[str, Any]] = []
        widgets: list[Any] = []
        rows = 0
        known = inputs_of(info)
        grown = {key: known[key.split(".")[0]] for key in values if "." in key}
        unknown = set(values) - set(known) - {key for key in grown if grown[key][0] == AUTOGROW}
        if unknown:
            raise KeyError(f"{kind} has no input {sorted(unknown)}; it has {list(known)}.")
        for name, spec in known.items():
            value = values.get(name)
            linked = isinstance(value, Out)
            if is_widget(spec):
                widgets.append(_default(spec) if value is None else self._shown(value, spec))
                rows += 4 if len(spec) > 1 and spec[1].get("multiline") else 1
                if has_control(name, spec):
                    widgets.append("fixed")
                    rows += 1
            if spec[0] == AUTOGROW:
                for key in (k for k in grown if k.startswith(f"{name}.")):
                    element = next(iter(spec[1]["template"]["input"]["required"].values()))[0]
                    link = self._link(values[key], node_id, len(sockets), element)
                    sockets.append({"name": key, "label": key.split(".")[1], "type": element, "shape": 7, "link": link})
            elif linked or not is_widget(spec):
                kind_name = spec[0] if isinstance(spec[0], str) else "COMBO"
                link = self._link(value, node_id, len(sockets), kind_name)
                socket: dict[str, Any] = {"name": name, "type": kind_name, "link": link}
                if is_widget(spec):
                    socket["widget"] = {"name": name}
                elif name in info["input"].get("optional", {}):
                    socket["shape"] = 7
                sockets.append(socket)
        needed = 46 + 27 * rows + 22 * max(len(sockets), len(info["output"])) + ROOM.get(kind, 0)
        size = [self._width, tall or needed]
        outputs = [
            {"name": name, "type": kind_, "links": [], "slot_index": i}
            for i, (name, kind_) in enumerate(zip(info["output_name"], info["output"], strict=True))
        ]
        node = {
            "id": node_id, "type": kind, "pos": [self._x, self._y], "size": size, "flags": {}, "order": node_id - 1,
            "mode": 0, "inputs": sockets, "outputs": outputs,
            "properties": {"Node name for S&R": kind}, "widgets_values": widgets,
        }  # fmt: skip
        if title:
            node["title"] = title
        self._place(node)
        return Out(node_id, 0)

    def note(self, text: str, height: float = 150) -> None:
        """A note in Markdown; what stands between backticks is written bold, as code in a note cannot be read in
        Nodes 2.0."""
        text = re.sub("`([^`]+)`", lambda code: "**" + re.sub(r"([*<>])", r"\\\1", code[1]) + "**", text)
        node = {
            "id": len(self.nodes) + 1, "type": "MarkdownNote", "pos": [self._x, self._y],
            "size": [self._width, height], "flags": {}, "order": len(self.nodes), "mode": 0, "inputs": [],
            "outputs": [], "title": "Note", "properties": {}, "widgets_values": [text],
        }  # fmt: skip
        self._place(node)

    def models(self, out: Out, *files: tuple[str, str, str]) -> None:
        """Name the model files (name, url, directory) that a node needs, as the page's missing-model dialog reads
        them."""
        node = self.nodes[out.node - 1]
        node["properties"]["models"] = [dict(zip(("name", "url", "directory"), f, strict=True)) for f in files]

    def save(self, path: Path) -> None:
        self._close()
        self._tell_outputs()
        workflow = {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": self.groups, "config": {}, "extra": self.extra, "version": 0.4,
        }  # fmt: skip
        path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _shown(self, value: Any, spec: list[Any]) -> Any:
        """What a widget shows that has this value, or is linked."""
        return _default(spec) if isinstance(value, Out) else value

    def _label(self, node: dict[str, Any], widget: str) -> None:
        kind = inputs_of(self.info[node["type"]])[widget][0]
        label = node["title"].lower()
        node["inputs"].append({"name": widget, "label": label, "type": kind, "widget": {"name": widget}, "link": None})

    def _tell_outputs(self) -> None:
        """Write into each node which links leave it."""
        for link_id, origin, slot, *_ in self.links:
            if origin > 0:
                self.nodes[origin - 1]["outputs"][slot]["links"].append(link_id)

    def _link(self, value: Any, node_id: int, slot: int, kind: str) -> int | None:
        if not isinstance(value, Out):
            return None
        self.links.append([len(self.links) + 1, value.node, value.slot, node_id, slot, kind])
        return len(self.links)

    def _place(self, node: dict[str, Any]) -> None:
        self.nodes.append(node)
        self._column.append(node)
        self._y += node["size"][1] + self.GAP + 30

    def _close(self) -> None:
        if self._column:
            bottom = max(node["pos"][1] + node["size"][1] for node in self._column)
            bounding = [self._x - 20, -80, self._width + 40, bottom + 130]
            self.groups.append({"title": self._title, "bounding": bounding, "color": "#3f789e", "font_size": 24})
        self._column = []


INSIDE, OUTSIDE = -10, -20  # the page's numbers of a subgraph's own inputs and outputs


class Blueprint(Graph):
    """A graph that becomes one block of the page's node search, with the inputs and widgets that are named here.

    Example:
        block = Blueprint(object_info, name="Refine faces", description="...")
        images = block.socket("images", "IMAGE")
        refined = block.add("VCD_FaceRefine", images=images, denoise=block.widget("denoise", 0.6), ...)
        block.gives("images", refined)
        block.save(path)
    """

    def __init__(self, info: ObjectInfo, name: str, description: str) -> None:
        super().__init__(info)
        self.name, self.description = name, description
        self.taken: list[dict[str, Any]] = []  # the block's sockets, and widgets with a "value"
        self.given: list[tuple[str, str, Out]] = []  # name, type
        self.column("", 360)

    def socket(self, name: str, kind: str, optional: bool = False) -> Out:
        """An input of the block."""
        self.taken.append({"name": name, "type": kind, "optional": optional})
        return Out(INSIDE, len(self.taken) - 1)

    def widget(self, name: str, value: Any) -> Out:
        """A widget of the block; it is that of the nodes which it is given to."""
        self.taken.append({"name": name, "value": value, "type": ""})
        return Out(INSIDE, len(self.taken) - 1)

    def gives(self, name: str, out: Out) -> None:
        """An output of the block."""
        self.given.append((name, self.nodes[out.node - 1]["outputs"][out.slot]["type"], out))

    def _link(self, value: Any, node_id: int, slot: int, kind: str) -> int | None:
        if isinstance(value, Out) and value.node == INSIDE and not self.taken[value.slot]["type"]:
            self.taken[value.slot]["type"] = kind
        return super()._link(value, node_id, slot, kind)

    def _shown(self, value: Any, spec: list[Any]) -> Any:
        if isinstance(value, Out) and value.node == INSIDE and "value" in self.taken[value.slot]:
            return self.taken[value.slot]["value"]
        return super()._shown(value, spec)

    def save(self, path: Path) -> None:
        """Write the block; its identifiers follow from its name, so that the same block is the same file."""
        for slot, (_, kind, out) in enumerate(self.given):
            self.links.append([len(self.links) + 1, out.node, out.slot, OUTSIDE, slot, kind])
        self._tell_outputs()
        block = self._id("block")
        workflow = {
            "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [self._outer(block)], "links": [],
            "version": 0.4, "definitions": {"subgraphs": [self._inner(block)]}, "extra": {},
        }  # fmt: skip
        path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _id(self, what: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"video custom diffusion/{self.name}/{what}"))

    def _outer(self, block: str) -> dict[str, Any]:
        sockets: list[dict[str, Any]] = []
        for taken in self.taken:
            socket: dict[str, Any] = {"name": taken["name"], "type": taken["type"], "link": None}
            if "value" in taken:
                socket["widget"] = {"name": taken["name"]}
            elif taken["optional"]:
                socket["shape"] = 7
            sockets.append(socket)
        widgets = [taken for taken in self.taken if "value" in taken]
        outputs = [{"name": name, "type": kind, "links": None} for name, kind, _ in self.given]
        return {
            "id": 1, "type": block, "pos": [0, 0], "size": [self._width, 60 + 30 * (len(sockets) + len(outputs))],
            "flags": {}, "order": 0, "mode": 0, "inputs": sockets, "outputs": outputs, "title": self.name,
            "properties": {"proxyWidgets": [["-1", taken["name"]] for taken in widgets]},
            "widgets_values": [taken["value"] for taken in widgets],
        }  # fmt: skip

    def _inner(self, block: str) -> dict[str, Any]:
        right = max(node["pos"][0] + node["size"][0] for node in self.nodes)
        inputs = [
            {"id": self._id(f"input {taken['name']}"), "name": taken["name"], "type": taken["type"],
             "linkIds": [link[0] for link in self.links if link[1:3] == [INSIDE, slot]],
             "pos": [-180, 20 * slot + 20]}
            for slot, taken in enumerate(self.taken)
        ]  # fmt: skip
        outputs = [
            {"id": self._id(f"output {name}"), "name": name, "type": kind,
             "linkIds": [link[0] for link in self.links if link[3:5] == [OUTSIDE, slot]],
             "pos": [right + 120, 20 * slot + 20]}
            for slot, (name, kind, _) in enumerate(self.given)
        ]  # fmt: skip
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        return {
            "id": block, "version": 1, "revision": 0, "config": {}, "name": self.name,
            "state": {"lastGroupId": 0, "lastNodeId": len(self.nodes), "lastLinkId": len(self.links),
                      "lastRerouteId": 0},
            "inputNode": {"id": INSIDE, "bounding": [-300, 0, 140, 20 * len(inputs) + 40]},
            "outputNode": {"id": OUTSIDE, "bounding": [right + 100, 0, 140, 20 * len(outputs) + 40]},
            "inputs": inputs, "outputs": outputs, "widgets": [], "nodes": self.nodes, "groups": [],
            "links": [dict(zip(names, link, strict=True)) for link in self.links],
            "extra": {}, "category": "video custom diffusion", "description": self.description,
        }  # fmt: skip
