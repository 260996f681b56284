"""A long clip, refined scene by scene by a graph, and put together again.

A scene is a job: the graph is cut down to what leads to its film, its clip is trimmed to the scene by ComfyUI's own
node, and its frames are saved without loss.  Where the film comes straight from Face VCD Crop-Refine-Paste, a scene
with several faces is several jobs, one for each track, and what they changed is added up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import run as farm
from .reel import Reel, Scene, cut, write
from .study import Job, Prompt, inputs_of
from .worker import GIVEN

Link = list[Any]  # a node and its output
LOOK, FILM, TRIM, COUNT = "vcd film: look", "vcd film", "vcd film: trim", "vcd film: count"
COUNT_SLOT = 4  # Face VCD Track's output of how many tracks there are
TRACKED = {
    "which": "all", "index": 0, "threshold": 0.6, "max_gap": 8, "min_length": 3, "small_faces": False,
}  # how Crop-Refine-Paste finds faces by itself  # fmt: skip


@dataclass(frozen=True)
class Ends:
    """Where a graph takes its clip and where its film comes out.

    Attributes:
        clip: the node that loads it, and the widget of its file.
        film: the output that is the film's frames, an IMAGE.
        graph: the graph, with a node for that output where it had none.
    """

    clip: tuple[str, str]
    film: Link
    graph: Prompt

    @property
    def refiner(self) -> str | None:
        """The Face VCD Crop-Refine-Paste that the film comes straight from, where it refines all faces."""
        key, slot = self.film
        node = self.graph[key]
        given = node["inputs"]
        everybody = given.get("which") in ("all", "left to right") and not {"pick", "exclude"} & set(given)
        return key if node["class_type"] == "VCD_FaceRefine" and slot == 0 and everybody else None


def ends(graph: Prompt, object_info: dict[str, Any], film: str | None = None) -> Ends:
    """Find where a graph takes its clip and gives its film.

    Args:
        film: the id of the node that saves the film; None for the only one that saves a video or, where none does,
            pictures.

    Raises:
        ValueError: there is none, or more than one.
    """
    loaders = [
        (key, name)
        for key, node in graph.items()
        for name, spec in inputs_of(node, object_info).items()
        if len(spec) > 1 and spec[1].get("video_upload")
    ]
    clip = _only(loaders, "loads a video", [f"{key}: {graph[key]['class_type']}" for key, _ in loaders])
    savers = {
        kind: [
            (key, name)
            for key, node in graph.items()
            for name, spec in inputs_of(node, object_info).items()
            if spec[0] == kind and isinstance(node["inputs"].get(name), list) and _saves(node, object_info)
            if film in (None, key)
        ]
        for kind in ("VIDEO", "IMAGE")
    }
    found = savers["VIDEO"] or savers["IMAGE"]
    names = [f"{key}: {graph[key]['class_type']}" for key, _ in found]
    saver, socket = _only(found, "saves a video or pictures", names, ", or name it with --film ID")
    link = graph[saver]["inputs"][socket]
    if not savers["VIDEO"]:
        return Ends(clip, link, graph)
    maker = graph[link[0]]
    if maker["class_type"] == "CreateVideo":
        return Ends(clip, maker["inputs"]["images"], graph)
    return Ends(clip, ["vcd film: frames", 0], {**graph, "vcd film: frames": _node("GetVideoComponents", video=link)})


def _only(found: list[tuple[str, str]], does: str, names: list[str], advice: str = "") -> tuple[str, str]:
    if len(found) != 1:
        shown = f"{len(found)} ({', '.join(names)})" if found else "none"
        raise ValueError(f"The graph needs one node that {does}; it has {shown}. Keep one{advice}.")
    return found[0]


def _saves(node: dict[str, Any], object_info: dict[str, Any]) -> bool:
    return bool(object_info[node["class_type"]].get("output_node")) and "filename_prefix" in node["inputs"]


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def leading_to(graph: Prompt, *keys: str) -> Prompt:
    """The part of a graph that some nodes need.

    Example:
        >>> graph = {"1": {"inputs": {}}, "2": {"inputs": {"a": ["1", 0]}}, "3": {"inputs": {"a": ["1", 0]}}}
        >>> sorted(leading_to(graph, "2"))
        ['1', '2']
    """
    wanted, waiting = dict[str, None](), list(keys)
    while waiting:
        if (key := waiting.pop()) not in wanted:
            wanted[key] = None
            links = (value for value in graph[key]["inputs"].values() if isinstance(value, list))
            waiting += [link[0] for link in links if len(link) == 2 and link[0] in graph]
    return {key: node for key, node in graph.items() if key in wanted}


@dataclass
class Film:
    """A clip and the graph that refines it.

    Attributes:
        reel: the clip.
        ends: of the graph.
        folder: where its jobs' results go, and the film.
    """

    reel: Reel
    ends: Ends
    folder: Path

    def run(self, pool: farm.Pool, tell: Callable[[str], object] = print) -> list[str]:
        """Refine the film's scenes and write ``film.mp4``; what failed, one line each, in which case there is none."""
        jobs = self._looks() if self.ends.refiner else self._wholes(self.reel.scenes)
        failed = farm.run(jobs, self.folder, pool, tell)
        parts = {scene: [job] for scene, job in zip(self.reel.scenes, jobs, strict=True)}
        if self.ends.refiner and not failed:
            parts |= self._faces({scene: job for scene, (job,) in parts.items()})
            failed = farm.run(_numbered(parts), self.folder, pool, tell)
        if not failed:
            write(self.reel, self.folder / "film.mp4", (self._frames(parts[scene]) for scene in self.reel.scenes))
        return failed

    def _faces(self, looks: dict[Scene, Job]) -> dict[Scene, list[Job]]:
        """Each scene's jobs: the look at it, where it has no face; one for all where it has one; else also one for
        each of its faces, behind the look, which has the frames that they change."""
        found = {}
        for scene, look in looks.items():
            count = int(farm.result_of(self.folder, look)["figures"][COUNT][0])
            whole = self._wholes([scene])[0]
            faces = [self._face(whole, index) for index in range(count)]
            found[scene] = [look, *faces] if count > 1 else [whole] if count else [look]
        return found

    def _looks(self) -> list[Job]:
        """Jobs that track the faces of each scene, and save what they are in."""
        graph = self._tracked()
        given = graph[self.ends.refiner or ""]["inputs"]
        graph[COUNT] = _node("PreviewAny", source=[given["faces"][0], COUNT_SLOT])
        graph[LOOK] = _node("SaveImage", images=given["images"], filename_prefix="film/frame")
        return [self._job(scene, graph, LOOK, COUNT) for scene in self.reel.scenes]

    def _wholes(self, scenes: list[Scene]) -> list[Job]:
        """Jobs that refine scenes."""
        graph = self._tracked() if self.ends.refiner else dict(self.ends.graph)
        graph[FILM] = _node("SaveImage", images=self.ends.film, filename_prefix="film/frame")
        return [self._job(scene, graph, FILM) for scene in scenes]

    def _face(self, whole: Job, index: int) -> Job:
        """The part of a scene's job that refines one of its faces."""
        refiner = self.ends.refiner or ""
        return replace(
            whole,
            values={**whole.values, "face": index},
            settings={(refiner, "which"): "by index", (refiner, "index"): index},
        )

    def _tracked(self) -> Prompt:
        """The graph with the refiner's faces tracked by a node of their own, as it tracks them by itself."""
        graph, refiner = dict(self.ends.graph), self.ends.refiner or ""
        given = graph[refiner]["inputs"]
        if "faces" not in given:
            graph["vcd film: faces"] = _node("VCD_FaceTrack", images=given["images"], **TRACKED)
            graph[refiner] = {**graph[refiner], "inputs": {**given, "faces": ["vcd film: faces", 0]}}
        return graph

    def _job(self, scene: Scene, graph: Prompt, *keys: str) -> Job:
        """What leads to some nodes, over one scene of the clip."""
        loader, widget = self.ends.clip
        made = {key: {**node, "inputs": _moved(node["inputs"], loader)} for key, node in graph.items()}
        given = {**graph[loader]["inputs"], widget: f"{GIVEN}/{self.reel.name} [output]"}
        made[loader] = {**graph[loader], "inputs": given}
        made[TRIM] = _node(
            "Video Slice", video=[loader, 0], start_time=scene.start, duration=scene.duration, strict_duration=False
        )
        values = {"scene": scene.number, "from": f"{scene.start:.2f} s", "frames": len(scene.frames)}
        return Job(scene.number, values, leading_to(made, *keys), files={self.reel.name: self.reel.path})

    def _frames(self, jobs: list[Job]) -> Iterator[np.ndarray]:
        """A scene's frames [H, W, 3], 0..255: of one job, or of the first with what the others changed in it."""
        found = [sorted((self.folder / "jobs" / job.key / "film").glob("*.png")) for job in jobs]
        for first, *others in zip(*found, strict=True):
            base = picture(first)
            changed = base.astype(np.int16)
            for other in others:
                changed += picture(other).astype(np.int16) - base
            yield changed.clip(0, 255).astype(np.uint8)


def _moved(inputs: dict[str, Any], loader: str) -> dict[str, Any]:
    """Inputs with what came from the loader coming from the scene."""
    return {name: [TRIM, 0] if value == [loader, 0] else value for name, value in inputs.items()}


def _numbered(parts: dict[Scene, list[Job]]) -> list[Job]:
    """All jobs of a film, counted through."""
    return [replace(job, number=i) for i, job in enumerate(job for jobs in parts.values() for job in jobs)]


def picture(path: Path) -> np.ndarray:
    """The picture of a file, [H, W, 3] in 0..255."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def open_film(clip: Path, ends: Ends, folder: Path, on_frame: Callable[[], object] = lambda: None) -> Film:
    """Look for the scenes of a clip and get ready to refine it into a folder.

    Raises:
        ValueError: it is no video.
    """
    with clip.open("rb") as file:
        name = hashlib.file_digest(file, "sha256").hexdigest()[:16] + clip.suffix.lower()
    return Film(Reel(clip, name, *cut(clip, on_frame)), ends, folder)
