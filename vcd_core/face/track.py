"""Detections to tracks: who is who from frame to frame, short gaps bridged, paths smoothed without lag.

A track is one face over consecutive frames.  Linking is an optimal assignment between the tracks' predicted places and
the detections of the next frame, by overlap, distance, size and look, so that two people who cross keep their names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from .detect import Face, iou

Choice = Literal["all", "largest", "left to right", "by index", "like the reference"]
CHOICES: tuple[Choice, ...] = ("all", "largest", "left to right", "by index", "like the reference")
_FAR = 1e6
WEAK = 2 / 3
"""The share of the threshold at which a detection goes on a track that it could not begin."""
_ALIKE = 0.15
"""The most that looks of one person differ across a cut: of drawn people 9 of 10 in one scene do, no two persons."""


@dataclass
class Track:
    """One face over consecutive frames, from ``start`` on."""

    start: int
    boxes: np.ndarray  # [n, 4] x, y, width, height in pixels; bridged frames are interpolated
    seen: np.ndarray  # [n] bool: whether the face was detected in that frame
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scene: int = 0  # counted from the clip's first, by its cuts
    look: np.ndarray | None = None  # of the face as it was last seen, see :func:`look`

    @property
    def frames(self) -> range:
        return range(self.start, self.start + len(self.boxes))

    @property
    def size(self) -> float:
        """The median side of the face."""
        return float(np.median(self.boxes[:, 2:].max(1)))


@dataclass
class Faces:
    """The tracks of a clip (the socket VCD_FACES)."""

    frames: int
    height: int
    width: int
    tracks: list[Track]

    def check(self, images: torch.Tensor) -> None:
        """Raise ``ValueError`` unless these are the faces of a clip of this shape."""
        if tuple(images.shape[:3]) != (self.frames, self.height, self.width):
            f, h, w = images.shape[:3]
            raise ValueError(
                f"The faces belong to a clip of {self.frames} frames of {self.width}x{self.height}; these images are "
                f"{f} frames of {w}x{h}. Connect the images that Face VCD Track saw."
            )

    def without_face(self) -> int:
        """How many frames no track covers."""
        covered = {i for track in self.tracks for i in track.frames}
        return self.frames - len(covered)


def link(
    detections: Sequence[Sequence[Face]],
    looks: Sequence[Sequence[np.ndarray]] | None = None,
    cuts: Sequence[int] = (),
    max_gap: int = 8,
    min_length: int = 3,
    sure: float = 0.75,
    threshold: float = 0.0,
) -> list[Track]:
    """Link the detections of a clip into tracks, the longest-seen first.

    Args:
        detections: faces of each frame.
        looks: a vector for each detection (see :func:`look`), to tell people apart where their ways cross.
        cuts: frames that begin a new scene; no track goes across.
        max_gap: a face may be missing for this many frames and still be the same track.
        min_length: tracks detected in fewer frames are dropped (never more than the clip has).
        sure: a track without a single score of this must have been seen in eight frames (half of a shorter clip) and in
            most
            of its own: a hand looks like a face for a moment. 0 takes every detection at its word.
        threshold: detections of a lower score go on a track, at either end too, and count for none: a face that turns
            away or is half out of the picture is still the one that was seen before (as in ByteTrack, arXiv
            2110.06864).

    Example:
        >>> moving = [[Face((10.0 + i, 20.0, 30.0, 30.0), 0.9)] for i in range(6)]
        >>> moving[3] = []
        >>> [(t.frames, t.boxes[3, 0]) for t in link(moving)]
        [(range(0, 6), np.float64(13.0))]
    """
    from scipy.optimize import linear_sum_assignment

    open_tracks: list[_Path] = []
    done: list[_Path] = []
    for frame, faces in enumerate(detections):
        if frame in cuts:
            done, open_tracks = done + open_tracks, []
        done += [path for path in open_tracks if frame - path.last > max_gap + 1]
        open_tracks = [path for path in open_tracks if frame - path.last <= max_gap + 1]
        views = looks[frame] if looks else [None] * len(faces)
        cost = np.array([[path.cost(f, v, frame) for f, v in zip(faces, views, strict=True)] for path in open_tracks])
        taken: set[int] = set()
        if cost.size:
            for row, column in zip(*linear_sum_assignment(cost), strict=True):
                # what was given by a box or mask alone in its frame is the one thing that is followed, however far it
                # went
                alone = sure == 0 and cost.shape == (1, 1)
                if alone or cost[row, column] < _FAR:
                    open_tracks[row].add(frame, faces[column], views[column])
                    taken.add(column)
        for i, face in enumerate(faces):
            if i not in taken:
                path = _Path(sum(cut <= frame for cut in cuts))
                path.add(frame, face, views[i])
                open_tracks.append(path)
    paths = done + open_tracks

    def lasts(path: _Path) -> bool:
        strong = [at for at, score in zip(path.at, path.scores, strict=True) if score >= threshold]
        if len(strong) < max(1, min(min_length, len(detections))):
            return False
        steady = 2 * len(strong) >= strong[-1] - strong[0] + 1
        return max(path.scores) >= sure or (steady and len(strong) >= min(8, (len(detections) + 1) // 2))

    return sorted((path.track() for path in paths if lasts(path)), key=lambda t: (-int(t.seen.sum()), t.start))


class _Path:
    """A track in the making."""

    def __init__(self, scene: int) -> None:
        self.scene = scene
        self.at: list[int] = []
        self.boxes: list[np.ndarray] = []
        self.scores: list[float] = []
        self.look: np.ndarray | None = None

    @property
    def last(self) -> int:
        return self.at[-1]

    def add(self, frame: int, face: Face, view: np.ndarray | None) -> None:
        self.at.append(frame)
        self.boxes.append(np.array(face.box, float))
        self.scores.append(face.score)
        if view is not None:
            self.look = view if self.look is None else 0.8 * self.look + 0.2 * view

    def predicted(self, frame: int) -> np.ndarray:
        """The box by steady motion over the last detections, slowing down the longer the face is lost."""
        box = self.boxes[-1].copy()
        if len(self.at) >= 2:
            first = max(-5, -len(self.at))
            speed = (_centre(self.boxes[-1]) - _centre(self.boxes[first])) / (self.at[-1] - self.at[first])
            box[:2] += speed * min(frame - self.last, 4)
        return box

    def cost(self, face: Face, view: np.ndarray | None, frame: int) -> float:
        """How unlike this detection is to the track's next place; ``_FAR`` where it cannot be the same face."""
        guess, box = self.predicted(frame), np.array(face.box, float)
        side = max(guess[2:].max(), box[2:].max())
        distance = float(np.linalg.norm(_centre(guess) - _centre(box))) / side
        growth = abs(math.log(box[2:].max() / guess[2:].max()))
        waited = frame - self.last
        if distance > 0.7 + 0.25 * min(waited, 6) or growth > math.log(1.6) + 0.05 * waited:
            return _FAR
        return distance + (1 - iou(tuple(guess), face.box)) + growth + 3.0 * unlike(view, self.look)

    def track(self) -> Track:
        start, count = self.at[0], self.at[-1] - self.at[0] + 1
        seen = np.zeros(count, bool)
        seen[np.array(self.at) - start] = True
        known, boxes = np.array(self.at) - start, np.array(self.boxes)
        frames = np.arange(count)
        filled = np.stack([np.interp(frames, known, boxes[:, i]) for i in range(4)], 1)
        scores = np.zeros(count)
        scores[known] = self.scores
        return Track(start, filled, seen, scores, self.scene, self.look)


def follow(images: torch.Tensor, detections: Sequence[Sequence[Face]], **counts: Any) -> list[Track]:
    """The tracks of a clip IMAGE [F, H, W, 3]: :func:`link` with what its faces look like and where its scenes begin.

    Args:
        detections: faces of each frame, down to ``WEAK`` times the threshold.
        counts: ``max_gap``, ``min_length``, ``sure`` and ``threshold`` of :func:`link`.
    """
    looks = [[look(image, face.box) for face in faces] for image, faces in zip(images, detections, strict=True)]
    return link(detections, looks, scene_cuts(images), **counts)


def look(image: torch.Tensor, box: Sequence[float]) -> np.ndarray:
    """What a face and its hair look like: a small picture of them [192], without its mean.

    Args:
        image: one frame [H, W, 3].
        box: x, y, width, height in pixels.
    """
    height, width = image.shape[:2]
    x, y, w, h = box
    left, right = min(max(0, int(x - 0.25 * w)), width - 1), min(width, math.ceil(x + 1.25 * w))
    top, bottom = min(max(0, int(y - 0.5 * h)), height - 1), min(height, math.ceil(y + 1.25 * h))
    part = image[top : max(bottom, top + 1), left : max(right, left + 1), :3].movedim(-1, 0)[None]
    small = torch.nn.functional.adaptive_avg_pool2d(part.float(), 8).flatten()
    return (small - 0.5).cpu().numpy()


def unlike(one: np.ndarray | None, other: np.ndarray | None) -> float:
    """How different two looks are: 0 for the same, up to 2; 0 also where one is not known."""
    if one is None or other is None:
        return 0.0
    return 1 - float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other) + 1e-9))


def scene_cuts(images: torch.Tensor, threshold: float = 0.12) -> list[int]:
    """Frames that begin a new scene: a jump of the whole picture that stands out from the motion around it.

    Args:
        images: IMAGE [F, H, W, 3].
        threshold: the least mean change of a 32x32 version, 0..1.
    """
    if len(images) < 2:
        return []
    small = torch.cat(
        [torch.nn.functional.adaptive_avg_pool2d(part[..., :3].movedim(-1, 1).float(), 32) for part in images.split(16)]
    )
    change = (small[1:] - small[:-1]).abs().mean((1, 2, 3)).tolist()
    cuts = []
    for i, jump in enumerate(change):
        others = change[:i] + change[i + 1 :]
        if jump > threshold and jump > 4 * float(np.median(others or [0.0])):
            cuts.append(i + 1)
    return cuts


def smooth(path: np.ndarray, strength: float = 0.85) -> np.ndarray:
    """A path [n, d] filtered forward and backward (Butterworth, 2nd order), so that it does not lag.

    ``strength`` 0 keeps the path; towards 1 the slowest motion alone is left.  What is filtered is the path's distance
    from its line of best fit, so a steady motion is followed exactly at any length.

    Example:
        >>> steady = np.arange(5.0)[:, None] * 16
        >>> float(np.abs(smooth(steady) - steady).max()) < 1e-9
        True
    """
    if strength <= 0 or len(path) < 4:
        return path.copy()
    from scipy.signal import butter, filtfilt

    b, a = butter(2, max(0.02, 0.6 * (1 - strength) + 0.02))
    padding = min(len(path) - 1, 24)
    line = _line(path)
    return line + filtfilt(b, a, path - line, axis=0, padtype="odd", padlen=padding)


def _line(path: np.ndarray) -> np.ndarray:
    """The straight line [n, d] of least squares through a path."""
    at = np.arange(len(path)) - (len(path) - 1) / 2
    slope = at @ path / (at @ at)
    return path.mean(0) + at[:, None] * slope


def smooth_boxes(boxes: np.ndarray, strength: float = 0.85) -> np.ndarray:
    """Boxes [n, 4] (x, y, width, height) whose centres are smoothed by ``strength`` and sizes by at least 0.5."""
    sides = smooth(boxes[:, 2:], max(strength, 0.5))
    return np.concatenate([smooth(boxes[:, :2] + boxes[:, 2:] / 2, strength) - sides / 2, sides], 1)


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
    across = sorted(tracks, key=lambda t: float(np.median(_centres(t.boxes)[:, 0])))
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


def people(tracks: Sequence[Track]) -> list[int]:
    """Which person each track shows, counted from 0 from left to right.

    A face that was lost for longer than the tracker bridges comes back as a new track: one that begins about where
    another ended, at about its size, is the same person. Behind a cut somebody else may stand there, so it must look
    alike, too.

    Example:
        >>> def track(start, x):
        ...     return Track(start, np.array([[x, 0.0, 20.0, 20.0]] * 10), np.ones(10, bool))
        >>> people([track(0, 10), track(0, 90), track(15, 12)])
        [0, 1, 0]
    """
    pairs = []
    for i, before in enumerate(tracks):
        for j, after in enumerate(tracks):
            gap = after.start - before.frames.stop
            if gap < 0 or (before.scene != after.scene and not _alike(before, after)):
                continue
            one, other = before.boxes[-1], after.boxes[0]
            side = max(one[2:].max(), other[2:].max())
            distance = float(np.linalg.norm(_centre(one) - _centre(other))) / side
            if distance < 1 and abs(math.log(one[2:].max() / other[2:].max())) < math.log(1.6):
                pairs.append((distance + 0.01 * gap, i, j))
    earlier: dict[int, int] = {}
    for _, i, j in sorted(pairs):
        if i not in earlier.values() and j not in earlier:
            earlier[j] = i
    first = list(range(len(tracks)))
    for j in sorted(earlier, key=lambda j: tracks[j].start):
        first[j] = first[earlier[j]]
    boxes = {one: np.concatenate([t.boxes for t, f in zip(tracks, first, strict=True) if f == one]) for one in first}
    across = sorted(boxes, key=lambda one: float(np.median(_centres(boxes[one])[:, 0])))
    return [across.index(one) for one in first]


def _alike(one: Track, other: Track) -> bool:
    return one.look is not None and other.look is not None and unlike(one.look, other.look) < _ALIKE


def most_at_once(tracks: Sequence[Track]) -> int:
    """How many faces are there in the fullest frame."""
    return max(
        (sum(frame in track.frames for track in tracks) for track in tracks for frame in track.frames), default=0
    )


def boxes_of(faces: Faces) -> list[list[dict[str, float | str]]]:
    """The smoothed tracks as ComfyUI's BOUNDING_BOX: for each frame a list of x, y, width, height, label and score."""
    frames: list[list[dict[str, float | str]]] = [[] for _ in range(faces.frames)]
    for number, track in enumerate(faces.tracks):
        boxes = smooth_boxes(track.boxes)
        for i, frame in enumerate(track.frames):
            x, y, w, h = (float(v) for v in boxes[i])
            score = float(track.scores[i]) if len(track.scores) else 1.0
            frames[frame].append({"x": x, "y": y, "width": w, "height": h, "label": f"face {number}", "score": score})
    return frames


def masks_of(faces: Faces, factor: float = 1.6) -> torch.Tensor:
    """A mask [F, H, W] of all tracked faces, each smoothed box enlarged to ``factor`` times its side (hair and
    neck)."""
    masks = torch.zeros(faces.frames, faces.height, faces.width)
    for track in faces.tracks:
        for frame, (x, y, w, h) in zip(track.frames, smooth_boxes(track.boxes), strict=True):
            wide, tall = factor * w, factor * h
            left, top = max(0, round(x + w / 2 - wide / 2)), max(0, round(y + h / 2 - tall / 2))
            right, bottom = max(0, round(x + w / 2 + wide / 2)), max(0, round(y + h / 2 + tall / 2))
            masks[frame, top:bottom, left:right] = 1.0
    return masks


def from_boxes(boxes: object, frames: int, height: int, width: int) -> list[list[Face]]:
    """ComfyUI's BOUNDING_BOX (a list for each frame, or one list for a single frame) as detections.

    Args:
        frames, height, width: those of the clip.

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
            found.append(
                [
                    Face(
                        (float(b["x"]), float(b["y"]), float(b["width"]), float(b["height"])),
                        float(b.get("score", 1.0)),
                    )
                    for b in frame
                ]
            )
        except (TypeError, KeyError) as error:
            raise ValueError("A bounding box needs x, y, width and height (in pixels).") from error
    for face in (face for frame in found for face in frame):
        x, y, w, h = face.box
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise ValueError(
                f"A bounding box at {x:g}, {y:g} ({w:g}x{h:g}) lies outside of the {width}x{height} pictures. Connect "
                f"the "
                "images that the detector saw."
            )
    return [[face for face in frame if face.box[2] > 0 and face.box[3] > 0] for frame in found]


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


def _centre(box: np.ndarray) -> np.ndarray:
    return box[:2] + box[2:] / 2


def _centres(boxes: np.ndarray) -> np.ndarray:
    return boxes[:, :2] + boxes[:, 2:] / 2
