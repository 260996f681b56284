"""Boxes and masks that are given, in place of the detector's, as detections."""

from __future__ import annotations

import math

import torch

from .detect import Face


def from_boxes(boxes: object, frames: int, height: int, width: int, least: float = 0.0) -> list[list[Face]]:
    """ComfyUI's BOUNDING_BOX (a list for each frame, or one list for a single frame) as detections.

    Args:
        frames, height, width: those of the clip.
        least: the side in pixels that a smaller box gets, or one that says none: a click.

    Raises:
        ValueError: boxes of a clip with another number of frames, of another form, or outside of the pictures.
    """
    listed = [boxes] if isinstance(boxes, dict) else list(boxes) if isinstance(boxes, (list, tuple)) else []
    if listed and all(isinstance(entry, dict) for entry in listed):
        listed = [listed]
    if len(listed) != frames:
        raise ValueError(f"The bounding boxes are for {len(listed)} frames and the clip has {frames}; connect its own.")
    found = []
    for frame in listed:
        try:
            found.append([_face(box, least) for box in frame])
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise ValueError("A bounding box needs x, y, width and height, numbers (in pixels).") from error
    for face in (face for frame in found for face in frame):
        x, y, w, h = face.box
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise ValueError(
                f"A bounding box at {x:g}, {y:g} ({w:g}x{h:g}) lies outside of the {width}x{height} pictures. Connect "
                "the images that the detector saw."
            )
    return [[face for face in frame if face.box[2] > 0 and face.box[3] > 0] for frame in found]


def _face(box: object, least: float) -> Face:
    if not isinstance(box, dict):
        raise TypeError("no box")
    sides = [box.get(side, 0) if least else box[side] for side in ("width", "height")]
    x, y, width, height, score = map(_number, (box["x"], box["y"], *sides, box.get("score", 1.0)))
    return Face((x, y, max(width, least), max(height, least)), score)


def _number(value: object) -> float:
    """A side or a place of a box; what is no number, or an infinite one, raises."""
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


def from_masks(masks: torch.Tensor) -> list[list[Face]]:
    """The box of each frame's mask [F, H, W] (values above 0.5) as its one detection; none where a mask is empty."""
    found: list[list[Face]] = []
    for mask in masks:
        rows, columns = (mask > 0.5).any(1).nonzero(), (mask > 0.5).any(0).nonzero()
        if not len(rows):
            found.append([])
            continue
        (top, bottom), (left, right) = (
            (float(axis[0]), float(axis[-1]) + 1) for axis in (rows.flatten(), columns.flatten())
        )
        found.append([Face((left, top, right - left, bottom - top), 1.0)])
    return found
