"""The paper's figures for a clip, or for several side by side (vcd_core.evaluate)."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..vcd_core import evaluate as core
from ..vcd_core import fonts, plots, summary
from ..vcd_core.evaluate import Figure
from ..vcd_core.face.track import Faces
from ..vcd_core.files import write_bytes
from ..vcd_core.frames import colours, named
from ..vcd_core.report import Report
from .host.files import model_files, numbered_output, output_path, refusal, refused
from .host.memory import handed_on
from .host.ui import Progress, pictures_below, stop_if_asked, ui_text
from .inputs import CATEGORY, FacesType, InterpolationType
from .measures import (
    AESTHETIC_MODELS,
    FACE_MODELS,
    NO_MODEL,
    QUALITY_MODELS,
    Given,
    compared_by,
    likeness_of_people,
    measure,
)  # fmt: skip

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


def as_text(videos: dict[str, list[Figure]], missing: list[str], by: str = "") -> str:
    """A table in Markdown, figures down, clips across; below it what the chart's numbers mean, and what is missing."""
    short = plots.chart_stand_ins(videos)
    videos = {in_cell(clip): figures for clip, figures in videos.items()}
    names = list(dict.fromkeys(figure.name for figures in videos.values() for figure in figures))
    lines = [f"| | {' | '.join(videos)} | paper: SD, VCD |", "|" + "---|" * (len(videos) + 2)]
    for name in names:
        values = [
            next((core.as_number(f.mean, ".3f") for f in figures if f.name == name), "") for figures in videos.values()
        ]
        paper = ", ".join(f"{value:.3f}" for value in core.PAPER.get(name, ()))
        lines.append(f"| {name} | {' | '.join(values)} | {paper} |")
    if short:
        lines += ["", fonts.said({in_cell(clip): drawn for clip, drawn in short.items()})]
    lines += along(videos)
    if len(videos) > 1:
        lines += beside(videos)
    if by:
        lines += ["", by]
    if missing:
        lines += ["", "Not computed, or in part:", *(f"- {line}" for line in missing)]
    return "\n".join(lines)


def in_cell(name: str) -> str:
    """A clip's name as a table in Markdown shows it.

    Example:
        >>> print(in_cell("a|b <c>"))
        a\\|b \\<c\\>
    """
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", name)


def along(videos: dict[str, list[Figure]]) -> list[str]:
    """A table in Markdown of what each figure does along each clip: its mean, its worst tenth of the frames and its
    drift from the first to the last frame, with 95 % intervals."""
    lines = ["", "| along the clip | | mean | worst tenth, where | drift, first to last |", "|---|---|---|---|---|"]
    for name, figures in videos.items():
        for figure in figures:
            worst, where = summary.worst_tenth(figure.known, figure.better == "high")
            shown = f"{core.as_number(worst, '.3f')}, {named(sorted(where))}" if where and figure.better else ""
            row = (figure.name, name, summary.mean(figure.known), shown, summary.drift(figure.known))
            lines.append(f"| {' | '.join(map(str, row))} |")
    return lines


def beside(videos: dict[str, list[Figure]]) -> list[str]:
    """A table in Markdown of how much each figure changes from the first clip to each other, with 95 % intervals."""
    first_name, *others = videos
    lines = ["", f"| over {first_name} | {' | '.join(others)} |", "|" + "---|" * (len(others) + 1)]
    for figure, found in core.changes(videos).items():
        lines.append(f"| {figure} | {' | '.join(told(found[name]) if name in found else '' for name in others)} |")
    return [*lines, "", "± is a 95 % interval over the frames of these clips, not over other seeds or people."]


def told(change: summary.Interval) -> str:
    """A difference, and where its interval holds 0 that it decides nothing."""
    return str(change) if change.decided or math.isnan(change.half) else f"{change} (not decided)"


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


def file_input(name: str, folder: str, tooltip: str) -> io.Combo.Input:
    """A model of one figure: a file of a models folder, or none."""
    return io.Combo.Input(
        name, options=[NO_MODEL, *model_files(folder)], default=NO_MODEL, optional=True, tooltip=tooltip
    )


def files_refused(report: Sequence[str | None], **chosen: Sequence[str | None]) -> bool | str:
    """For ``validate_inputs``: True, or what to say of a file that is not there, by widget, or of a report's name."""
    found = refusal({FOLDERS[widget]: files[0] for widget, files in chosen.items()}, (NO_MODEL,))
    return refused((report[0] or "").strip() or None, output_path) if found is True else found


FOLDERS = {"face_model": FACE_MODELS, "aesthetic_model": AESTHETIC_MODELS, "quality_model": QUALITY_MODELS}


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
        file_input(
            "face_model",
            FACE_MODELS,
            "A face embedding model in models/face_embedding, for face likeness: SFace or ArcFace (.onnx), or "
            "CurricularFace's weights (.pth).",
        ),
    ]


def report_input() -> io.String.Input:
    return io.String.Input(
        "report",
        default="",
        optional=True,
        tooltip="Also write a report under this name into ComfyUI's output folder: a page that opens anywhere, with "
        "the clips, their curves and their worst frames, and the figures as JSON. Empty: none.",
    )


def model_inputs() -> list[io.Input]:
    """Models of single figures."""
    return [
        file_input(
            "aesthetic_model",
            AESTHETIC_MODELS,
            "LAION's linear aesthetic predictor for ViT-L/14 in models/aesthetic, for aesthetic quality.",
        ),
        InterpolationType.Input(
            "interpolation", optional=True, tooltip="FILM or RIFE ('Load Frame Interpolation Model'), for motion "
            "smoothness.",
        ),
    ]  # fmt: skip


def quality_input() -> io.Combo.Input:
    return file_input(
        "quality_model",
        QUALITY_MODELS,
        "MUSIQ's weights in models/musiq, for imaging quality; VBench takes musiq_spaq_ckpt. Needs the package pyiqa.",
    )


def more_models(
    aesthetic_model: list[str] | None, interpolation: list[Any] | None, quality_model: list[str] | None
) -> dict[str, Any]:
    """The values of :func:`model_inputs` and :func:`quality_input` as ``Given`` takes them."""
    return {
        "aesthetic_model": first(aesthetic_model) or NO_MODEL,
        "interpolation": first(interpolation),
        "quality_model": first(quality_model) or NO_MODEL,
    }


def report_path(report: list[str] | None) -> Path | None:
    """Where the report goes, without an ending; None where no name was written. Bad names are refused."""
    name = (first(report) or "").strip()
    return numbered_output(name) if name else None


def write_report(
    path: Path | None, clips: dict[str, torch.Tensor], figures: dict[str, list[Figure]], notes: list[str]
) -> str:
    """Write a report where there is a path for it; a paragraph that says where, or why it could not be, or nothing."""
    if path is None:
        return ""
    report = Report(clips, figures, [note for note in notes if note], stop_if_asked)
    page = report.page(f"Report {path.name.rstrip('_')}")
    try:
        write_bytes(path.with_name(f"{path.name}.html"), page.encode())
        write_bytes(path.with_name(f"{path.name}.json"), report.data().encode())
    except OSError as error:  # the figures took longer than the report will
        logging.warning("The report is missing: %s", error)
        return f"\n\nThe report is missing: {error}"
    return f"\n\nReport: {path.name}.html and .json, in {path.parent}."


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


class Evaluate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        people = io.Autogrow.TemplatePrefix(
            io.Image.Input("person", tooltip="Pictures of one person."), prefix="person", min=0, max=8
        )
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
                report_input(),
                *model_inputs(),
                io.Autogrow.Input(
                    "people",
                    template=people,
                    optional=True,
                    tooltip="Pictures of each person, from left to right, for who looks like whom. Needs faces and "
                    "face_model.",
                ),
                quality_input(),
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
    def validate_inputs(
        cls,
        face_model: Sequence[str | None] = (None,),
        aesthetic_model: Sequence[str | None] = (None,),
        quality_model: Sequence[str | None] = (None,),
        report: Sequence[str | None] = (None,),
        people: Any = None,
    ) -> bool | str:
        """``people`` is not looked at; the host hands it on because it is made of several sockets."""
        return files_refused(
            report, face_model=face_model, aesthetic_model=aesthetic_model, quality_model=quality_model
        )

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
        report: list[str] | None = None,
        people: dict[str, list[torch.Tensor]] | None = None,
        aesthetic_model: list[str] | None = None,
        interpolation: list[Any] | None = None,
        quality_model: list[str] | None = None,
    ) -> io.NodeOutput:
        path = report_path(report)
        shared = shared_values(references, clip_vision, dino, clip, prompt, face_model)
        models = more_models(aesthetic_model, interpolation, quality_model)
        given = Given(colours(one_video(images, "images")), *shared, first(faces), **models)
        figures, missing = measure(given)
        wanted = [batches for batches in (people or {}).values() if batches]
        who = likeness_of_people(given, wanted) if wanted else []
        text, chart = results({THIS: given.images}, {THIS: figures}, missing, compared_by(given), path, who)
        means = {figure.name: figure.mean for figure in figures if math.isfinite(figure.mean)}
        shown = {**pictures_below(chart, cls), **ui_text(text)}
        return io.NodeOutput(text, handed_on(chart), *(means.get(name, -1.0) for name in FLOATS), ui=shown)


THIS = "this clip"
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
                report_input(),
                *model_inputs(),
                quality_input(),
            ],
            outputs=[
                io.String.Output(display_name="figures", tooltip="The table in Markdown."),
                io.Image.Output(display_name="chart"),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        face_model: Sequence[str | None] = (None,),
        aesthetic_model: Sequence[str | None] = (None,),
        quality_model: Sequence[str | None] = (None,),
        report: Sequence[str | None] = (None,),
        clips: Any = None,
    ) -> bool | str:
        """``clips`` is not looked at; the host hands it on because it is made of several sockets."""
        return files_refused(
            report, face_model=face_model, aesthetic_model=aesthetic_model, quality_model=quality_model
        )

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
        report: list[str] | None = None,
        aesthetic_model: list[str] | None = None,
        interpolation: list[Any] | None = None,
        quality_model: list[str] | None = None,
    ) -> io.NodeOutput:
        path = report_path(report)
        given = [colours(one_video(batches, name)) for name, batches in clips.items() if batches]
        named = named_videos(names[0], given)
        check_sizes(named)
        shared = shared_values(references, clip_vision, dino, clip, prompt, face_model)
        models = more_models(aesthetic_model, interpolation, quality_model)
        progress = Progress(len(named))
        figures: dict[str, list[Figure]] = {}
        missing: dict[str, None] = {}
        by = ""
        for name, images in named.items():
            one = Given(images, *shared, **models)
            figures[name], lacking = measure(one)
            by = compared_by(one)
            missing |= dict.fromkeys(lacking)
            progress.advance()
        text, chart = results(named, figures, list(missing), by, path)
        return io.NodeOutput(text, handed_on(chart), ui={**pictures_below(chart, cls), **ui_text(text)})


def results(
    clips: dict[str, torch.Tensor],
    figures: dict[str, list[Figure]],
    missing: list[str],
    by: str,
    path: Path | None,
    who: Sequence[str] = (),
) -> tuple[str, torch.Tensor]:
    """The table in Markdown and the chart of some clips' figures; the report is written where there is a path. ``who``
    are lines about the people in it."""
    told = "\n".join([as_text(figures, missing, by), *who])
    told += write_report(path, clips, figures, [by, *who[-1:], *missing])
    chart = plots.figures_chart(figures, core.PAPER)
    if len(figures) > 1:
        chart = torch.cat([chart, plots.changes_chart(core.changes(figures), next(iter(figures)), list(figures))], 1)
    return told, chart


def named_videos(names: str, videos: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """The clips under the names that were written, numbered where there are none or one is written twice."""
    written = [" ".join(name.split()) for name in names.split(",")]
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
