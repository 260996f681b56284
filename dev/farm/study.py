"""A study: a graph, and what varies over it.  Read from YAML, and refused with the line where something is not there.

    graph: workflows/05_face_refine_tiny.json     # a bundled graph or a file, in either of ComfyUI's two forms
    vary:                                         # every combination of these
      framing: {set: VCD Tiny Clip.framing, to: [close-up, medium]}
      seed: {set: [Face VCD Crop-Refine-Paste.seed, "4.seed"], to: [1, 2, 3]}
    rows:                                         # and each of these, once
      set: {person: VCD ID Loader.file, words: VCD ID Text Encode.text}
      to:
        - {person: ada.safetensors, words: "V* on the beach"}
        - {person: bob.safetensors, words: "V* in the snow"}

A place is a node and its widget: the node by its id, its title or its name, which must mean one node.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from vcd_core.words import shown

Prompt = dict[str, Any]
KEYS = {"graph", "vary", "rows"}
MOST_JOBS = 1_000_000
_DIGITS = 40  # of a whole number, in any of YAML's ways to write it
_ALIASED = 10  # how much larger than its text a study may be by its aliases
_MOST_SAID = 600  # characters of a message
_BROKEN = (ValueError, TypeError, LookupError, AttributeError, RecursionError, yaml.YAMLError)  # PyYAML's, and theirs


class StudyError(ValueError):
    """Something in a study that is not there or makes no sense; the message has file and line."""


@dataclass(frozen=True)
class Job:
    """One graph of a study; what is the same in all its jobs is held once.

    Attributes:
        number: its place in the study.
        values: what varies, by name.
        graph: the study's graph in API form.
        settings: what this job sets in it, by node and widget.
        files: what the worker puts into ComfyUI's input folder for it, by name there.  A name must say what is in the
            file, since jobs are known by their graphs.
    """

    number: int
    values: Mapping[str, Any]
    graph: Prompt
    settings: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def prompt(self) -> Prompt:
        """The job's own graph."""
        made = dict(self.graph)
        for (node, widget), value in self.settings.items():
            made[node] = {**made[node], "inputs": {**made[node]["inputs"], widget: value}}
        return made

    @cached_property
    def key(self) -> str:
        """What names the job's results: the same graph has the same, whatever else the study holds."""
        return hashlib.sha256(json.dumps(self.prompt, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def models(self) -> str:
        """Which files its loaders load: jobs alike in this are best done by the same worker."""
        texts = sorted(
            value
            for node in self.prompt.values()
            for value in node["inputs"].values()
            if isinstance(value, str) and value.lower().endswith((".safetensors", ".ckpt", ".pt", ".pth", ".gguf"))
        )
        return "\n".join(texts)


class _Lines:
    """Where each part of a YAML file stands."""

    def __init__(self, path: Path, root: yaml.Node, most: int) -> None:
        self.path, self.at, self.most = path, dict[tuple[Any, ...], int](), most
        self._walk(root, ())

    def _walk(self, node: yaml.Node, place: tuple[Any, ...]) -> None:
        self.at[place] = node.start_mark.line + 1
        if len(self.at) > self.most:
            raise self.error("aliases of aliases make it larger than a study can be.", *place)
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > _DIGITS:
            raise self.error(f"a number of {len(node.value)} digits is too large.", *place)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode) or not key.tag.endswith((":str", ":merge")):
                    raise self.error("a name must be a text.", *place)
                self._walk(value, (*place, key.value))
                self.at[(*place, key.value)] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                self._walk(value, (*place, i))

    def error(self, message: str, *place: Any) -> StudyError:
        while place not in self.at:
            place = place[:-1]
        return StudyError(f"{self.path.name}, line {self.at[place]}: {shown(message, _MOST_SAID)}")


def read(path: Path, to_api: Any, object_info: dict[str, Any]) -> list[Job]:
    """The jobs of a study.

    Args:
        to_api: turns a graph as the page saves it into API form, given ``object_info``.
        object_info: which nodes and widgets the host has.

    Raises:
        StudyError: what is not there, with its line.
    """
    data, lines = _parsed(path)
    if unknown := set(data) - KEYS:
        name = sorted(map(str, unknown))[0]
        raise lines.error(f"'{name}' means nothing here; a study has {', '.join(sorted(KEYS))}.", name)
    prompt = _graph(data, path, lines, to_api, object_info)
    axes = _axes(data.get("vary"), prompt, object_info, lines)
    axes.append(_rows(data.get("rows"), prompt, object_info, lines))
    if (count := math.prod(map(len, axes))) > MOST_JOBS:
        raise lines.error(f"that would be {count:.3g} jobs; a study has at most {MOST_JOBS:,}.")
    jobs = []
    for number, chosen in enumerate(itertools.product(*axes)):
        values, settings = dict[str, Any](), dict[tuple[str, str], Any]()
        for named, places in chosen:
            values |= named
            settings |= places
        jobs.append(Job(number, values, prompt, settings))
    return jobs


def _parsed(path: Path) -> tuple[dict[str, Any], _Lines]:
    """What a study's file holds, and where each part of it stands."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = _Lines(path, root, 1000 + _ALIASED * len(text)) if root is not None else None
        data = yaml.safe_load(text)
    except StudyError:
        raise
    except (OSError, *_BROKEN) as error:
        raise StudyError(f"{path.name} cannot be read as YAML: {shown(error, _MOST_SAID)}") from error
    if lines is None or not isinstance(data, dict):
        raise StudyError(f"{path.name} holds no study; expected 'graph' and 'vary' or 'rows'.")
    return data, lines


def bundled_or(name: str, folder: Path) -> Path | None:
    """The file of a graph in a folder or, where it is not there, of a bundled one."""
    root = Path(__file__).resolve().parents[2]
    return next((path for path in (folder / name, root / name) if os.path.isfile(path)), None)


def read_graph(file: Path, to_api: Any, object_info: dict[str, Any]) -> Prompt:
    """A graph in API form, of a file in either of ComfyUI's two.

    Raises:
        ValueError: it is no graph, or has nodes that the host does not.
    """
    try:
        graph = json.loads(file.read_text(encoding="utf-8"))
        prompt: Prompt = to_api(graph, object_info) if "nodes" in graph else graph
        _check_nodes(prompt)
        kinds = {node["class_type"] for node in prompt.values()}
    except (OSError, *_BROKEN) as error:
        raise ValueError(f"{file.name} is no graph of ComfyUI: {shown(error, _MOST_SAID)}") from error
    if absent := sorted(kinds - set(object_info)):
        raise ValueError(f"{file.name} has nodes that this ComfyUI does not: {shown(', '.join(absent), _MOST_SAID)}.")
    return prompt


def _check_nodes(prompt: Prompt) -> None:
    """Raise for a graph in API form whose nodes are not as ComfyUI saves them."""
    for key, node in prompt.items():
        named = isinstance(node["class_type"], str) and isinstance(node.get("_meta", {}).get("title", ""), str)
        inputs = node["inputs"]
        if not named or not isinstance(inputs, dict) or not all(isinstance(name, str) for name in inputs):
            raise ValueError(f"node {key} has no class_type, inputs and title as ComfyUI writes them.")


Setting = tuple[dict[str, Any], dict[tuple[str, str], Any]]  # values by name, and by node and widget


def _graph(data: dict[str, Any], path: Path, lines: _Lines, to_api: Any, object_info: dict[str, Any]) -> Prompt:
    """The study's graph in API form."""
    if not isinstance(data.get("graph"), str):
        raise lines.error("'graph' is missing: the file of a graph, beside the study or a bundled one.")
    file = bundled_or(data["graph"], path.parent)
    if file is None:
        raise lines.error(
            f"the graph {data['graph']} is not there, neither beside the study nor among the bundled.", "graph"
        )
    try:
        return read_graph(file, to_api, object_info)
    except ValueError as error:
        raise lines.error(str(error), "graph") from error


def _axes(vary: Any, prompt: Prompt, object_info: dict[str, Any], lines: _Lines) -> list[list[Setting]]:
    axes = []
    if vary is not None and not isinstance(vary, dict):
        raise lines.error("'vary' is no mapping of names.", "vary")
    for name, axis in (vary or {}).items():
        if (
            not isinstance(axis, dict)
            or set(axis) != {"set", "to"}
            or not isinstance(axis["to"], list)
            or not axis["to"]
        ):
            raise lines.error(f"'{name}' needs 'set', a node's widget, and 'to', a list of values.", "vary", name)
        given = axis["set"] if isinstance(axis["set"], list) else [axis["set"]]
        places = [_place(one, prompt, object_info, lines, "vary", name, "set") for one in given]
        for i, value in enumerate(axis["to"]):
            for place in places:
                _check(value, place, prompt, object_info, lines, "vary", name, "to", i)
        axes.append([({name: value}, dict.fromkeys(places, value)) for value in axis["to"]])
    return axes


def _rows(rows: Any, prompt: Prompt, object_info: dict[str, Any], lines: _Lines) -> list[Setting]:
    if rows is None:
        return [({}, {})]
    if not isinstance(rows, dict) or set(rows) != {"set", "to"} or not isinstance(rows["set"], dict):
        raise lines.error("'rows' needs 'set', a widget for each column, and 'to', a list of rows.", "rows")
    places = {
        column: _place(one, prompt, object_info, lines, "rows", "set", column) for column, one in rows["set"].items()
    }
    found = []
    if not isinstance(rows["to"] or [], list):
        raise lines.error("'to' is no list of rows.", "rows", "to")
    for i, row in enumerate(rows["to"] or []):
        if not isinstance(row, dict) or set(row) != set(places):
            raise lines.error(f"a row needs {', '.join(places)}, and nothing else.", "rows", "to", i)
        for column, value in row.items():
            _check(value, places[column], prompt, object_info, lines, "rows", "to", i, column)
        found.append((dict(row), {places[column]: value for column, value in row.items()}))
    if not found:
        raise lines.error("'rows' has no rows.", "rows")
    return found


def _place(text: Any, prompt: Prompt, object_info: dict[str, Any], lines: _Lines, *where: Any) -> tuple[str, str]:
    """The node and the widget that a text means."""
    node, dot, widget = str(text).rpartition(".")
    if not dot:
        raise lines.error(f"'{text}' names no widget; expected node.widget.", *where)
    found = [key for key, one in prompt.items() if node in (key, *_names(one, object_info))]
    if len(found) != 1:
        known = sorted({_names(one, object_info)[-1] for one in prompt.values()})
        many = f"{len(found)} nodes, {', '.join(found)}; write its id" if found else f"no node of {', '.join(known)}"
        raise lines.error(f"'{node}' means {many}.", *where)
    widgets = inputs_of(prompt[found[0]], object_info)
    if widget not in widgets:
        raise lines.error(f"{node} has no widget '{widget}'; it has {', '.join(widgets)}.", *where)
    return found[0], widget


def _names(node: dict[str, Any], object_info: dict[str, Any]) -> tuple[str, ...]:
    """What a node may be called: its title, its class and its class' name."""
    title = node.get("_meta", {}).get("title", "")
    return title, node["class_type"], object_info[node["class_type"]].get("display_name", "")


def inputs_of(node: dict[str, Any], object_info: dict[str, Any]) -> dict[str, list[Any]]:
    """A node's sockets and widgets, ``name -> [type, options]``."""
    groups = object_info[node["class_type"]]["input"]
    return {name: spec for group in ("required", "optional") for name, spec in groups.get(group, {}).items()}


def _check(
    value: Any, place: tuple[str, str], prompt: Prompt, object_info: dict[str, Any], lines: _Lines, *where: Any
) -> None:
    """Raise for a value that the widget cannot have: a file or choice that is not there, a text for a number."""
    node, widget = place
    spec = inputs_of(prompt[node], object_info)[widget]
    kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
    choices = kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None
    if choices is not None and value not in choices:
        shown = ", ".join(map(str, choices[:8])) + (", ..." if len(choices) > 8 else "")
        raise lines.error(f"{widget} cannot be {value!r}; there are {shown}.", *where)
    numeric = kind in ("INT", "FLOAT")
    if numeric and (isinstance(value, bool) or not isinstance(value, int if kind == "INT" else (int, float))):
        raise lines.error(f"{widget} cannot be {value!r}; expected a number.", *where)
    low, high = options.get("min", -math.inf), options.get("max", math.inf)
    if numeric and not (low <= value <= high and abs(value) < math.inf):
        raise lines.error(f"{widget} cannot be {value}; it goes from {low} to {high}.", *where)
    if kind == "STRING" and not isinstance(value, str):
        raise lines.error(f"{widget} cannot be {value!r}; expected a text.", *where)
    if kind == "BOOLEAN" and not isinstance(value, bool):
        raise lines.error(f"{widget} cannot be {value!r}; expected true or false.", *where)
    if not isinstance(value, (str, int, float)):
        raise lines.error(f"{widget} cannot be {value!r}; expected a text or a number.", *where)
