"""Prompt to Segmentation: a class prompt to boxes and masks (back ends: vcd_core.segmentation)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..vcd_core import plots, segmentation
from .host.files import add_model_folder, model_files, model_folders, model_path, models_path, refusal
from .host.memory import handed_on, make_room, torch_device
from .host.ui import Progress, pictures_below, stop_if_asked
from .inputs import CATEGORY, BoxesType

DETECTORS, SEGMENTERS = "grounding-dino", "sams"
BERT = "bert-base-uncased"
NONE_THERE = "none found: see the help page"

add_model_folder(DETECTORS, "grounding-dino", {".pth"})
add_model_folder(SEGMENTERS, "sams", {".pth"})


def options(name: str) -> list[str]:
    """Model folders and original files that can be chosen."""
    folders = [folder for folder in model_folders(name) if folder != BERT]
    files = [file for file in model_files(name) if file.endswith(".pth")]
    return [*folders, *files] or [NONE_THERE]


def path_of(name: str, choice: str, what: str) -> Path:
    """Where a chosen model lies; raises with the place that was expected."""
    if choice == NONE_THERE:
        raise ValueError(
            f"There is no {what} yet. Put a folder of the transformers library (config.json, model.safetensors, ...) "
            f"into {models_path(name)}; this node's help page lists files."
        )
    return model_path(name, choice)


class PromptToSegmentation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_PromptToSegmentation",
            display_name="Prompt to Segmentation",
            category=f"{CATEGORY}/identity",
            description="Masks of what a prompt names: Grounding DINO turns the prompt into boxes, SAM turns boxes "
            "into masks. For training an identity on the subject and not the room, and for prompts "
            "that hold in one place.",
            search_aliases=[
                "grounding dino",
                "sam",
                "segment anything",
                "prompt to mask",
                "magic me",
                "vcd",
                "clipseg",
            ],
            inputs=[
                io.Image.Input("images", tooltip="Pictures or a clip; each frame is looked at on its own."),
                io.String.Input(
                    "prompt", default="a man", tooltip="What to find; several things with dots: 'a man . his dog'."
                ),
                io.Combo.Input(
                    "detector",
                    options=options(DETECTORS),
                    tooltip="Grounding DINO in models/grounding-dino: a folder (transformers), or the original .pth "
                    "(groundingdino-py).",
                ),
                io.Combo.Input(
                    "segmenter",
                    options=options(SEGMENTERS),
                    tooltip="SAM in models/sams: a folder (transformers), or an original sam_vit_*.pth "
                    "(segment-anything).",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How sure the detector must be of a box. Lower finds more, and more that is wrong.",
                ),
                io.Float.Input(
                    "text_threshold",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How sure the detector must be of each word of a label.",
                ),
                io.Combo.Input(
                    "which",
                    options=list(segmentation.CHOICES),
                    default="all",
                    tooltip="All detections together, the best, the largest, or one by its index.",
                ),
                io.Int.Input("index", default=0, min=0, max=99, tooltip="For 'by index': 0 is the best detection."),
                io.Int.Input(
                    "dilate", default=0, min=-256, max=256, tooltip="Grow masks by this many pixels; negative shrinks."
                ),
                io.Boolean.Input("fill_holes", default=True, tooltip="Fill what a mask encloses."),
                io.Combo.Input(
                    "if_none",
                    options=list(segmentation.IF_NONE),
                    default=segmentation.IF_NONE[0],
                    tooltip="Where nothing is found in a picture: stop and name it, or give it "
                    "an empty or a full mask.",
                ),
            ],
            is_input_list=True,  # the models are read once for pictures of any sizes
            outputs=[
                io.Mask.Output(display_name="mask", is_output_list=True),
                BoxesType.Output(display_name="bboxes", is_output_list=True),
                io.Image.Output(
                    display_name="overlay", tooltip="The pictures with masks and boxes drawn in.", is_output_list=True
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, detector: Sequence[str | None] = (None,), segmenter: Sequence[str | None] = (None,)
    ) -> bool | str:
        chosen = {DETECTORS: detector[0], SEGMENTERS: segmenter[0]}
        return refusal(chosen, (NONE_THERE,), model_path)

    @classmethod
    def execute(
        cls,
        images: list[torch.Tensor],
        prompt: list[str],
        detector: list[str],
        segmenter: list[str],
        threshold: list[float],
        text_threshold: list[float],
        which: list[segmentation.Choice],
        index: list[int],
        dilate: list[int],
        fill_holes: list[bool],
        if_none: list[segmentation.IfNone],
    ) -> io.NodeOutput:
        rows = side_by_side(
            images, prompt, detector, segmenter, threshold, text_threshold, which, index, dilate, fill_holes, if_none
        )
        asked = [Asked(*row) for row in rows]
        for one in asked:
            segmentation.clean_prompt(one.prompt)
        find, cut = load(asked[0].detector, asked[0].segmenter)
        progress = Progress(sum(len(one.images) for one in asked))
        found = [
            segmentation.segment(
                one.images, one.prompt, find, cut, one.threshold, one.text_threshold, one.which, one.index,
                on_picture=progress.advance, united=True,
            )
            for one in asked
        ]  # fmt: skip
        segmentation.check_found(list(chain(*found)), asked[0].if_none)
        masks = [
            segmentation.masks_of(here, size_of(one.images), one.if_none, one.dilate, one.fill_holes, stop_if_asked)
            for here, one in zip(found, asked, strict=True)
        ]
        boxes = [segmentation.boxes_of(here) for here in found]
        overlays = [
            plots.numbered_boxes(plots.with_masks(one.images, mask), here, stop_if_asked)
            for one, mask, here in zip(asked, masks, boxes, strict=True)
        ]
        return io.NodeOutput(
            [handed_on(mask) for mask in masks], boxes, [handed_on(overlay) for overlay in overlays],
            ui={"images": previews_of(overlays, cls)},
        )  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """The inputs for one batch of pictures."""

    images: torch.Tensor
    prompt: str
    detector: str
    segmenter: str
    threshold: float
    text_threshold: float
    which: segmentation.Choice
    index: int
    dilate: int
    fill_holes: bool
    if_none: segmentation.IfNone


def size_of(images: torch.Tensor) -> tuple[int, int]:
    """Height and width of IMAGE."""
    return images.shape[1], images.shape[2]


def side_by_side(*lists: list[Any]) -> list[tuple[Any, ...]]:
    """Lists of any lengths, row by row as ComfyUI does: a shorter one goes on with its last value."""
    count = max(map(len, lists))
    return [tuple(values[min(i, len(values) - 1)] for values in lists) for i in range(count)]


def load(detector: str, segmenter: str) -> tuple[segmentation.Detector, segmentation.Segmenter]:
    """The chosen models, read from their files."""
    boxes_from = path_of(DETECTORS, detector, "Grounding DINO")
    masks_from = path_of(SEGMENTERS, segmenter, "SAM")
    device = torch_device()
    make_room(4)
    find = segmentation.load_detector(boxes_from, device, models_path(DETECTORS) / BERT)
    return find, segmentation.load_segmenter(masks_from, device)


def previews_of(overlays: list[torch.Tensor], cls: type[io.ComfyNode]) -> list[dict[str, Any]]:
    """Eight of the pictures, or as many as there are, for the page."""
    pictures = [picture[None] for overlay in overlays for picture in overlay]
    few = pictures[:: max(1, len(pictures) // 8)]
    return [one for picture in few for one in pictures_below(picture, cls).get("images", [])]


NODES: list[type[io.ComfyNode]] = [PromptToSegmentation]
