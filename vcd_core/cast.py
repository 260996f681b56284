"""Who is where: people's places in a clip, as words, boxes, masks or tracked faces, and what share each has of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from .face.people import people
from .face.track import Faces, Track, smooth_boxes
from .schedule import keys
from .words import in_quotes

Box = tuple[float, float, float, float]  # x, y, width, height in shares of the picture

PLACES: dict[str, Box] = {
    "left": (0, 0, 1 / 2, 1), "right": (1 / 2, 0, 1 / 2, 1), "middle": (1 / 4, 0, 1 / 2, 1),
    "left third": (0, 0, 1 / 3, 1), "middle third": (1 / 3, 0, 1 / 3, 1), "right third": (2 / 3, 0, 1 / 3, 1),
    "top": (0, 0, 1, 1 / 2), "bottom": (0, 1 / 2, 1, 1 / 2), "everywhere": (0, 0, 1, 1),
}  # fmt: skip
AWAY = "away"
BODY = (3.2, 0.7, 8.0)
"""A person around a face: how wide, how far up and how far down, in the face's width and height."""


def read_places(text: str, names: Sequence[str], frames: int) -> np.ndarray:
    """Where people are, one line for each, in their order; without any text side by side.

    A line is a place, or keys as ``0: left, 15: right`` between which the place moves in a straight line.  A place is a
    word of ``PLACES``, ``away``, or x, y, width and height as shares of the picture, ``0.1 0 0.4 1`` or ``10% 0 40%
    100%``.

    Args:
        names: of the people, for messages.

    Returns:
        [people, F, 4] x, y, width, height in shares; NaN where a person is away.  F is 1 where nobody moves.

    Raises:
        ValueError: a line that cannot be read or names a frame twice, too few or too many of them, or a place that
            leaves the picture.

    Example:
        >>> read_places("0: left, 2: right\\naway", ["me", "her"], 3)[0, :, 0].tolist()
        [0.0, 0.25, 0.5]
    """
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not lines:
        count = len(names)
        return np.array([[(i / count, 0, 1 / count, 1)] for i in range(count)], float)
    if len(lines) != len(names):
        who = (
            f"{names[len(lines)]} has none"
            if len(lines) < len(names)
            else f"{in_quotes(lines[len(names)])} is nobody's"
        )
        raise ValueError(f"There are {len(names)} people and {len(lines)} places, one a line: {who}.")
    moving = [_line(line, name, frames) for line, name in zip(lines, names, strict=True)]
    if all((boxes[1:] == boxes[:1]).all() for boxes in map(np.nan_to_num, moving)):
        moving = [boxes[:1] for boxes in moving]
    return np.stack(moving)


def _line(line: str, name: str, frames: int) -> np.ndarray:
    """A person's boxes [F, 4]."""
    found = keys(line, numbers=True) or [(0, line)]
    at, places = zip(*sorted((frame, _place(value, name)) for frame, value in found), strict=True)
    if twice := [frame for frame, following in itertools.pairwise(at) if frame == following]:
        raise ValueError(f"The place of {name} has several keys at frame {twice[0]} ({in_quotes(line)}); keep one.")
    boxes, out = np.array(places, float), np.empty((frames, 4))
    for frame in range(frames):
        after = min(int(np.searchsorted(at, frame, side="right")), len(at) - 1)
        before = max(0, int(np.searchsorted(at, frame, side="right")) - 1)
        if np.isnan(boxes[[before, after]]).any() or at[after] <= at[before]:
            out[frame] = boxes[before]
        else:
            share = min(1.0, max(0.0, (frame - at[before]) / (at[after] - at[before])))
            out[frame] = (1 - share) * boxes[before] + share * boxes[after]
    return out


def _place(text: str, name: str) -> Box:
    """A place as it is written."""
    words = " ".join(text.lower().replace("centre", "middle").replace("center", "middle").split())
    if words == AWAY:
        return (np.nan,) * 4
    if words in PLACES:
        return PLACES[words]
    parts = words.replace(",", " ").split()
    try:
        x, y, width, height = (float(part[:-1]) / 100 if part.endswith("%") else float(part) for part in parts)
    except ValueError:
        known = ", ".join([*PLACES, AWAY])
        raise ValueError(
            f"The place of {name} is {in_quotes(text)}; expected one of {known}, or x, y, width and height as "
            "'0.1 0 0.4 1'."
        ) from None
    if not (x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 1.0001 and y + height <= 1.0001):
        raise ValueError(
            f"The place of {name}, {in_quotes(text)}, leaves the picture: x, y, width and height are shares of it, "
            "from 0 to 1."
        )
    return x, y, width, height


def places_of(faces: Faces, names: Sequence[str]) -> np.ndarray:
    """Where people are by their tracked faces, from left to right: boxes [people, F, 4] as :func:`read_places` gives
    them, around head and body; NaN in frames without the face.

    Raises:
        ValueError: fewer people were tracked than there are names.
    """
    who = people(faces.tracks)
    found = max(who, default=-1) + 1
    if found < len(names):
        raise ValueError(
            f"{found} people were tracked, from left to right, and there is nobody for {names[found]}. Lower Face VCD "
            "Track's threshold, or write places."
        )
    out = np.full((len(names), faces.frames, 4), np.nan)
    for track, person in zip(faces.tracks, who, strict=True):
        if person < len(names):
            out[person, track.start : track.start + len(track.boxes)] = _bodies(track, faces.width, faces.height)
    return out


def _bodies(track: Track, width: int, height: int) -> np.ndarray:
    """Boxes [n, 4] in shares around the bodies below the faces of a track, within the picture."""
    wide, up, down = BODY
    x, y, w, h = smooth_boxes(track.boxes).T
    middle = x + w / 2
    left, right = (np.clip(middle + sign * w * wide / 2, 0, width) / width for sign in (-1, 1))
    top, bottom = np.clip(y - up * h, 0, height) / height, np.clip(y + h + down * h, 0, height) / height
    return np.stack([left, top, right - left, bottom - top], 1)


def masks_of(boxes: np.ndarray, height: int, width: int, softness: float = 0.0) -> torch.Tensor:
    """Places as masks [people, F, H, W] in 0..1.

    Args:
        boxes: [people, F, 4] in shares; NaN: nowhere.
        softness: how wide the border's slope is, as a share of the picture's shorter side.  At the picture's edge there
            is none.

    Example:
        >>> masks_of(np.array([[(0, 0, 0.5, 1)]]), 1, 4)[0, 0, 0].tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    slope = max(softness * min(height, width), 1e-6)
    x, y, w, h = (torch.from_numpy(boxes[..., i]).float()[..., None] for i in range(4))
    across = _inside(torch.arange(width) + 0.5, x * width, (x + w) * width, width, slope)
    down = _inside(torch.arange(height) + 0.5, y * height, (y + h) * height, height, slope)
    return (down[..., :, None] * across[..., None, :]).nan_to_num()


def _inside(at: torch.Tensor, first: torch.Tensor, end: torch.Tensor, side: int, slope: float) -> torch.Tensor:
    """How far positions lie within a span, 1/2 at its ends, but 1 where these are the picture's own."""
    first = torch.where(first <= 0.5, first - side - slope, first)
    end = torch.where(end >= side - 0.5, end + side + slope, end)
    return (((at - first) / slope + 0.5).clamp(0, 1)) * (((end - at) / slope + 0.5).clamp(0, 1))


def shares(masks: torch.Tensor) -> torch.Tensor:
    """What share each person has of each place, and what is left for everybody: a partition of unity.

    Where places overlap, people share them as their masks are to each other.

    Args:
        masks: [people, ..., H, W], at least 0.

    Returns:
        [people + 1, ..., H, W], the last is what is nobody's own; the sum is 1 everywhere.

    Example:
        >>> shares(torch.tensor([[[1.0, 1.0, 0.25]], [[0.0, 1.0, 0.25]]])).tolist()
        [[[1.0, 0.5, 0.25]], [[0.0, 0.5, 0.25]], [[0.0, 0.0, 0.5]]]
    """
    total = masks.sum(0)
    own = masks / total.clamp(min=1)
    return torch.cat([own, (1 - own.sum(0, keepdim=True)).clamp(min=0)])


def at_size(masks: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Masks [..., H, W] as means over the cells of another size."""
    if masks.shape[-2:] == (height, width):
        return masks
    flat = masks.reshape(-1, 1, *masks.shape[-2:])
    return F.interpolate(flat, (height, width), mode="area").reshape(*masks.shape[:-2], height, width)


def contrasted(weights: torch.Tensor, nobodys: int, contrast: float) -> torch.Tensor:
    """Weights that lead away from what is somebody else's; their sum stays.

    A person's attention A_i becomes ``A_i + contrast * (A_i - mean_{j != i} A_j)``.

    Args:
        weights: [entries, ..., positions], the first ``nobodys`` of what is nobody's.

    Example:
        >>> contrasted(torch.tensor([[1.0, 0.25], [0.0, 0.75]]), 0, 0.5).tolist()
        [[1.5, 0.0], [-0.5, 1.0]]
    """
    people = weights[nobodys:]
    if len(people) < 2 or not contrast:
        return weights
    others = (people.sum(0, keepdim=True) - people) / (len(people) - 1)
    return torch.cat([weights[:nobodys], people + contrast * (people - others)])


def parting(people: torch.Tensor, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Channels [n, positions, people + 1] of queries and of keys whose products lower scores between two people.

    The product at places q and k is ``-apart * sum_{i != j} w_i(q) w_j(k)``: nothing between a person's own places and
    for what is nobody's.

    Args:
        people: [n, people, positions], the share of each at each place.

    Example:
        >>> asked, answered = parting(torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]]), 3.0)
        >>> (asked @ answered.mT)[0].add(0).tolist()
        [[0.0, -3.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    people = people.mT
    somebody = people.sum(2, keepdim=True)
    return torch.cat([people, somebody], 2), torch.cat([people, -somebody], 2) * apart
