"""Prompt to Segmentation: a class prompt to boxes and masks (back ends: vcd_core.segmentation)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..vcd_core import plots, segmentation
from .host.files import add_model_folder, model_files, model_folders, model_path, models_path, refusal
from .host.memory import make_room, torch_device
from .host.ui import Progress, stop_if_asked
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
            "into masks. "
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
                    tooltip="Where nothing is found in a picture: stop and name it, or give it an empty or a full "
                    "mask.",
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
    def execute(cls, images: list[torch.Tensor], **lists: Any) -> io.NodeOutput:
        count = max(len(images), *(len(values) for values in lists.values()))
        batches = [images[min(i, len(images) - 1)] for i in range(count)]
        given = [{name: values[min(i, len(values) - 1)] for name, values in lists.items()} for i in range(count)]
        for settings in given:
            segmentation.clean_prompt(settings["prompt"])
        boxes_from = path_of(DETECTORS, given[0]["detector"], "Grounding DINO")
        masks_from = path_of(SEGMENTERS, given[0]["segmenter"], "SAM")
        device = torch_device()
        make_room(4)
        find = segmentation.load_detector(boxes_from, device, models_path(DETECTORS) / BERT)
        cut = segmentation.load_segmenter(masks_from, device)
        progress = Progress(sum(len(batch) for batch in batches))
        found = [
            segmentation.segment(
                batch, settings["prompt"], find, cut, settings["threshold"], settings["text_threshold"],
                settings["which"], settings["index"], on_picture=progress.advance, united=True,
            )
            for batch, settings in zip(batches, given, strict=True)
        ]  # fmt: skip
        segmentation.check_found(list(chain(*found)), given[0]["if_none"])
        masks = [
            segmentation.masks_of(
                here, (batch.shape[1], batch.shape[2]), settings["if_none"], settings["dilate"], settings["fill_holes"]
            )
            for here, batch, settings in zip(found, batches, given, strict=True)
        ]
        boxes = [segmentation.boxes_of(here) for here in found]
        overlays = [
            plots.numbered_boxes(plots.with_masks(batch, mask), here, stop_if_asked)
            for batch, mask, here in zip(batches, masks, boxes, strict=True)
        ]
        pictures = [picture[None] for overlay in overlays for picture in overlay]
        few = pictures[:: max(1, len(pictures) // 8)]
        previews = [one for picture in few for one in ui.PreviewImage(picture, cls=cls).as_dict()["images"]]
        return io.NodeOutput(masks, boxes, overlays, ui={"images": previews})


NODES: list[type[io.ComfyNode]] = [PromptToSegmentation]
