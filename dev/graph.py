"""Graphs as the page stores them: writing them from a few lines of Python, and turning them into the server's form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AUTOGROW = "COMFY_AUTOGROW_V3"  # any number of sockets, named "input.element0", "input.element1" ...
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a choice that brings further inputs, named "choice.input"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "IMAGECOMPARE", DYNAMIC}
SEEDS = {"seed", "noise_seed"}
ObjectInfo = dict[str, Any]


def inputs_of(info: dict[str, Any]) -> dict[str, list[Any]]:
    """A node's inputs in order, ``name -> [type, options]``."""
    return {
        name: spec
        for group in ("required", "optional")
        for name, spec in ((n, info["input"][group][n]) for n in info["input_order"].get(group, []))
    }


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
        values = iter(node.get("widgets_values") or [])
        inputs: dict[str, Any] = {}
        _read_widgets(inputs_of(info), values, inputs)
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
            chosen = next(option["inputs"] for option in spec[1]["options"] if option["key"] == value)
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

    GAP = 40

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
                widgets.append(_default(spec) if linked or value is None else value)
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
        size = [self._width, tall or 46 + 27 * rows + 22 * max(len(sockets), len(info["output"]))]
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
        for link_id, origin, slot, *_ in self.links:
            self.nodes[origin - 1]["outputs"][slot]["links"].append(link_id)
        workflow = {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": self.groups, "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip
        path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

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
