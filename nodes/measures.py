"""What of a clip can be measured with what is connected: the paper's figures and those that others report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch

from ..vcd_core import evaluate as core
from ..vcd_core import musiq, parts, recognise
from ..vcd_core.evaluate import Figure
from ..vcd_core.face.people import people as persons
from ..vcd_core.face.track import Faces, masks_of
from .host.files import add_model_folder, model_file
from .host.memory import raise_unless_memory, torch_device
from .host.ui import stop_if_asked
from .host.vision import embed_images, embed_text, frames_between, vision_kind

FACE_MODELS = "face_embedding"
NO_MODEL = "none"

AESTHETIC_MODELS = "aesthetic"
QUALITY_MODELS = "musiq"

add_model_folder(QUALITY_MODELS, "musiq", {".pth", ".pt", ".safetensors"})
add_model_folder(AESTHETIC_MODELS, "aesthetic", {".pth", ".pt", ".safetensors"})
add_model_folder(FACE_MODELS, "face_embedding", {".onnx", ".pth", ".pt", ".safetensors"})


@dataclass(frozen=True)
class Given:
    """A clip and what there is to measure it with: None, or no references, for what is not connected."""

    images: torch.Tensor  # IMAGE [F, H, W, 3], on the CPU
    references: list[torch.Tensor]
    clip_vision: Any = None
    dino: Any = None
    clip: Any = None
    prompt: str = ""
    face_model: str = NO_MODEL
    faces: Faces | None = None
    aesthetic_model: str = NO_MODEL
    interpolation: Any = None
    quality_model: str = NO_MODEL

    @cached_property
    def seen(self) -> torch.Tensor:
        """The frames' embeddings by CLIP's vision half."""
        return embed_images(self.clip_vision, self.images)

    @cached_property
    def seen_by_dino(self) -> torch.Tensor:
        """The frames' embeddings by DINOv2."""
        return embed_images(self.dino, self.images)

    @cached_property
    def text(self) -> torch.Tensor:
        """The prompt's embedding by CLIP's text half."""
        return embed_text(self.clip, self.prompt)

    def likeness(self, model: Any, frames: torch.Tensor) -> torch.Tensor:
        """For each frame, how like the references it is; ``frames`` are its embeddings by ``model``."""
        return core.to_references(frames, torch.cat([embed_images(model, batch) for batch in self.references]))

    @cached_property
    def recogniser(self) -> recognise.Recogniser:
        """The network of the file in ``face_model``."""
        return recognise.load(model_file(FACE_MODELS, self.face_model))

    @cached_property
    def found(self) -> tuple[torch.Tensor, list[int]]:
        """The embedding of the largest face of each frame, and which frames have one."""
        return self.recogniser.largest(self.images, on_frame=stop_if_asked)

    def embedded(self, batches: list[torch.Tensor]) -> torch.Tensor:
        """The embeddings [n, d] of the largest face of each of some pictures that has one."""
        of_each = [self.recogniser.largest(batch.cpu(), on_frame=stop_if_asked)[0] for batch in batches]
        return torch.cat([found for found in of_each if len(found)] or of_each[:1])

    @cached_property
    def face_likeness(self) -> tuple[torch.Tensor, str]:
        """The likeness of each frame's face, NaN where none was found, and what to say where faces are missing."""
        wanted = self.embedded(self.references)
        for who, embeddings in (("reference pictures", wanted), ("clip", self.found[0])):
            if not len(embeddings):
                return torch.empty(0), f"no face was found in the {who}"
        return self.in_their_frames(core.to_references(self.found[0], wanted)), self.without_face

    @property
    def without_face(self) -> str:
        """What to say where some frames have no face."""
        count, frames = len(self.found[1]), len(self.images)
        return f"of the {count} of {frames} frames with a face" if count < frames else ""

    @cached_property
    def faces_within(self) -> torch.Tensor:
        """How alike each frame's face is to those of the other frames, NaN where none was found."""
        values = recognise.within(self.found[0])
        return self.in_their_frames(values) if len(values) else values

    @property
    def aesthetic_file(self) -> str:
        """The path of the file in ``aesthetic_model``."""
        return model_file(AESTHETIC_MODELS, self.aesthetic_model)

    @cached_property
    def quality_network(self) -> musiq.Network:
        """The network of the file in ``quality_model``."""
        return musiq.load(model_file(QUALITY_MODELS, self.quality_model), torch_device())

    def in_their_frames(self, values: torch.Tensor) -> torch.Tensor:
        """A value for each frame, of those for the frames with a face."""
        out = torch.full((len(self.images),), float("nan"))
        out[self.found[1]] = values
        return out

    @property
    def coverage(self) -> torch.Tensor:
        """1 for each frame with a face, tracked or found, 0 for the others."""
        out = torch.zeros(len(self.images))
        out[self.found[1] if self.faces is None else self.with_face] = 1
        return out

    @cached_property
    def region(self) -> torch.Tensor:
        """MASK [F, H, W] of the tracked faces."""
        assert self.faces is not None
        return masks_of(self.faces, factor=1.0)

    @cached_property
    def with_face(self) -> list[int]:
        """The frames that have a tracked face."""
        return [i for i in range(len(self.images)) if self.region[i].any()]

    @cached_property
    def between_faces(self) -> list[int]:
        """The entries of the clip's flicker whose frame and both neighbours have a tracked face."""
        return [i - 1 for i in self.with_face if {i - 1, i + 1} <= set(self.with_face)]


NEEDS: dict[str, Callable[[Given], bool]] = {
    "references": lambda given: bool(given.references),
    "a DINOv2 in dino": lambda given: given.dino is not None,
    "clip vision": lambda given: given.clip_vision is not None,
    "clip": lambda given: given.clip is not None,
    "a prompt": lambda given: bool(given.prompt),
    "more than one frame": lambda given: len(given.images) > 1,
    "more than two frames": lambda given: len(given.images) > 2,
    "a face model": lambda given: given.face_model != NO_MODEL,
    "tracked faces or a face model": lambda given: given.faces is not None or given.face_model != NO_MODEL,
    "references and a face model": lambda given: bool(given.references) and given.face_model != NO_MODEL,
    "an aesthetic model": lambda given: given.aesthetic_model != NO_MODEL,
    "a MUSIQ model": lambda given: given.quality_model != NO_MODEL,
    "the package pyiqa (pip install pyiqa)": lambda given: musiq.installed(),
    "OpenCV (pip install opencv-python-headless)": lambda given: parts.imports("cv2"),
    "an interpolation model": lambda given: given.interpolation is not None,
    "a frame with a tracked face": lambda given: bool(given.with_face),
    "three frames in a row with a tracked face": lambda given: bool(given.between_faces),
}


class Measure(NamedTuple):
    """A figure: its name and unit, what it needs (keys of ``NEEDS``), and its values along a clip that has that."""

    name: str
    unit: str
    needs: tuple[str, ...]
    values: Callable[[Given], torch.Tensor]
    better: str = "high"  # what one wishes for: "high", "low", or "" where it depends
    note: Callable[[Given], str] = lambda given: ""  # why some of the values are missing, which are NaN then


EDGES = "variance of the Laplacian"
MEASURES = (
    Measure(
        "DINO",
        "cosine",
        ("references", "a DINOv2 in dino"),
        lambda given: given.likeness(given.dino, given.seen_by_dino),
    ),
    Measure(
        "CLIP-I",
        "cosine",
        ("references", "clip vision"),
        lambda given: given.likeness(given.clip_vision, given.seen),
    ),
    Measure(
        "CLIP-T",
        "cosine",
        ("clip vision", "clip", "a prompt"),
        lambda given: core.to_text(given.seen, given.text),
    ),
    Measure(
        "temporal consistency",
        "cosine",
        ("clip vision", "more than one frame"),
        lambda given: core.temporal_consistency(given.seen),
    ),
    Measure(
        "dynamics",
        "% of the diagonal a frame",
        ("more than one frame", "OpenCV (pip install opencv-python-headless)"),
        lambda given: core.dynamics(given.images, on_frame=stop_if_asked),
        better="",
    ),
    Measure(
        "flicker",
        "255ths",
        ("more than two frames",),
        lambda given: core.flicker(given.images, on_frame=stop_if_asked),
        better="low",
    ),
    Measure(
        "sharpness",
        EDGES,
        (),
        lambda given: core.sharpness(given.images, on_frame=stop_if_asked),
    ),
    Measure(
        "face likeness",
        "cosine",
        ("references and a face model",),
        lambda given: given.face_likeness[0],
        note=lambda given: given.face_likeness[1],
    ),
    Measure(
        "subject consistency",
        "cosine",
        ("a DINOv2 in dino", "more than one frame"),
        lambda given: core.subject_consistency(given.seen_by_dino),
    ),
    Measure(
        "motion smoothness",
        "1 - difference",
        ("an interpolation model", "more than two frames"),
        lambda given: core.motion_smoothness(given.images, frames_between(given.interpolation, given.images)),
    ),
    Measure(
        "aesthetic quality",
        "tenths",
        ("an aesthetic model", "clip vision"),
        lambda given: core.aesthetic_score(given.seen, given.aesthetic_file),
    ),
    Measure(
        "imaging quality",
        "hundredths",
        ("a MUSIQ model", "the package pyiqa (pip install pyiqa)"),
        lambda given: musiq.imaging_quality(given.images, given.quality_network, torch_device(), stop_if_asked),
    ),
    Measure(
        "face likeness within the clip",
        "cosine",
        ("a face model", "more than one frame"),
        lambda given: given.faces_within,
        note=lambda given: given.without_face,
    ),
    Measure(
        "face coverage",
        "part of the frames",
        ("tracked faces or a face model",),
        lambda given: given.coverage,
    ),
)
FACE_MEASURES = (
    Measure(
        "face sharpness",
        EDGES,
        ("a frame with a tracked face",),
        lambda given: core.sharpness(given.images[given.with_face], given.region[given.with_face], stop_if_asked),
    ),
    Measure(
        "face flicker",
        "255ths",
        ("three frames in a row with a tracked face",),
        lambda given: core.flicker(given.images, given.region, stop_if_asked)[given.between_faces],
        better="low",
    ),
)


def measure(given: Given) -> tuple[list[Figure], list[str]]:
    """The figures of a clip whose inputs are there, and what is missing for the others."""
    check(given)
    found: list[Figure] = []
    missing: list[str] = []
    for kind in MEASURES if given.faces is None else MEASURES + FACE_MEASURES:
        stop_if_asked()
        absent = [need for need in kind.needs if not NEEDS[need](given)]
        values, note = (
            (torch.empty(0), f"needs {' and '.join(absent)}") if absent else _unless_memory_lacks(kind, given)
        )
        if len(values):
            found.append(Figure(kind.name, values, kind.unit, kind.better, gaps=bool(note)))
        if note:
            missing.append(f"{kind.name}: {note}")
    return found, missing


def _unless_memory_lacks(kind: Measure, given: Given) -> tuple[torch.Tensor, str]:
    """A figure's values along a clip and why some are missing; none where memory ran out, which costs no other
    figure."""
    try:
        return kind.values(given), kind.note(given)
    except Exception as error:
        raise_unless_memory(error)
    return torch.empty(0), "memory ran out"


def check(given: Given) -> None:
    """Raise for what can be wrong with the inputs, before anything that takes long."""
    for name, pictures in (("images", given.images), *(("references", batch) for batch in given.references)):
        if not torch.isfinite(pictures).all():
            raise ValueError(f"{name} hold NaN or infinite values, as a VAE in half precision may give them.")
    if given.clip_vision is not None and vision_kind(given.clip_vision).startswith("dino"):
        raise ValueError("The model in clip_vision is a DINO; connect it to dino.")
    if given.dino is not None and vision_kind(given.dino) != "dinov2":
        raise ValueError(f"The model in dino is {vision_kind(given.dino)}; expected a DINOv2 (large or giant).")
    if given.clip is not None and given.clip_vision is not None and given.prompt:
        core.to_text(embed_images(given.clip_vision, given.images[:1]), given.text)
    if given.faces is not None:
        given.faces.check(given.images)
    if NEEDS["a face model"](given):
        _ = given.recogniser  # reads the file
    if NEEDS["a MUSIQ model"](given) and musiq.installed():
        _ = given.quality_network
    if NEEDS["an aesthetic model"](given) and given.clip_vision is not None:
        core.aesthetic_score(embed_images(given.clip_vision, given.images[:1]), given.aesthetic_file)


def compared_by(given: Given) -> str:
    """Which network compared the faces; empty where none did."""
    return "" if given.face_model == NO_MODEL else f"Faces are compared by {given.recogniser.name}."


def likeness_of_people(given: Given, people: list[list[torch.Tensor]]) -> list[str]:
    """Lines in Markdown: how like each tracked person, from left to right, is to each of ``people``, pictures in that
    order, each a list of batches of any sizes, and whose faces were swapped.

    Raises:
        ValueError: no tracked faces or no face model.
    """
    if given.faces is None or given.face_model == NO_MODEL:
        raise ValueError("To tell who is who of people, connect faces (Face VCD Track) and choose a face_model.")
    wanted = [given.embedded(batches) for batches in people]
    if without := [str(i) for i, found in enumerate(wanted, 1) if not len(found)]:
        raise ValueError(f"No face was found in the pictures of person {', '.join(without)}.")
    tracks = given.faces.tracks
    who = persons(tracks)
    seen = [
        [given.recogniser.of_track(given.images, track, on_frame=stop_if_asked)
         for track, person in zip(tracks, who, strict=True) if person == i]
        for i in range(max(who, default=-1) + 1)
    ]  # fmt: skip
    found = [torch.cat([one for one in parts if len(one)] or parts[:1]) for parts in seen]
    matrix = recognise.matrix(found, wanted)
    lines = ["", f"| face likeness | {' | '.join(f'to person {i + 1}' for i in range(len(wanted)))} |"]
    lines.append("|" + "---|" * (len(wanted) + 1))
    for i, row in enumerate(matrix.tolist()):
        lines.append(f"| {i + 1} from the left | {' | '.join(core.as_number(value, '.3f') for value in row)} |")
    swapped = [f"{i + 1} from the left looks more like person {j + 1}." for i, j in recognise.swaps(matrix)]
    return [*lines, "", " ".join(swapped) or "Nobody looks more like another's pictures than like their own."]
