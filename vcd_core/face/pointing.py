"""Whom the artist points at: boxes drawn around faces in one frame, as a choice of the people in a clip."""

from __future__ import annotations

from typing import Any

import numpy as np

from .given import from_boxes
from .people import people
from .smooth import smooth_boxes
from .track import Faces, Track

REACH = 1.6  # of a face's side: hair and neck are the person too


def pointed_at(faces: Faces, boxes: object, frame: int, what: str = "pick") -> list[Track]:
    """The tracks of the people whom boxes mean: all of their tracks, also where they are lost and found again.

    A box means every face whose centre it holds; one that holds none, such as a click, the nearest face that it lies
    on. It is a place and no number, so it means the same person in a clip that was changed elsewhere.

    Args:
        boxes: ComfyUI's BOUNDING_BOX, drawn in one frame; or a list for every frame, of which ``frame`` counts.
        frame: in which frame they were drawn.
        what: the name of the input, for errors.

    Raises:
        ValueError: a frame that the clip has not, no box, or one where nobody is.

    Example:
        >>> def track(start, x):
        ...     return Track(start, np.array([[x, 20.0, 20.0, 20.0]] * 10), np.ones(10, bool))
        >>> faces = Faces(30, 100, 200, [track(0, 30), track(0, 130), track(14, 132)])
        >>> [t.start for t in pointed_at(faces, {"x": 120, "y": 10, "width": 40, "height": 40}, 3)]
        [0, 14]
    """
    if not 0 <= frame < faces.frames:
        raise ValueError(f"pick_frame is {frame}; the clip has {faces.frames} frames, counted from 0.")
    drawn = _of_frame(boxes, faces, frame, what)
    here = {
        i: smooth_boxes(track.boxes)[frame - track.start]
        for i, track in enumerate(faces.tracks)
        if frame in track.frames
    }
    meant = {number for box in drawn for number in _meant(here, box, frame, what)}
    persons = people(faces.tracks)
    chosen = {persons[number] for number in meant}
    return [track for track, person in zip(faces.tracks, persons, strict=True) if person in chosen]


def chosen(faces: Faces, pick: object = None, exclude: object = None, frame: int = 0) -> list[Track]:
    """The tracks of those whom ``pick`` means (all without it), but for those whom ``exclude`` means.

    Raises:
        ValueError: as :func:`pointed_at`.
    """
    kept = faces.tracks if pick is None else pointed_at(faces, pick, frame)
    left_out = [] if exclude is None else pointed_at(faces, exclude, frame, "exclude")
    return [track for track in kept if not any(track is other for other in left_out)]


def _of_frame(boxes: object, faces: Faces, frame: int, what: str) -> list[np.ndarray]:
    """The boxes [4] that were drawn in a frame."""
    if not isinstance(boxes, (dict, list, tuple)):
        raise ValueError(f"{what} holds no bounding boxes. Connect Create Bounding Boxes.")
    listed: Any = [boxes] if isinstance(boxes, dict) else list(boxes)
    if len(listed) == faces.frames > 1 and isinstance(listed[frame], list):
        listed = listed[frame]
    elif len(listed) > 1 and all(isinstance(entry, list) for entry in listed):
        raise ValueError(
            f"{what} holds boxes for {len(listed)} frames and the clip has {faces.frames}; draw them in one frame."
        )
    found = from_boxes(listed, 1, faces.height, faces.width, least=1.0)[0] if listed else []
    if not found:
        raise ValueError(f"{what} is connected and holds no box. Draw one around the face you mean, or disconnect it.")
    return [np.array(face.box) for face in found]


def _meant(here: dict[int, np.ndarray], box: np.ndarray, frame: int, what: str) -> list[int]:
    """The numbers of the faces of a frame that a box means."""
    centre = {number: face[:2] + face[2:] / 2 for number, face in here.items()}
    inside = [n for n, at in centre.items() if (at >= box[:2]).all() and (at <= box[:2] + box[2:]).all()]
    if inside:
        return inside
    point = box[:2] + box[2:] / 2
    near = {n: np.abs((point - centre[n]) / here[n][2:]).max() for n in here}
    nearest = min(near, key=lambda n: near[n], default=None)
    if nearest is not None and near[nearest] <= REACH / 2:
        return [nearest]
    x, y, w, h = box
    known = ", ".join(f"face {n} at {f[0]:.0f}, {f[1]:.0f} ({f[2]:.0f}x{f[3]:.0f})" for n, f in here.items())
    raise ValueError(
        f"{what}: nobody is at {x:.0f}, {y:.0f} ({w:.0f}x{h:.0f}) in frame {frame}. "
        + (f"There are {known}." if known else "No face was found in that frame; choose another pick_frame.")
    )
