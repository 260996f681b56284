"""The paper's figures for a clip, or for several side by side (vcd_core.evaluate)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..vcd_core import evaluate as core
from ..vcd_core import fonts, plots
from ..vcd_core.evaluate import Figure
from ..vcd_core.face.track import Faces, masks_of
from .host.files import add_model_folder, model_file, model_files, refusal
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


def measure(
    images: torch.Tensor,
    references: list[torch.Tensor],
    prompt: str,
    clip_vision: Any,
    dino: Any,
    clip: Any,
    face_model: str,
    faces: Faces | None = None,
) -> tuple[list[Figure], list[str]]:
    """The figures of a clip whose inputs are there, and what is missing for the others."""
    images = images[..., :3].cpu()
    found: list[Figure] = []
    missing: list[str] = []

    def add(name: str, unit: str, values: Callable[[], torch.Tensor], **needs: Any) -> None:
        absent = [what.replace("_", " ") for what, there in needs.items() if there is None or there is False]
        if absent:
            missing.append(f"{name}: needs {' and '.join(absent)}")
        else:
            stop_if_asked()
            found.append(Figure(name, values(), unit))

    for name, pictures in (("images", images), *(("references", batch) for batch in references)):
        if not torch.isfinite(pictures).all():
            raise ValueError(f"{name} hold NaN or infinite values, as a VAE in half precision may give them.")
    if clip_vision is not None and vision_kind(clip_vision).startswith("dino"):
        raise ValueError("The model in clip_vision is a DINO; connect it to dino.")
    if dino is not None and vision_kind(dino) != "dinov2":
        raise ValueError(f"The model in dino is {vision_kind(dino)}; expected a DINOv2 (large or giant).")
    text = prompt.strip() or None
    wanted = embed_text(clip, text) if clip is not None and clip_vision is not None and text else None
    if wanted is not None:
        core.to_text(embed_images(clip_vision, images[:1]), wanted)
    if faces is not None:
        faces.check(images)
    likeness = None if face_model == NO_MODEL or not references else _face_likeness(images, references, face_model)
    # so far what can be wrong with the inputs was found out; what takes long follows
    seen = None if clip_vision is None else embed_images(clip_vision, images)

    def against(model: Any, frames: torch.Tensor) -> torch.Tensor:
        return core.to_references(frames, torch.cat([embed_images(model, batch) for batch in references]))

    add(
        "DINO",
        "cosine",
        lambda: against(dino, embed_images(dino, images)),
        references=references or None,
        a_DINOv2_in_dino=dino,
    )
    add("CLIP-I", "cosine", lambda: against(clip_vision, seen), references=references or None, clip_vision=clip_vision)  # type: ignore[arg-type]
    add(
        "CLIP-T", "cosine", lambda: core.to_text(seen, wanted), clip_vision=clip_vision, clip=clip,  # type: ignore[arg-type]
        a_prompt=text,
    )  # fmt: skip
    several = len(images) > 1 or None
    add(
        "temporal consistency", "cosine", lambda: core.temporal_consistency(seen), clip_vision=clip_vision,  # type: ignore[arg-type]
        more_than_one_frame=several,
    )  # fmt: skip
    add(
        "dynamics",
        "% of the diagonal a frame",
        lambda: core.dynamics(images, on_frame=stop_if_asked),
        more_than_one_frame=several,
    )
    add("flicker", "255ths", lambda: core.flicker(images, on_frame=stop_if_asked), more_than_two_frames=len(images) > 2)
    add("sharpness", "variance of the Laplacian", lambda: core.sharpness(images, on_frame=stop_if_asked))
    if likeness is None:
        missing.append("face likeness: needs references and a face model")
    else:
        values, note = likeness
        if values is not None:
            found.append(Figure("face likeness", values))
        if note:
            missing.append(note)
    if faces is not None:
        region = masks_of(faces, factor=1.0)
        seen_in = [i for i in range(len(images)) if region[i].any()]
        between = [i - 1 for i in seen_in if {i - 1, i + 1} <= set(seen_in)]
        if seen_in:
            values = core.sharpness(images[seen_in], region[seen_in], stop_if_asked)
            found.append(Figure("face sharpness", values, "variance of the Laplacian"))
        if between:
            found.append(Figure("face flicker", core.flicker(images, region, stop_if_asked)[between], "255ths"))
        else:
            missing.append("face flicker: needs three frames in a row with a tracked face")
    return found, missing


def _face_likeness(images: torch.Tensor, references: list[torch.Tensor], model: str) -> tuple[torch.Tensor | None, str]:
    """The likeness of each face that is found, and what to say where some or all are not."""
    path = model_file(FACE_MODELS, model)
    of_each = [core.face_embeddings(batch.cpu(), path, on_frame=stop_if_asked)[0] for batch in references]
    wanted = torch.cat([found for found in of_each if len(found)] or of_each[:1])
    found, _ = core.face_embeddings(images, path, on_frame=stop_if_asked)
    for who, embeddings in (("reference pictures", wanted), ("clip", found)):
        if not len(embeddings):
            return None, f"face likeness: no face was found in the {who}"
    partly = (
        "" if len(found) == len(images) else f"face likeness: of the {len(found)} of {len(images)} frames with a face"
    )
    return core.to_references(found, wanted), partly


def as_text(clips: dict[str, list[Figure]], missing: list[str]) -> str:
    """A table in Markdown, figures down, clips across, with what is missing below and what the chart's numbers mean."""
    names = list(dict.fromkeys(figure.name for figures in clips.values() for figure in figures))
    lines = [f"| | {' | '.join(clips)} | paper: SD, VCD |", "|" + "---|" * (len(clips) + 2)]
    for name in names:
        values = [
            next((core.as_number(f.mean, ".3f") for f in figures if f.name == name), "") for figures in clips.values()
        ]
        paper = ", ".join(f"{value:.3f}" for value in core.PAPER.get(name, ()))
        lines.append(f"| {name} | {' | '.join(values)} | {paper} |")
    if short := plots.chart_stand_ins(clips):
        lines += ["", fonts.said(short)]
    if missing:
        lines += ["", "Not computed, or in part:", *(f"- {line}" for line in missing)]
    return "\n".join(lines)


def one_clip(batches: list[torch.Tensor], name: str) -> torch.Tensor:
    """The clip that a list input holds: one batch of frames, or a list of single frames of one size."""
    if len({batch.shape[1:3] for batch in batches}) == 1 and (len(batches) == 1 or all(len(b) == 1 for b in batches)):
        return torch.cat(batches)
    raise ValueError(
        f"{name} is a list of {len(batches)} batches or sizes; expected one clip. VCD Compare sets several clips side "
        f"by side."
    )


def settings_of(lists: dict[str, list[Any]]) -> dict[str, Any]:
    """The shared inputs as ``measure`` takes them: the references one by one, of any sizes, of all others the first."""
    given = {name: values[0] for name, values in lists.items()}
    defaults = {"prompt": "", "clip_vision": None, "dino": None, "clip": None, "face_model": NO_MODEL}
    return {**defaults, **given, "references": [batch for batch in lists.get("references", []) if batch is not None]}


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


class Evaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_Evaluate",
            display_name="VCD Evaluate",
            category=EVALUATE_CATEGORY,
            description="The paper's figures for your clip: likeness to reference pictures (DINO, CLIP-I, face), fit "
            "to the "
            "prompt (CLIP-T), temporal consistency, and how much it moves, flickers and how sharp it is.",
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
    def execute(cls, images: list[torch.Tensor], **lists: Any) -> io.NodeOutput:
        figures, missing = measure(one_clip(images, "images"), **settings_of(lists))
        text, chart = (
            as_text({"this clip": figures}, missing),
            plots.figures_chart({"this clip": figures}, core.PAPER),
        )
        means = {figure.name: figure.mean for figure in figures if math.isfinite(figure.mean)}
        shown = {**ui.PreviewImage(chart, cls=cls).as_dict(), **ui_text(text)}
        return io.NodeOutput(text, chart, *(means.get(name, -1.0) for name in FLOATS), ui=shown)


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
            "tokens, which "
            "stage helped.",
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
        """``clips`` because the host hands it on unasked: it is made of several sockets."""
        return refusal({FACE_MODELS: face_model[0]}, (NO_MODEL,))

    @classmethod
    def execute(cls, names: list[str], clips: dict[str, list[torch.Tensor]], **lists: Any) -> io.NodeOutput:
        given = [one_clip(batches, name) for name, batches in clips.items() if batches]
        named, settings = name_clips(names[0], given), settings_of(lists)
        sizes = {name: (images.shape[2], images.shape[1]) for name, images in named.items()}
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{name} {w}x{h}" for name, (w, h) in sizes.items())
            raise ValueError(
                f"The clips differ in size ({shown}); scale them to one size, or sharpness would compare sizes."
            )
        progress = Progress(len(named))
        figures: dict[str, list[Figure]] = {}
        missing: dict[str, None] = {}
        for name, images in named.items():
            figures[name], lacking = measure(images, **settings)
            missing |= dict.fromkeys(lacking)
            progress.advance()
        text, chart = as_text(figures, list(missing)), plots.figures_chart(figures, core.PAPER)
        return io.NodeOutput(text, chart, ui={**ui.PreviewImage(chart, cls=cls).as_dict(), **ui_text(text)})


def name_clips(names: str, clips: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The clips under the names that were written, numbered where there are none or one is written twice."""
    written = [name.strip() for name in names.split(",")]
    named: dict[str, torch.Tensor] = {}
    for i, images in enumerate(clips):
        name = written[i] if i < len(written) and written[i] else f"clip {i + 1}"
        while name in named:
            name += f" {i + 1}"
        named[name] = images
    return named


NODES: list[type[io.ComfyNode]] = [Evaluate, Compare]
