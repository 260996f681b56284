"""What changes from frame to frame: a cut brings other things, a change of light leaves them where they are.

Pictures are compared by the directions of their edges, faces by their pattern without brightness, colour cast and slope
of light, so that neither lamps nor strobes nor a turned palette look like somebody else.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

REACH = 4
"""A flash of fewer frames than this is looked over: what stands behind it is compared with what stood before it."""
_GRID = 64  # side at most of the pictures whose edges are compared
_LOOK = 12  # side of the little picture of a face
_ELSEWHERE = 0.2
"""The edges of two places agree by less (0.1 in 99 of 100), those of one place in another light by 0.46 or more."""
_RELIT = 0.8
"""Where the light changes at least this share of all edges is another colour; 0.7 at most where a person changes."""
_OTHER = 0.35
"""Looks of one face in neighbouring frames differ by less than this, those of two people by more."""


def changes(
    images: Iterable[torch.Tensor], on_frame: Callable[[], object] = lambda: None
) -> tuple[list[int], list[int]]:
    """The frames that begin a new scene, and those before which the light changed.

    A cut is a change of what is there that stands out from the motion around it and outlasts a flash of three frames.

    Args:
        images: IMAGE [F, H, W, 3], or its frames one by one, of which no more than a few are held.
        on_frame: called after each frame; may raise to stop.

    Example:
        >>> left, right = (torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
        >>> clip = torch.cat([left, left, left * 0.4, right, right])
        >>> changes(clip)
        ([3], [2])
    """
    alike: list[list[float]] = []  # of each frame with the one before it, and with those before that
    relit: list[float] = []
    last: list[torch.Tensor] = []
    small = edges = None
    for image in images:
        before, edges_before = small, edges
        height, width = (max(3, min(_GRID, side)) for side in image.shape[:2])
        small = F.adaptive_avg_pool2d(image[..., :3].movedim(-1, 0)[None].float(), (height, width))[0].clamp(min=0)
        edges = _edges(small)
        unit = edges.flatten() / edges.norm().clamp(min=1e-6)
        to_last = [float(unit @ other) for other in reversed(last)]
        alike.append([*to_last, *[1.0] * (REACH - len(last))])
        if before is None or edges_before is None:
            relit.append(0.0)
        else:
            relit.append(_changed(before, small, edges_before, edges))
        last = [*last[1 - REACH :], unit]
        on_frame()
    cuts = _breaks(np.array(alike).reshape(-1, REACH), _ELSEWHERE)
    lights = [i for i in range(1, len(relit)) if relit[i] > _RELIT and alike[i][0] > _ELSEWHERE]
    return cuts, lights


def scene_cuts(images: torch.Tensor) -> list[int]:
    """The frames of an IMAGE [F, H, W, 3] that begin a new scene, see :func:`changes`."""
    return changes(images)[0]


def _edges(small: torch.Tensor) -> torch.Tensor:
    """The directions of a small picture's [3, h, w] edges [2, h - 2, w - 2], each as long as it stands out around it.

    Directions are doubled angles, so that light and dark may change places; logarithms and the mean over the
    neighbourhood take brightness and its slopes away.
    """
    light = torch.log(small + 0.02)
    across = (light[:, 1:-1, 2:] - light[:, 1:-1, :-2]) / 2
    down = (light[:, 2:, 1:-1] - light[:, :-2, 1:-1]) / 2
    power = (across * across + down * down).sum(0)
    length = power.sqrt()
    around = F.avg_pool2d(length[None], 9, 1, 4, count_include_pad=False)[0]
    stands_out = length / (around + 0.03) * length / (length + 0.03)
    double = torch.stack([(across * across - down * down).sum(0), 2 * (across * down).sum(0)])
    return double / (power + 1e-9) * stands_out


def _changed(before: torch.Tensor, after: torch.Tensor, edges_before: torch.Tensor, edges: torch.Tensor) -> float:
    """The share of what has edges, in either picture, that is another colour in the other one."""
    weight = torch.maximum(torch.hypot(*edges_before), torch.hypot(*edges))
    differ = (before - after).abs() > 0.1 * (before + after) + 0.01
    other = (differ[0] | differ[1] | differ[2])[1:-1, 1:-1]
    return float((weight * other).sum() / weight.sum().clamp(min=1e-6))


def _breaks(alike: np.ndarray, least: float) -> list[int]:
    """Where a sequence breaks: nothing shortly behind is like anything shortly before, and the motion around is not so.

    Args:
        alike: [n, REACH] how like element i is to i - 1, i - 2, ...: 1 for the same.
        least: what must be fallen short of.
    """
    count = len(alike)
    apart = np.zeros(count)
    for i in range(1, count):
        across = [alike[b, b - a - 1] for b in range(i, min(count, i + REACH)) for a in range(max(0, b - REACH), i)]
        apart[i] = 1 - max(across)
    found = []
    for i in range(1, count):
        around = np.concatenate([apart[max(1, i - 5) : i], apart[i + 1 : i + 6]])
        if apart[i] > 1 - least and (not len(around) or apart[i] > 1.5 * float(np.median(around))):
            found.append(i)
    return found


def look(image: torch.Tensor, box: Sequence[float]) -> np.ndarray:
    """What a face and its hair look like, whatever the light: a small picture [3, 144], each channel of length 1.

    Args:
        image: one frame [H, W, 3].
        box: x, y, width, height in pixels.
    """
    height, width = image.shape[:2]
    x, y, w, h = box
    left, right = min(max(0, int(x - 0.25 * w)), width - 1), min(width, math.ceil(x + 1.25 * w))
    top, bottom = min(max(0, int(y - 0.5 * h)), height - 1), min(height, math.ceil(y + 1.25 * h))
    part = image[top : max(bottom, top + 1), left : max(right, left + 1), :3].movedim(-1, 0)[None]
    shrunk = F.interpolate(part.float().cpu(), size=(_LOOK, _LOOK), mode="bilinear", antialias=True)[0]
    small = shrunk.clamp(min=0).flatten(1).numpy()
    light = np.log(small / (small.mean(1, keepdims=True) + 1e-3) + 0.1)
    light = light - (light @ _slopes().T) @ _slopes()
    return light / (np.linalg.norm(light, axis=1, keepdims=True) + 0.005 * _LOOK)


@cache
def _slopes() -> np.ndarray:
    """An orthonormal basis [3, 144] of brightness and its two slopes."""
    y, x = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-1, 1, _LOOK)] * 2, indexing="ij"))
    return np.stack([plane / np.linalg.norm(plane) for plane in (np.ones_like(x), x, y)])


def unlike(one: np.ndarray, other: np.ndarray) -> float:
    """How different two looks [channels, n] are: 0 for the same, up to 2.

    Of the ways to pair their channels the best counts: a turned palette is the same face.

    Example:
        >>> some = np.eye(3)
        >>> unlike(some, some[[1, 2, 0]]), unlike(some, -some)
        (0.0, 1.0)
    """
    match = one @ other.T
    orders = itertools.permutations(range(len(one)))
    return 1 - max(float(match[range(len(one)), order].sum()) for order in orders) / len(one)


def least_unlike(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """How different the most similar two of some looks and others are."""
    return min(unlike(one, other) for one in some for other in others)


def somebody_else(looks: Sequence[np.ndarray]) -> list[int]:
    """At which of the looks of one place, in order of time, another person stands there.

    Example:
        >>> one, other = np.eye(6)[:3], np.eye(6)[3:]
        >>> somebody_else([one, one, one, other, other]), somebody_else([one, one, other, one])  # one is a blink
        ([3], [])
    """
    alike = np.ones((len(looks), REACH))
    for i, one in enumerate(looks):
        for back in range(min(i, REACH)):
            alike[i, back] = 1 - unlike(one, looks[i - back - 1])
    return _breaks(alike, 1 - _OTHER)
