"""A second look at what may be a face: magnified, from twice as far, and in the mirror.

A face is found again in each view, with its eyes, nose and mouth in the same places; a lit window, a flower or a hand
is not.  The limits are from 420 tracks of faces, 25 of other things and 40 nearly found ones in 380 clips of ComfyUI's
template media.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from .detect import load

SURE = 0.77
"""A detection of at least this needs no second look: of things that are none, 1 in 50 reach it."""
_VIEWS = ((4.0, 160), (2.5, 192))  # the side shown over the face's, and its pixels
_LEAST = 0.62  # the share of sure detections and the mean of the second look, together
_SMALL = 20  # pixels: the worse half of the frames of so small a face is blur
_TINY, _TINY_SURE = 18, 0.75  # pixels; of what is no face and smaller none was found so surely
_WEAK = 1.36  # both looks together: where a face has turned away less, and ...
_BELOW = 0.4  # ... less than the track's best by this


def second_look(
    images: torch.Tensor,
    frames: Sequence[int],
    boxes: np.ndarray,
    device: torch.device | str = "cpu",
    on_frame: Callable[[], object] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """How surely the detector finds boxes again in four other views: the mean score, and that of matching landmarks.

    Args:
        images: IMAGE [F, H, W, 3].
        frames, boxes: which frames, and the box [n, 4] in each (x, y, width, height in pixels).
        device: where to run.
        on_frame: called after each; may raise to stop.

    Returns:
        Both [n] in 0..1.
    """
    model = load().to(device)
    scores, matched = np.zeros(len(frames)), np.zeros(len(frames))
    for i, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        found = []
        for factor, size in _VIEWS:
            view = _view(images[frame], box, factor, size).to(device)
            with torch.inference_mode():
                both = torch.stack([view, view.flip(-1)]).contiguous(memory_format=torch.channels_last)
                rows = model(both).cpu().numpy()
            found += [_found(rows[0], box, factor, size), _mirrored(_found(rows[1], box, factor, size))]
        scores[i], matched[i] = _agreement(np.array(found))
        on_frame()
    return scores, matched


def _view(image: torch.Tensor, box: np.ndarray, factor: float, size: int) -> torch.Tensor:
    """The square [3, size, size] around a box, ``factor`` times its longer side; black outside of the picture."""
    height, width = image.shape[:2]
    centre, half = box[:2] + box[2:] / 2, factor * max(box[2:]) / 2
    (left, top), (right, bottom) = np.round(centre - half).astype(int), np.round(centre + half).astype(int)
    x = _shrunk(left, max(right, left + 2), width, size)
    y = _shrunk(top, max(bottom, top + 2), height, size)
    part = image[y[0] : y[1], x[0] : x[1], :3].movedim(-1, 0)[None].float()
    within = (size - sum(y[2:]), size - sum(x[2:]))
    small = F.interpolate(part, size=within, mode="bilinear", antialias=True, align_corners=False)[0]
    return F.pad(small, (*x[2:], *y[2:]))


def _shrunk(first: int, last: int, limit: int, size: int) -> tuple[int, int, int, int]:
    """What of a line from ``first`` to ``last`` lies in 0..limit; and how much of ``size`` is missing on both sides.

    Example:
        >>> _shrunk(-50, 150, 120, 100)
        (0, 120, 25, 15)
    """
    low, high = min(max(0, first), limit - 1), max(min(limit, last), 1)
    before = min(round((low - first) / (last - first) * size), size - 1)
    after = min(round((last - high) / (last - first) * size), size - 1 - before)
    return low, high, before, after


def _found(rows: np.ndarray, box: np.ndarray, factor: float, size: int) -> np.ndarray:
    """The score and landmarks [11] of the best row over a box, from its centre and in its longer sides; 0 for none."""
    scale = size / factor
    side = box[2:] / max(box[2:]) * scale
    low, high = size / 2 - side / 2, size / 2 + side / 2
    shared = (np.minimum(rows[:, :2] + rows[:, 2:4], high) - np.maximum(rows[:, :2], low)).clip(min=0).prod(1)
    over = shared / (rows[:, 2:4].prod(1) + side.prod() - shared) > 0.35
    if not over.any():
        return np.zeros(11)
    best = rows[over][rows[over, 4].argmax()]
    return np.concatenate([best[4:5], (best[5:] - size / 2) / scale])


def _mirrored(found: np.ndarray) -> np.ndarray:
    """What was found [11] in a picture's mirror, as it is in the picture."""
    points = found[1:].reshape(5, 2)[[1, 0, 2, 4, 3]] * [-1, 1]
    return np.concatenate([found[:1], points.ravel()])


def _agreement(found: np.ndarray) -> tuple[float, float]:
    """The mean score of views [n, 11]; and that mean where each counts less the farther its landmarks lie from all."""
    score, points = found[:, 0], found[:, 1:]
    mean = (score[:, None] * points).sum(0) / (score.sum() + 1e-6)
    off = np.sqrt(((points - mean) ** 2).sum(1) / 5)
    off = np.where(score > 0.05, off, 0.5)
    return float(score.mean()), float((score * (1 - off / 0.3).clip(0, 1)).mean())


def is_face(scores: np.ndarray, matched: np.ndarray, side: float) -> bool:
    """Whether a track shows a face.

    Args:
        scores: [n] of its detections.
        matched: [m] of :func:`second_look` at some of its frames, evenly spaced.
        side: of the face in pixels.

    Example:
        >>> is_face(np.full(9, 0.7), np.full(9, 0.8), 50), is_face(np.full(9, 0.7), np.full(9, 0.3), 50)
        (True, False)
    """
    if side < _SMALL:
        matched = np.sort(matched)[::-1][: len(matched) // 2 + 1]
    return float((scores >= SURE).mean() + matched.mean()) >= _LEAST


def surely_a_face(scores: np.ndarray, side: float) -> bool:
    """Whether a track's detections [n] of a face of ``side`` pixels say enough without a second look.

    Many are sure; or it is so small that there is nothing to magnify, and one found it well.
    """
    return float((scores >= SURE).mean()) >= _LEAST or (side < _TINY and float(scores.max()) >= _TINY_SURE)


def shows(scores: np.ndarray, again: np.ndarray) -> np.ndarray:
    """In which frames of a face's track it is seen, and not an ear or the back of the head.

    Args:
        scores, again: [n] of the first look and of the second; sure scores need no second.

    Example:
        >>> shows(np.array([0.9, 0.9, 0.7, 0.4]), np.array([0.9, 0.9, 0.8, 0.2]))
        array([ True,  True,  True, False])
    """
    both = scores + again
    return (scores >= SURE) | (both >= min(_WEAK, float(np.quantile(both, 0.9)) - _BELOW))
