"""Detections to tracks: who is who from frame to frame, short gaps bridged, paths smoothed without lag.

A track is one face over consecutive frames.  Linking is an optimal assignment between the tracks' predicted places and
the detections of the next frame, by overlap, distance, size and look, so that two people who cross keep their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from .check import SURE, is_face, second_look, shows, surely_a_face
from .detect import Face, iou
from .scenes import changes, least_unlike, look, somebody_else
from .smooth import smooth_boxes

_FAR = 1e6
WEAK = 2 / 3
"""The share of the threshold at which a detection goes on a track that it could not begin."""
TWICE = 0.7
"""Of two detections in a frame that overlap by more than this (intersection over union) the better one counts."""
_LOOKS = 5  # a face turns and blinks: it is compared with as many of its last looks
_CHECKED = 16  # frames, evenly spaced, that are looked at again: of a track, and of those in which it is unsure


@dataclass
class Track:
    """One face over consecutive frames, from ``start`` on."""

    start: int
    boxes: np.ndarray  # [n, 4] x, y, width, height in pixels; bridged frames are interpolated
    seen: np.ndarray  # [n] bool: whether the face was detected in that frame
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    scene: int = 0  # counted from the clip's first, by its cuts
    looks: tuple[list[np.ndarray], list[np.ndarray]] = field(default_factory=lambda: ([], []))  # first and last few
    light: tuple[int, int] = (0, 0)  # how often the clip's light changed up to the first frame, and up to the last
    visible: np.ndarray | None = None  # [n] bool: where it may be pasted, see :func:`visible`; None for everywhere

    @property
    def frames(self) -> range:
        return range(self.start, self.start + len(self.boxes))

    @property
    def size(self) -> float:
        """The median side of the face."""
        return float(np.median(self.boxes[:, 2:].max(1)))

    @property
    def hidden(self) -> np.ndarray:
        """In which of its frames [n] bool the face is behind another one."""
        return np.zeros(len(self.boxes), bool) if self.visible is None else ~self.visible


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
        looks: what each detection looks like (see :func:`~vcd_core.face.scenes.look`), to tell people apart where their
            ways cross, and where one takes the other's place.
        cuts: frames that begin a new scene; no track goes across.
        max_gap: a face may be missing for this many frames and still be the same track.
        min_length: tracks detected in fewer frames are dropped (never more than the clip has).
        sure: a track without a single score of this must have been seen in eight frames (half of a shorter clip) and in
            most of its own: a hand looks like a face for a moment. 0 takes every detection at its word, and one alone
            in its frame goes on the one track there is, however far it went.
        threshold: detections of a lower score go on a track, at either end too, and count for none: a face that turns
            away or is half out of the picture is still the one that was seen before (as in ByteTrack, arXiv
            2110.06864).
        lights: frames before which the light changed: looks of before and behind are not compared.

    Example:
        >>> moving = [[Face((10.0 + i, 20.0, 30.0, 30.0), 0.9)] for i in range(6)]
        >>> moving[3] = []
        >>> [(t.frames, t.boxes[3, 0]) for t in link(moving)]
        [(range(0, 6), np.float64(13.0))]
    """
    paths = _paths(detections, looks, cuts, lights, max_gap, sure <= 0)
    if sure > 0:
        paths = [part for path in paths for part in path.people(lights)]
    return _tracks([path for path in paths if path.lasts(len(detections), min_length, sure, threshold)], lights)


def _paths(
    detections: Sequence[Sequence[Face]],
    looks: Sequence[Sequence[np.ndarray]] | None,
    cuts: Sequence[int],
    lights: Sequence[int],
    max_gap: int,
    given: bool,
) -> list[_Path]:
    """What may become tracks: see :func:`link`; ``given`` where every detection is taken at its word."""
    going: list[_Path] = []
    done: list[_Path] = []
    for frame, faces in enumerate(detections):
        if frame in cuts:
            done, going = done + going, []
        done += [path for path in going if frame - path.last > max_gap + 1]
        going = [path for path in going if frame - path.last <= max_gap + 1]
        views = looks[frame] if looks else [None] * len(faces)
        sights = [_Sight(frame, np.array(faces[i].box, float), faces[i].score, views[i]) for i in _once(faces)]
        owners = _owners(going, sights, lights, given)
        for i, sight in enumerate(sights):
            if i in owners:
                owners[i].sights.append(sight)
            else:
                going.append(_Path(sum(cut <= frame for cut in cuts), [sight]))
    return done + going


def _once(faces: Sequence[Face]) -> list[int]:
    """The numbers of a frame's detections, best first and each face once, whatever order they came in."""
    kept: list[int] = []
    for i in sorted(range(len(faces)), key=lambda i: (-faces[i].score, faces[i].box)):
        if all(iou(faces[i].box, faces[other].box) <= TWICE for other in kept):
            kept.append(i)
    return kept


def _owners(paths: Sequence[_Path], sights: Sequence[_Sight], lights: Sequence[int], given: bool) -> dict[int, _Path]:
    """Which path each of a frame's sights goes on, by its number; none for those that begin one."""
    from scipy.optimize import linear_sum_assignment

    if not paths or not sights:
        return {}
    if given and len(paths) == len(sights) == 1:  # the one thing that is followed, however far it went
        return {0: paths[0]}
    cost = np.array([[path.cost(sight, lights) for sight in sights] for path in paths])
    return {int(i): paths[row] for row, i in zip(*linear_sum_assignment(cost), strict=True) if cost[row, i] < _FAR}


def _tracks(paths: Sequence[_Path], lights: Sequence[int]) -> list[Track]:
    tracks = sorted((path.track(lights) for path in paths), key=lambda t: (-int(t.seen.sum()), t.start))
    for track, shown in zip(tracks, visible(tracks), strict=True):
        track.visible = shown
    return tracks


class _Sight(NamedTuple):
    """One detection on a path."""

    frame: int
    box: np.ndarray  # [4] x, y, width, height in pixels
    score: float
    look: np.ndarray | None


@dataclass
class _Path:
    """A track in the making: a face's sights in one scene, in order of time."""

    scene: int
    sights: list[_Sight]

    @property
    def last(self) -> int:
        return self.sights[-1].frame

    def parts(self, ends: Sequence[int]) -> list[_Path]:
        """Its pieces, where the sights of these numbers begin new ones."""
        cut = zip([0, *ends], [*ends, len(self.sights)], strict=True)
        return [_Path(self.scene, self.sights[first:end]) for first, end in cut if end > first]

    def of(self, kept: Sequence[int], max_gap: int) -> list[_Path]:
        """Its pieces where only the sights of these numbers count: gaps of more than ``max_gap`` frames part them."""
        path = _Path(self.scene, [self.sights[i] for i in kept])
        at = [sight.frame for sight in path.sights]
        return path.parts([i for i in range(1, len(at)) if at[i] - at[i - 1] > max_gap + 1])

    def people(self, lights: Sequence[int]) -> list[_Path]:
        """Its pieces where somebody else takes the place of who was there, under the same light."""
        looks = [sight.look for sight in self.sights if sight.look is not None]
        if len(looks) < len(self.sights):
            return [self]
        at = [sight.frame for sight in self.sights]
        return self.parts([i for i in somebody_else(looks) if not _between(lights, at[i - 1], at[i])])

    def lasts(self, count: int, min_length: int, sure: float, threshold: float) -> bool:
        """Whether it is a track in a clip of ``count`` frames: see :func:`link`."""
        strong = [sight.frame for sight in self.sights if sight.score >= threshold]
        if len(strong) < max(1, min(min_length, count)):
            return False
        steady = 2 * len(strong) >= strong[-1] - strong[0] + 1
        best = max(sight.score for sight in self.sights)
        return best >= sure or (steady and len(strong) >= min(8, (count + 1) // 2))

    def predicted(self, frame: int) -> np.ndarray:
        """The box by steady motion over the last sights, slowing down the longer the face is lost."""
        last, first = self.sights[-1], self.sights[-min(5, len(self.sights))]
        box = last.box.copy()
        if last.frame > first.frame:
            speed = (_centre(last.box) - _centre(first.box)) / (last.frame - first.frame)
            box[:2] += speed * min(frame - last.frame, 4)
        return box

    def cost(self, sight: _Sight, lights: Sequence[int]) -> float:
        """How unlike this sight is to the track's next place; ``_FAR`` where it cannot be the same face."""
        guess, box = self.predicted(sight.frame), sight.box
        side = max(guess[2:].max(), box[2:].max())
        distance = float(np.linalg.norm(_centre(guess) - _centre(box))) / side
        growth = abs(math.log(box[2:].max() / guess[2:].max()))
        waited = sight.frame - self.last
        if distance > 0.7 + 0.25 * min(waited, 6) or growth > math.log(1.6) + 0.05 * waited:
            return _FAR
        looks = [before.look for before in self.sights[-_LOOKS:] if before.look is not None]
        lit = bool(_between(lights, self.last, sight.frame))
        other = 0.0 if lit or sight.look is None else least_unlike([sight.look], looks)
        return distance + (1 - iou(tuple(guess), tuple(box))) + growth + 3.0 * other

    def track(self, lights: Sequence[int] = ()) -> Track:
        at = np.array([sight.frame for sight in self.sights])
        start, count = int(at[0]), int(at[-1] - at[0]) + 1
        seen, scores = np.zeros(count, bool), np.zeros(count)
        seen[at - start], scores[at - start] = True, [sight.score for sight in self.sights]
        boxes = np.array([sight.box for sight in self.sights])
        filled = np.stack([np.interp(np.arange(count), at - start, boxes[:, i]) for i in range(4)], 1)
        looks = [sight.look for sight in self.sights if sight.look is not None]
        light = (_between(lights, -1, start), _between(lights, -1, self.last))
        return Track(start, filled, seen, scores, self.scene, (looks[:_LOOKS], looks[-_LOOKS:]), light)


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

    Unless ``sure`` is 0, what was found gets a second look (:mod:`~vcd_core.face.check`): what is no face is left out,
    and so are the frames in which a face has turned away.

    Args:
        images: IMAGE [F, H, W, 3].
        detections: faces of each frame, down to ``WEAK`` times the threshold.
        max_gap, min_length, sure, threshold: as for :func:`link`.
        device: where the second look runs.
        on_frame: called after each frame and each second look; may raise to stop.

    Example:
        >>> follow(torch.zeros(4, 64, 96, 3), [[]] * 4)
        []
    """
    cuts, lights = changes(images, on_frame)
    looks = [[look(image, face.box) for face in faces] for image, faces in zip(images, detections, strict=True)]
    paths = _paths(detections, looks, cuts, lights, max_gap, sure <= 0)
    counts = (len(detections), min_length, sure, threshold)
    paths = [path for path in paths if path.lasts(*counts)]
    if sure > 0:
        again = partial(second_look, images, device=device, on_frame=on_frame)
        faces = [face for path in paths for face in _seen_again(path, max_gap, again)]
        paths = [part for face in faces for part in face.people(lights) if part.lasts(*counts)]
    return _tracks(paths, lights)


def _seen_again(path: _Path, max_gap: int, again: Callable[..., tuple[np.ndarray, np.ndarray]]) -> list[_Path]:
    """What of a path shows a face at a second look; nothing of what is none."""
    at, scores = np.array([s.frame for s in path.sights]), np.array([s.score for s in path.sights])
    boxes = np.array([s.box for s in path.sights])
    side = float(np.median(boxes[:, 2:].max(1)))
    second, known = scores.copy(), scores >= SURE
    if not surely_a_face(scores, side):
        some = _spread(np.arange(len(at)))
        second[some], matched = again(at[some], boxes[some])
        known[some] = True
        if not is_face(scores, matched, side):
            return []
    unsure = np.flatnonzero(~known)
    if len(unsure):
        some = _spread(unsure)
        second[some], _ = again(at[some], boxes[some])
        second[unsure] = np.interp(at[unsure], at[some], second[some])
    return path.of(np.flatnonzero(shows(scores, second)).tolist(), max_gap)


def _spread(numbers: np.ndarray) -> np.ndarray:
    """At most ``_CHECKED`` of some numbers, evenly spaced, with the first and the last."""
    count = min(len(numbers), _CHECKED)
    return numbers[np.linspace(0, len(numbers) - 1, count).round().astype(int)]


def visible(tracks: Sequence[Track], factor: float = 1.6) -> list[np.ndarray]:
    """In which of its frames each track's face is not behind another one [n] bool: where it may be pasted.

    A face is lost for some frames because the detector missed it, or because somebody stands before it.  It is hidden
    where it was not seen and another face was, within ``factor`` times its side (what is pasted).

    Example:
        >>> still = lambda seen: Track(0, np.array([[10.0, 10.0, 20.0, 20.0]] * 3), np.array(seen))
        >>> visible([still([True, False, False]), still([True, True, False])])[0]
        array([ True, False,  True])
    """
    shown = [np.ones(len(track.boxes), bool) for track in tracks]
    for number, track in enumerate(tracks):
        for i in np.flatnonzero(~track.seen):
            x, y, w, h = track.boxes[i]
            pasted = (x - w * (factor - 1) / 2, y - h * (factor - 1) / 2, w * factor, h * factor)
            at = {n: track.start + i - other.start for n, other in enumerate(tracks) if n != number}
            there = (tracks[n].boxes[k] for n, k in at.items() if 0 <= k < len(tracks[n].boxes) and tracks[n].seen[k])
            shown[number][i] = not any(iou(pasted, tuple(box)) > 0 for box in there)
    return shown


def boxes_of(faces: Faces) -> list[list[dict[str, float | str]]]:
    """The smoothed tracks as ComfyUI's BOUNDING_BOX: for each frame a list of x, y, width, height, label and score.

    The label says where a face is hidden.
    """
    frames: list[list[dict[str, float | str]]] = [[] for _ in range(faces.frames)]
    for number, track in enumerate(faces.tracks):
        boxes = smooth_boxes(track.boxes)
        for i, frame in enumerate(track.frames):
            x, y, w, h = (float(v) for v in boxes[i])
            score = float(track.scores[i]) if len(track.scores) else 1.0
            label = f"face {number}, hidden" if track.hidden[i] else f"face {number}"
            frames[frame].append({"x": x, "y": y, "width": w, "height": h, "label": label, "score": score})
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


def _centre(box: np.ndarray) -> np.ndarray:
    return box[:2] + box[2:] / 2
