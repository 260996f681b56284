"""Who is who: which tracks of a clip show the same person, and which of them are chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from .scenes import least_unlike
from .track import Track

Choice = Literal["all", "largest", "left to right", "by index", "like the reference"]
CHOICES: tuple[Choice, ...] = ("all", "largest", "left to right", "by index", "like the reference")

_ALIKE = 0.2
"""Looks that differ by less are one person's wherever they are: real people differ by 0.37 or more in 99 of 100."""
_NOT_OTHER = 0.55
"""Looks that differ by more are two people's: one who was hidden for nine frames differs by less in 95 of 100."""


def people(tracks: Sequence[Track]) -> list[int]:
    """Which person each track shows, counted from 0 from left to right.

    A face that was lost for longer than the tracker bridges comes back as a new track.  It is the same person where it
    looks alike, or where it begins about where the other ended, at about its size, and does not look like somebody
    else.  Behind a cut it must do both.  Across a change of light looks say little, and the place decides.

    Example:
        >>> def track(start, x):
        ...     return Track(start, np.array([[x, 0.0, 20.0, 20.0]] * 10), np.ones(10, bool))
        >>> people([track(0, 10), track(0, 90), track(15, 12)])
        [0, 1, 0]
    """
    pairs = [
        (cost, i, j)
        for i, before in enumerate(tracks)
        for j, after in enumerate(tracks)
        if (cost := _apart(before, after)) is not None
    ]
    person = list(range(len(tracks)))
    for _, i, j in sorted(pairs):
        one = [n for n, who in enumerate(person) if who == person[i]]
        other = [n for n, who in enumerate(person) if who == person[j]]
        if not any(_meet(tracks[a], tracks[b]) for a in one for b in other):
            person = [person[i] if n in other else who for n, who in enumerate(person)]
    boxes = {who: np.concatenate([t.boxes for t, p in zip(tracks, person, strict=True) if p == who]) for who in person}
    across = sorted(boxes, key=lambda who: _middle(boxes[who]))
    return [across.index(who) for who in person]


def _middle(boxes: np.ndarray) -> float:
    """Where boxes [n, 4] are from left to right."""
    return float(np.median(boxes[:, 0] + boxes[:, 2] / 2))


def _meet(one: Track, other: Track) -> bool:
    return max(one.start, other.start) < min(one.frames.stop, other.frames.stop)


def _apart(before: Track, after: Track) -> float | None:
    """How far a later track is from going on an earlier one; None where it does not."""
    gap = after.start - before.frames.stop
    if gap < 0:
        return None
    distance, growth = _way(before, after, gap)
    near = distance < 1 and growth < math.log(1.6)
    other = _unlike(before, after)
    if before.scene != after.scene:
        same = near and other is not None and other < _ALIKE
    elif other is None or before.light[1] != after.light[0]:
        same = near
    else:  # who takes a place with no frame between was parted for their looks
        same = other < _ALIKE or (near and gap > 0 and other < _NOT_OTHER)
    return min(distance, 1.0) + (other or 0.0) + 0.01 * gap if same else None


def _way(before: Track, after: Track, gap: int) -> tuple[float, float]:
    """How far a track begins from where another ended, or would be by now, in faces; and how much it grew."""
    one, other = before.boxes[-1], after.boxes[0]
    speed = (before.boxes[-1] - before.boxes[-min(5, len(before.boxes))])[:2] / max(1, min(4, len(before.boxes) - 1))
    moved = other[:2] + other[2:] / 2 - one[:2] - one[2:] / 2
    side = max(one[2:].max(), other[2:].max())
    distance = min(float(np.linalg.norm(moved - speed * ahead)) / side for ahead in (0, min(gap + 1, 4), gap + 1))
    return distance, abs(math.log(one[2:].max() / other[2:].max()))


def _unlike(before: Track, after: Track) -> float | None:
    """How the later looks of one track differ from the earlier looks of another; None where they are not known."""
    late, early = before.looks[1], after.looks[0]
    return least_unlike(late, early) if late and early else None


def most_at_once(tracks: Sequence[Track]) -> int:
    """How many faces are there in the fullest frame."""
    return max(
        (sum(frame in track.frames for track in tracks) for track in tracks for frame in track.frames), default=0
    )


def choose(
    tracks: Sequence[Track], how: Choice, index: int = 0, likeness: Sequence[float] | None = None
) -> list[Track]:
    """The tracks to work on, in order.

    Args:
        how: "all" and "left to right" give every track (by place for the latter), the others one.
        index: for "by index": which, counted from 0 from left to right.
        likeness: for "like the reference": how like the reference each track is.

    Raises:
        ValueError: an index that is not there, or likeness without values.
    """
    across = sorted(tracks, key=lambda t: _middle(t.boxes))
    if how == "all" or not tracks:
        return list(tracks)
    if how == "left to right":
        return across
    if how == "largest":
        return [max(tracks, key=lambda t: t.size)]
    if how == "by index":
        if index >= len(across):
            raise ValueError(f"There is no face {index}: {len(across)} were found, counted from 0 from left to right.")
        return [across[index]]
    if likeness is None:
        raise ValueError("Choosing by likeness needs a reference picture and a CLIP vision model.")
    return [tracks[int(np.argmax(likeness))]]
