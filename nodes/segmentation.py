"""Prompt to Segmentation: a class prompt to boxes and masks (back ends: vcd_core.segmentation)."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..vcd_core import plots, segmentation
from ..vcd_core.segmentation import Choice, IfNone
from . import host
from .types import CATEGORY, BoxesType

DETECTORS, SEGMENTERS = "grounding-dino", "sams"
BERT = "bert-base-uncased"
NONE_THERE = "none found: see the help page"

host.add_model_folder(DETECTORS, "grounding-dino", {".pth"})
host.add_model_folder(SEGMENTERS, "sams", {".pth"})


def options(name: str) -> list[str]:
    """Model folders and original files that can be chosen."""
    folders = [folder for folder in host.model_folders(name) if folder != BERT]
    files = [file for file in host.model_files(name) if file.endswith(".pth")]
    return [*folders, *files] or [NONE_THERE]


def path_of(name: str, choice: str, what: str) -> Path:
    """Where a chosen model lies; raises with the place that was expected."""
    if choice == NONE_THERE:
        raise ValueError(
            f"There is no {what} yet. Put a folder of the transformers library (config.json, model.safetensors, ...) "
            f"into {host.models_path(name)}; this node's help page lists files."
        )
    return host.model_path(name, choice)


class PromptToSegmentation(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_PromptToSegmentation",
            display_name="Prompt to Segmentation",
            category=f"{CATEGORY}/identity",
            description="Masks of what a prompt names: Grounding DINO turns the prompt into boxes, SAM turns boxes into masks. "
            "For training an identity on the subject and not the room, and for prompts that hold in one place.",
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
                    "threshold", default=0.3, min=0.0, max=1.0, step=0.01, tooltip="The least score of a box."
                ),
                io.Float.Input(
                    "text_threshold",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The least score of a label's word.",
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
                    tooltip="Where nothing is found in a picture: stop and name it, or give it an empty or a full mask.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask"),
                BoxesType.Output(display_name="bboxes"),
                io.Image.Output(display_name="overlay", tooltip="The pictures with masks and boxes drawn in."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        prompt: str,
        detector: str,
        segmenter: str,
        threshold: float,
        text_threshold: float,
        which: Choice,
        index: int,
        dilate: int,
        fill_holes: bool,
        if_none: IfNone,
    ) -> io.NodeOutput:
        segmentation.clean_prompt(prompt)
        boxes_from = path_of(DETECTORS, detector, "Grounding DINO")
        masks_from = path_of(SEGMENTERS, segmenter, "SAM")
        device = host.torch_device()
        host.make_room(4)
        find = segmentation.load_detector(boxes_from, device, host.models_path(DETECTORS) / BERT)
        cut = segmentation.load_segmenter(masks_from, device)
        progress = host.Progress(len(images))
        found = segmentation.segment(
            images, prompt, find, cut, threshold, text_threshold, which, index, on_picture=progress.advance, united=True
        )
        size = (images.shape[1], images.shape[2])
        masks = segmentation.masks_of(found, size, if_none, dilate, fill_holes)
        boxes = segmentation.boxes_of(found)
        overlay = plots.numbered_boxes(plots.with_masks(images, masks), boxes)
        return io.NodeOutput(masks, boxes, overlay, ui=ui.PreviewImage(overlay[:: max(1, len(overlay) // 8)], cls=cls))


NODES: list[type[io.ComfyNode]] = [PromptToSegmentation]
