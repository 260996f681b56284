"""Detections to tracks: who is who from frame to frame, short gaps bridged, paths smoothed without lag.

A track is one face over consecutive frames.  Linking is an optimal assignment between the tracks' predicted places and
the detections of the next frame, by overlap, distance, size and look, so that two people who cross keep their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from .check import SURE, is_face, second_look, shows
from .detect import Face, iou
from .given import from_boxes as from_boxes
from .given import from_masks as from_masks
from .people import CHOICES as CHOICES
from .people import Choice as Choice
from .people import choose as choose
from .people import most_at_once as most_at_once
from .people import people as people
from .people import visible as visible
from .scenes import changes, look, somebody_else, unlike
from .scenes import scene_cuts as scene_cuts
from .smooth import smooth as smooth
from .smooth import smooth_boxes as smooth_boxes

_FAR = 1e6
WEAK = 2 / 3
"""The share of the threshold at which a detection goes on a track that it could not begin."""
_LOOKS = 5  # a face turns and blinks: it is compared with as many of its last looks
_CHECKED = 16  # frames of a track, evenly spaced, that are looked at again to say whether it is a face


@dataclass
class Track:
    """One face over consecutive frames, from ``start`` on."""

    start: int
    boxes: np.ndarray  # [n, 4] x, y, width, height in pixels; bridged frames are interpolated
    seen: np.ndarray  # [n] bool: whether the face was detected in that frame
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scene: int = 0  # counted from the clip's first, by its cuts
    look: np.ndarray | None = None  # of the face as it was last seen, see :func:`look`
    looks: tuple[list[np.ndarray], list[np.ndarray]] = field(default_factory=lambda: ([], []))  # the first and last few
    light: tuple[int, int] = (0, 0)  # how often the light changed in the clip up to the first frame and up to the last
    visible: np.ndarray | None = None  # [n] bool: whether it may be pasted, see :func:`visible`; None for everywhere

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
    lights: Sequence[int] = (),
) -> list[Track]:
    """Link the detections of a clip into tracks, the longest-seen first.

    Args:
        detections: faces of each frame.
        looks: a vector for each detection (see :func:`look`), to tell people apart where their ways cross, and where one
            takes the other's place.
        cuts: frames that begin a new scene; no track goes across.
        max_gap: a face may be missing for this many frames and still be the same track.
        min_length: tracks detected in fewer frames are dropped (never more than the clip has).
        sure: a track without a single score of this must have been seen in eight frames (half of a shorter clip) and in most
            of its own: a hand looks like a face for a moment. 0 takes every detection at its word, and one alone in its frame
            goes on the one track there is, however far it went.
        threshold: detections of a lower score go on a track, at either end too, and count for none: a face that turns away
            or is half out of the picture is still the one that was seen before (as in ByteTrack, arXiv 2110.06864).
        lights: frames before which the light changed: looks of before and behind are not compared.

    Example:
        >>> moving = [[Face((10.0 + i, 20.0, 30.0, 30.0), 0.9)] for i in range(6)]
        >>> moving[3] = []
        >>> [(t.frames, t.boxes[3, 0]) for t in link(moving)]
        [(range(0, 6), np.float64(13.0))]
    """
    paths = _paths(detections, looks, cuts, lights, max_gap, sure <= 0)
    lasts = partial(_lasts, count=len(detections), min_length=min_length, sure=sure, threshold=threshold)
    return _tracks([path for path in paths if lasts(path)], lights)


def _paths(
    detections: Sequence[Sequence[Face]],
    looks: Sequence[Sequence[np.ndarray]] | None,
    cuts: Sequence[int],
    lights: Sequence[int],
    max_gap: int,
    given: bool,
) -> list[_Path]:
    """What may become tracks: see :func:`link`."""
    from scipy.optimize import linear_sum_assignment

    open_paths: list[_Path] = []
    done: list[_Path] = []
    for frame, faces in enumerate(detections):
        if frame in cuts:
            done, open_paths = done + open_paths, []
        done += [path for path in open_paths if frame - path.last > max_gap + 1]
        open_paths = [path for path in open_paths if frame - path.last <= max_gap + 1]
        views = looks[frame] if looks else [None] * len(faces)
        cost = np.array(
            [[path.cost(f, v, frame, lights) for f, v in zip(faces, views, strict=True)] for path in open_paths]
        )
        # what was given by a box or mask alone in its frame is the one thing that is followed, however far it went
        alone = given and cost.shape == (1, 1)
        taken: set[int] = set()
        if cost.size:
            for row, column in zip(*linear_sum_assignment(cost), strict=True):
                if alone or cost[row, column] < _FAR:
                    open_paths[row].add(frame, faces[column], views[column])
                    taken.add(column)
        for i, face in enumerate(faces):
            if i not in taken:
                open_paths.append(_Path(sum(cut <= frame for cut in cuts)))
                open_paths[-1].add(frame, face, views[i])
    paths = done + open_paths
    return paths if given else [part for path in paths for part in path.people(lights)]


def _lasts(path: _Path, count: int, min_length: int, sure: float, threshold: float) -> bool:
    """Whether a path of a clip of ``count`` frames is a track."""
    strong = [at for at, score in zip(path.at, path.scores, strict=True) if score >= threshold]
    if len(strong) < max(1, min(min_length, count)):
        return False
    steady = 2 * len(strong) >= strong[-1] - strong[0] + 1
    return max(path.scores) >= sure or (steady and len(strong) >= min(8, (count + 1) // 2))


def _tracks(paths: Sequence[_Path], lights: Sequence[int]) -> list[Track]:
    tracks = sorted((path.track(lights) for path in paths), key=lambda t: (-int(t.seen.sum()), t.start))
    for track, shown in zip(tracks, visible(tracks), strict=True):
        track.visible = shown
    return tracks


class _Path:
    """A track in the making."""

    def __init__(self, scene: int) -> None:
        self.scene = scene
        self.at: list[int] = []
        self.boxes: list[np.ndarray] = []
        self.scores: list[float] = []
        self.looks: list[np.ndarray | None] = []

    @property
    def last(self) -> int:
        return self.at[-1]

    def add(self, frame: int, face: Face, view: np.ndarray | None) -> None:
        self.at.append(frame)
        self.boxes.append(np.array(face.box, float))
        self.scores.append(face.score)
        self.looks.append(view)

    def part(self, kept: Sequence[int]) -> _Path:
        """The path of some of its detections, by their numbers."""
        part = _Path(self.scene)
        for name in ("at", "boxes", "scores", "looks"):
            values = getattr(self, name)
            setattr(part, name, [values[i] for i in kept])
        return part

    def parts(self, kept: Sequence[int], max_gap: int) -> list[_Path]:
        """Its paths where only some of its detections are taken: gaps of more than ``max_gap`` frames part them."""
        ends = [n for n in range(1, len(kept)) if self.at[kept[n]] - self.at[kept[n - 1]] > max_gap + 1]
        cut = zip([0, *ends], [*ends, len(kept)], strict=True)
        return [self.part(kept[first:end]) for first, end in cut if end > first]

    def people(self, lights: Sequence[int]) -> list[_Path]:
        """Its paths where somebody else takes the place of who was there, under the same light."""
        looks = [look for look in self.looks if look is not None]
        if len(looks) < len(self.looks):
            return [self]
        ends = [i for i in somebody_else(looks) if not _between(lights, self.at[i - 1], self.at[i])]
        numbers = list(range(len(looks)))
        return [self.part(numbers[a:b]) for a, b in zip([0, *ends], [*ends, len(looks)], strict=True)]

    def predicted(self, frame: int) -> np.ndarray:
        """The box by steady motion over the last detections, slowing down the longer the face is lost."""
        box = self.boxes[-1].copy()
        if len(self.at) >= 2:
            first = max(-5, -len(self.at))
            speed = (_centre(self.boxes[-1]) - _centre(self.boxes[first])) / (self.at[-1] - self.at[first])
            box[:2] += speed * min(frame - self.last, 4)
        return box

    def cost(self, face: Face, view: np.ndarray | None, frame: int, lights: Sequence[int]) -> float:
        """How unlike this detection is to the track's next place; ``_FAR`` where it cannot be the same face."""
        guess, box = self.predicted(frame), np.array(face.box, float)
        side = max(guess[2:].max(), box[2:].max())
        distance = float(np.linalg.norm(_centre(guess) - _centre(box))) / side
        growth = abs(math.log(box[2:].max() / guess[2:].max()))
        waited = frame - self.last
        if distance > 0.7 + 0.25 * min(waited, 6) or growth > math.log(1.6) + 0.05 * waited:
            return _FAR
        lit = _between(lights, self.last, frame)
        other = 0.0 if lit or view is None else min(unlike(view, look) for look in self.looks[-_LOOKS:])
        return distance + (1 - iou(tuple(guess), face.box)) + growth + 3.0 * other

    def track(self, lights: Sequence[int] = ()) -> Track:
        start, count = self.at[0], self.at[-1] - self.at[0] + 1
        known, boxes = np.array(self.at) - start, np.array(self.boxes)
        seen, scores = np.zeros(count, bool), np.zeros(count)
        seen[known], scores[known] = True, self.scores
        frames = np.arange(count)
        filled = np.stack([np.interp(frames, known, boxes[:, i]) for i in range(4)], 1)
        looks = [look for look in self.looks if look is not None]
        light = (_between(lights, -1, self.at[0]), _between(lights, -1, self.last))
        ends = (looks[:_LOOKS], looks[-_LOOKS:])
        return Track(start, filled, seen, scores, self.scene, self.looks[-1], ends, light)


def _between(lights: Sequence[int], before: int, frame: int) -> int:
    """How often the light changed behind one frame and up to another."""
    return sum(before < light <= frame for light in lights)


def follow(
    images: torch.Tensor,
    detections: Sequence[Sequence[Face]],
    max_gap: int = 8,
    min_length: int = 3,
    sure: float = 0.75,
    threshold: float = 0.0,
    device: torch.device | str = "cpu",
    on_frame: Callable[[], object] = lambda: None,
) -> list[Track]:
    """The tracks of a clip IMAGE [F, H, W, 3]: :func:`link` with what its faces look like and where its scenes begin.

    Unless ``sure`` is 0, what the detector found gets a second look (:mod:`check`): what is no face is left out, and so are
    the frames in which a face has turned away.

    Args:
        detections: faces of each frame, down to ``WEAK`` times the threshold.
        max_gap, min_length, sure, threshold: as for :func:`link`.
        device: where the second look runs.
        on_frame: called after each frame and each second look; may raise to stop.
    """
    cuts, lights = changes(images, on_frame)
    looks = [[look(image, face.box) for face in faces] for image, faces in zip(images, detections, strict=True)]
    paths = _paths(detections, looks, cuts, lights, max_gap, sure <= 0)
    lasts = partial(_lasts, count=len(detections), min_length=min_length, sure=sure, threshold=threshold)
    paths = [path for path in paths if lasts(path)]
    if sure > 0:
        again = partial(second_look, images, device=device, on_frame=on_frame)
        paths = [part for path in paths for part in _faces_of(path, max_gap, again) if lasts(part)]
    return _tracks(paths, lights)


def _faces_of(path: _Path, max_gap: int, again: Callable[..., tuple[np.ndarray, np.ndarray]]) -> list[_Path]:
    """What of a path shows a face at a second look."""
    scores, boxes, at = np.array(path.scores), np.array(path.boxes), np.array(path.at)
    some = np.unique(np.linspace(0, len(at) - 1, min(len(at), _CHECKED)).round().astype(int))
    second = scores.copy()
    second[some], matched = again(at[some], boxes[some])
    if not is_face(scores, matched, float(np.median(boxes[:, 2:].max(1)))):
        return []
    unsure = np.setdiff1d(np.flatnonzero(scores < SURE), some)
    if len(unsure):
        second[unsure] = again(at[unsure], boxes[unsure])[0]
    return path.parts(np.flatnonzero(shows(scores, second)).tolist(), max_gap)


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
    """A mask [F, H, W] of all tracked faces, each smoothed box enlarged to ``factor`` times its side (hair and neck)."""
    masks = torch.zeros(faces.frames, faces.height, faces.width)
    for track in faces.tracks:
        for frame, (x, y, w, h) in zip(track.frames, smooth_boxes(track.boxes), strict=True):
            wide, tall = factor * w, factor * h
            left, top = max(0, round(x + w / 2 - wide / 2)), max(0, round(y + h / 2 - tall / 2))
            right, bottom = max(0, round(x + w / 2 + wide / 2)), max(0, round(y + h / 2 + tall / 2))
            masks[frame, top:bottom, left:right] = 1.0
    return masks


def _centre(box: np.ndarray) -> np.ndarray:
    return box[:2] + box[2:] / 2
