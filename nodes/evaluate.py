"""The paper's figures for a clip, or for several side by side (vcd_core.evaluate)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io, ui

from ..vcd_core import evaluate as core
from ..vcd_core import fonts, plots
from ..vcd_core.evaluate import Figure
from ..vcd_core.face.track import Faces, masks_of
from .host.files import add_model_folder, model_file, model_files, refusal
from .host.memory import handed_on
from .host.ui import Progress, stop_if_asked, ui_text
from .host.vision import embed_images, embed_text, vision_kind
from .inputs import CATEGORY, FacesType

EVALUATE_CATEGORY = f"{CATEGORY}/evaluate"
ALIASES = [
    "metrics",
    "evaluate",
    "dino",
    "clip score",
    "temporal consistency",
    "benchmark",
    "compare",
    "magic me",
    "vcd",
]
FACE_MODELS = "face_embedding"
NO_MODEL = "none"

add_model_folder(FACE_MODELS, "face_embedding", {".onnx"})


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

    @cached_property
    def seen(self) -> torch.Tensor:
        """The frames' embeddings by CLIP's vision half."""
        return embed_images(self.clip_vision, self.images)

    @cached_property
    def text(self) -> torch.Tensor:
        """The prompt's embedding by CLIP's text half."""
        return embed_text(self.clip, self.prompt)

    def likeness(self, model: Any, frames: torch.Tensor) -> torch.Tensor:
        """For each frame, how like the references it is; ``frames`` are its embeddings by ``model``."""
        return core.to_references(frames, torch.cat([embed_images(model, batch) for batch in self.references]))

    @cached_property
    def face_likeness(self) -> tuple[torch.Tensor, str]:
        """The likeness of each face that was found, and what to say where faces are missing."""
        path = model_file(FACE_MODELS, self.face_model)
        of_each = [core.face_embeddings(batch.cpu(), path, on_frame=stop_if_asked)[0] for batch in self.references]
        wanted = torch.cat([found for found in of_each if len(found)] or of_each[:1])
        found, _ = core.face_embeddings(self.images, path, on_frame=stop_if_asked)
        for who, embeddings in (("reference pictures", wanted), ("clip", found)):
            if not len(embeddings):
                return torch.empty(0), f"no face was found in the {who}"
        whole, count = len(found) == len(self.images), f"{len(found)} of {len(self.images)}"
        return core.to_references(found, wanted), "" if whole else f"of the {count} frames with a face"

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
    "references and a face model": lambda given: bool(given.references) and given.face_model != NO_MODEL,
    "a frame with a tracked face": lambda given: bool(given.with_face),
    "three frames in a row with a tracked face": lambda given: bool(given.between_faces),
}


class Measure(NamedTuple):
    """A figure: its name and unit, what it needs (keys of ``NEEDS``), and its values along a clip that has that."""

    name: str
    unit: str
    needs: tuple[str, ...]
    values: Callable[[Given], torch.Tensor]
    note: Callable[[Given], str] = lambda given: ""  # why some of the values are missing


EDGES = "variance of the Laplacian"
MEASURES = (
    Measure(
        "DINO",
        "cosine",
        ("references", "a DINOv2 in dino"),
        lambda given: given.likeness(given.dino, embed_images(given.dino, given.images)),
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
        ("more than one frame",),
        lambda given: core.dynamics(given.images, on_frame=stop_if_asked),
    ),
    Measure(
        "flicker",
        "255ths",
        ("more than two frames",),
        lambda given: core.flicker(given.images, on_frame=stop_if_asked),
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
        lambda given: given.face_likeness[1],
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
        note = f"needs {' and '.join(absent)}" if absent else kind.note(given)
        values = torch.empty(0) if absent else kind.values(given)
        if len(values):
            found.append(Figure(kind.name, values, kind.unit))
        if note:
            missing.append(f"{kind.name}: {note}")
    return found, missing


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
    if NEEDS["references and a face model"](given):
        _ = given.face_likeness  # reads the file


def as_text(videos: dict[str, list[Figure]], missing: list[str]) -> str:
    """A table in Markdown, figures down, clips across; below it what the chart's numbers mean, and what is missing."""
    names = list(dict.fromkeys(figure.name for figures in videos.values() for figure in figures))
    lines = [f"| | {' | '.join(videos)} | paper: SD, VCD |", "|" + "---|" * (len(videos) + 2)]
    for name in names:
        values = [
            next((core.as_number(f.mean, ".3f") for f in figures if f.name == name), "") for figures in videos.values()
        ]
        paper = ", ".join(f"{value:.3f}" for value in core.PAPER.get(name, ()))
        lines.append(f"| {name} | {' | '.join(values)} | {paper} |")
    if short := plots.chart_stand_ins(videos):
        lines += ["", fonts.said(short)]
    if missing:
        lines += ["", "Not computed, or in part:", *(f"- {line}" for line in missing)]
    return "\n".join(lines)


def one_video(batches: list[torch.Tensor], name: str) -> torch.Tensor:
    """The clip that a list input holds: one batch of frames, or a list of single frames of one size."""
    if len({batch.shape[1:3] for batch in batches}) == 1 and (len(batches) == 1 or all(len(b) == 1 for b in batches)):
        return torch.cat(batches)
    raise ValueError(
        f"{name} is a list of {len(batches)} batches or sizes; expected one clip. VCD Compare sets several "
        "clips side by side."
    )


def first(values: list[Any] | None) -> Any:
    """The first value of a list input; None where it is not connected."""
    return values[0] if values else None


def shared_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "references", optional=True, tooltip="Pictures of the subject, for DINO, CLIP-I and face likeness."
        ),
        io.ClipVision.Input(
            "clip_vision", optional=True, tooltip="CLIP's vision half, for CLIP-I, CLIP-T and temporal consistency."
        ),
        io.ClipVision.Input("dino", optional=True, tooltip="A DINOv2, loaded with 'Load CLIP Vision', for DINO."),
        io.Clip.Input(
            "clip", optional=True, tooltip="The text half of the same CLIP, with its text projection, for CLIP-T."
        ),
        io.String.Input(
            "prompt", default="", multiline=True, optional=True, tooltip="What the clip should show, for CLIP-T."
        ),
        io.Combo.Input(
            "face_model",
            options=[NO_MODEL, *model_files(FACE_MODELS)],
            default=NO_MODEL,
            optional=True,
            tooltip="A face embedding model (SFace, .onnx) in models/face_embedding, for face likeness.",
        ),
    ]


def shared_values(
    references: list[torch.Tensor | None] | None,
    clip_vision: list[Any] | None,
    dino: list[Any] | None,
    clip: list[Any] | None,
    prompt: list[str] | None,
    face_model: list[str] | None,
) -> tuple[list[torch.Tensor], Any, Any, Any, str, str]:
    """The shared inputs as ``Given`` takes them: all references, of any sizes, and of the others the first value."""
    pictures = [batch for batch in references or [] if batch is not None]
    return (
        pictures,
        first(clip_vision),
        first(dino),
        first(clip),
        (first(prompt) or "").strip(),
        first(face_model) or NO_MODEL,
    )


def in_colour(images: torch.Tensor) -> torch.Tensor:
    """The frames without transparency, on the CPU."""
    return images[..., :3].cpu()


class Evaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_Evaluate",
            display_name="VCD Evaluate",
            category=EVALUATE_CATEGORY,
            description="The paper's figures for your clip: likeness to reference pictures (DINO, CLIP-I, face), fit "
            "to the prompt (CLIP-T), temporal consistency, and its motion, flicker and sharpness.",
            search_aliases=ALIASES,
            is_output_node=True,
            is_input_list=True,  # references of any sizes, as VCD Pictures gives them
            inputs=[
                io.Image.Input("images", tooltip="The frames of the clip."),
                *shared_inputs(),
                FacesType.Input(
                    "faces", optional=True, tooltip="From Face VCD Track: sharpness and flicker of the face region too."
                ),
            ],
            outputs=[
                io.String.Output(display_name="figures", tooltip="The table in Markdown."),
                io.Image.Output(display_name="chart"),
                *(
                    io.Float.Output(display_name=name.lower(), tooltip="The mean; -1 where it was not computed.")
                    for name in FLOATS
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, face_model: Sequence[str | None] = (None,)) -> bool | str:
        return refusal({FACE_MODELS: face_model[0]}, (NO_MODEL,))

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        references: list[torch.Tensor | None] | None = None,
        clip_vision: list[Any] | None = None,
        dino: list[Any] | None = None,
        clip: list[Any] | None = None,
        prompt: list[str] | None = None,
        face_model: list[str] | None = None,
        faces: list[Faces | None] | None = None,
    ) -> io.NodeOutput:
        shared = shared_values(references, clip_vision, dino, clip, prompt, face_model)
        figures, missing = measure(Given(in_colour(one_video(images, "images")), *shared, first(faces)))
        text, chart = as_text({"this clip": figures}, missing), plots.figures_chart({"this clip": figures}, core.PAPER)
        means = {figure.name: figure.mean for figure in figures if math.isfinite(figure.mean)}
        shown = {**ui.PreviewImage(chart, cls=cls).as_dict(), **ui_text(text)}
        return io.NodeOutput(text, handed_on(chart), *(means.get(name, -1.0) for name in FLOATS), ui=shown)


FLOATS = ("DINO", "CLIP-I", "CLIP-T", "temporal consistency", "dynamics", "face likeness")


class Compare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        clips = io.Autogrow.TemplatePrefix(
            io.Image.Input("clip", tooltip="The frames of a clip; all of the same size."), prefix="clip", min=2, max=12
        )
        return io.Schema(
            node_id="VCD_Compare",
            display_name="VCD Compare",
            category=EVALUATE_CATEGORY,
            description="The paper's figures for several clips in one table and one chart: which gamma, how many "
            "tokens, which stage helped.",
            search_aliases=ALIASES,
            is_output_node=True,
            is_input_list=True,  # references of any sizes, as VCD Pictures gives them
            inputs=[
                io.String.Input(
                    "names",
                    default="first, second",
                    tooltip="What the clips are called, with commas, in the order of the sockets.",
                ),
                *shared_inputs(),
                io.Autogrow.Input("clips", template=clips, tooltip="The clips, as many as you connect."),
            ],
            outputs=[
                io.String.Output(display_name="figures", tooltip="The table in Markdown."),
                io.Image.Output(display_name="chart"),
            ],
        )

    @classmethod
    def validate_inputs(cls, face_model: Sequence[str | None] = (None,), clips: Any = None) -> bool | str:
        """``clips`` is not looked at; the host hands it on because it is made of several sockets."""
        return refusal({FACE_MODELS: face_model[0]}, (NO_MODEL,))

    @classmethod
    def execute(
        cls,
        names: list[str],
        clips: dict[str, list[torch.Tensor]],
        references: list[torch.Tensor | None] | None = None,
        clip_vision: list[Any] | None = None,
        dino: list[Any] | None = None,
        clip: list[Any] | None = None,
        prompt: list[str] | None = None,
        face_model: list[str] | None = None,
    ) -> io.NodeOutput:
        given = [one_video(batches, name) for name, batches in clips.items() if batches]
        named = named_videos(names[0], given)
        check_sizes(named)
        shared = shared_values(references, clip_vision, dino, clip, prompt, face_model)
        progress = Progress(len(named))
        figures: dict[str, list[Figure]] = {}
        missing: dict[str, None] = {}
        for name, images in named.items():
            figures[name], lacking = measure(Given(in_colour(images), *shared))
            missing |= dict.fromkeys(lacking)
            progress.advance()
        text, chart = as_text(figures, list(missing)), plots.figures_chart(figures, core.PAPER)
        return io.NodeOutput(text, handed_on(chart), ui={**ui.PreviewImage(chart, cls=cls).as_dict(), **ui_text(text)})


def named_videos(names: str, videos: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The clips under the names that were written, numbered where there are none or one is written twice."""
    written = [name.strip() for name in names.split(",")]
    named: dict[str, torch.Tensor] = {}
    for i, images in enumerate(videos):
        name = written[i] if i < len(written) and written[i] else f"clip {i + 1}"
        while name in named:
            name += f" {i + 1}"
        named[name] = images
    return named


def check_sizes(videos: dict[str, torch.Tensor]) -> None:
    """Raise where clips that are compared differ in size."""
    sizes = {name: (images.shape[2], images.shape[1]) for name, images in videos.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {w}x{h}" for name, (w, h) in sizes.items())
        raise ValueError(
            f"The clips differ in size ({shown}); scale them to one size, or sharpness would compare sizes."
        )


NODES: list[type[io.ComfyNode]] = [Evaluate, Compare]
