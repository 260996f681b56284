"""Whether a refined face is better than it was: a few figures of a face's video before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..evaluate import flicker, sharpness
from .crop import Windows
from .detect import Face, detect
from .strength import head

SURE = 0.6
"""The least score of a face that counts as found, as in :func:`~vcd_core.face.detect.detect`."""
LIKE = 0.5
"""A mouth that moves along less than this (correlation) does not say the same any more."""
FOUND = "face found"
_MOVES = 0.01  # of the brightness: a mouth that changes less is still
_FRAMES = 6  # in which a mouth must be seen for its movement to be told


@dataclass(frozen=True)
class Figures:
    """What a face's video is like; NaN for what cannot be told.

    Attributes:
        found: [F] bool, whether the detector finds the face in a frame.
        sharpness: the variance of the Laplacian on the head, the mean over the frames.
        flicker: how far frames are from the mean of their neighbours there, in 255ths.
        mouth: [F] how dark the mouth is beside the face: darker where it is open.
        likeness: to reference pictures, where there are any.
    """

    found: np.ndarray
    sharpness: float
    flicker: float
    mouth: np.ndarray
    likeness: float = math.nan


@dataclass(frozen=True)
class Verdict:
    """What became of a face.

    Attributes:
        rows: what was measured, before and after.
        worse: the names of the figures that got worse by more than the margin.
        lost: the frames, counted in the video, in which there was a face and now is none.
    """

    rows: list[tuple[str, str, str]]
    worse: list[str]
    lost: list[int]

    def __str__(self) -> str:
        told = ", ".join(
            f"{name} {before} to {after}" if before else f"{name} {after}" for name, before, after in self.rows
        )
        return told + (f"; worse: {', '.join(self.worse)}" if self.worse else "")


def measure(
    images: torch.Tensor,
    place: Windows,
    likeness: float = math.nan,
    device: torch.device | str = "cpu",
    on_frame: Callable[[], object] = lambda: None,
) -> Figures:
    """The figures of a face's video.

    Args:
        images: the crops, IMAGE [F, h, w, 3].
        place: the windows that they were cut out of.
        likeness: to reference pictures; it needs a model and is measured elsewhere.
        device: where the detector runs.
        on_frame: called before each frame of each figure; may raise to stop.

    Example:
        >>> place = Windows(0, np.zeros((4, 2)), (64.0, 64.0), np.array([[-10.0, -10.0, 20.0, 20.0]] * 4))
        >>> figures = measure(torch.full((4, 64, 64, 3), 0.5), place)
        >>> figures.found.any(), round(figures.flicker, 6), figures.mouth
        (np.False_, 0.0, array([nan, nan, nan, nan]))
    """
    mask = head(place, (images.shape[1], images.shape[2]))
    searched = detect(images, SURE, device=device, on_frame=on_frame, on_call=on_frame)
    faces = [_at_the_head(found, mask[i]) for i, found in enumerate(searched)]
    steady = float(flicker(images, mask, on_frame).mean()) if len(images) > 2 else math.nan
    return Figures(
        np.array([face is not None for face in faces]),
        float(sharpness(images, mask, on_frame).mean()),
        steady,
        np.array([math.nan if face is None else _darkness(images[i], face) for i, face in enumerate(faces)]),
        likeness,
    )


def judge(before: Figures, after: Figures, margin: float = 0.1) -> Verdict:
    """Compare a face's video before and after.

    Args:
        margin: which share of a figure may be lost: 0.1 takes a tenth less sharpness or likeness, a tenth more flicker.
    """
    rows, worse = [], []
    shares = (
        (FOUND, float(before.found.mean()), float(after.found.mean()), ".0%", True),
        ("sharpness", before.sharpness, after.sharpness, ".3g", True),
        ("flicker", before.flicker, after.flicker, ".2g", False),
        ("likeness", before.likeness, after.likeness, ".2f", True),
    )
    for name, was, now, form, more_is_better in shares:
        if not (math.isfinite(was) and math.isfinite(now)):
            continue
        rows.append((name, format(was, form), format(now, form)))
        limit = was * (1 - margin) if more_is_better else was * (1 + margin)
        if (now < limit) if more_is_better else (now > limit):
            worse.append(name)
    along = _along(before.mouth, after.mouth)
    if math.isfinite(along):
        rows.append(("mouth as before", "", f"{along:.2f}"))
        worse += ["mouth"] * (along < LIKE)
    return Verdict(rows, worse, np.flatnonzero(before.found & ~after.found).tolist())


def _at_the_head(faces: Sequence[Face], mask: torch.Tensor) -> Face | None:
    """The best of the faces whose centre lies on the head; None for none."""
    for face in faces:
        x, y, w, h = face.box
        row, column = (min(max(0, int(v)), n - 1) for v, n in zip((y + h / 2, x + w / 2), mask.shape, strict=True))
        if mask[row, column] > 0.5:
            return face
    return None


def _darkness(image: torch.Tensor, face: Face) -> float:
    """How much darker than the face around it the mouth is, between its corners and down to the chin."""
    x, y, w, h = face.box
    points = np.asarray(face.landmarks).reshape(5, 2)
    (left, right), top = sorted(points[3:, 0]), points[3:, 1].mean()
    wide = max(2.0, right - left)
    grey = image[..., :3].float().mean(-1)
    mouth = _part(grey, left, top - 0.15 * wide, right, top + 0.5 * wide)
    return float(_part(grey, x, y, x + w, y + h).mean() - mouth.mean())


def _part(grey: torch.Tensor, left: float, top: float, right: float, bottom: float) -> torch.Tensor:
    """A rectangle of a picture, of at least one pixel."""
    height, width = grey.shape
    x, y = (min(max(0, math.floor(v)), n - 1) for v, n in ((left, width), (top, height)))
    return grey[y : max(y + 1, math.ceil(bottom)), x : max(x + 1, math.ceil(right))]


def _along(before: np.ndarray, after: np.ndarray) -> float:
    """How the mouth moves as it did, -1 to 1 (correlation); NaN where it was still, or is seen too rarely."""
    both = np.isfinite(before) & np.isfinite(after)
    if both.sum() < _FRAMES or before[both].std() < _MOVES:
        return math.nan
    if after[both].std() < 1e-6:
        return 0.0
    return float(np.corrcoef(before[both], after[both])[0, 1])
