"""Boxes that an artist draws in one frame, as a choice of people."""

import numpy as np
import pytest

from vcd_core.face.pointing import chosen, pointed_at
from vcd_core.face.track import Faces, Track


def track(start, x, y=40.0, frames=10):
    return Track(start, np.array([[x, y, 20.0, 20.0]] * frames), np.ones(frames, bool))


def starts(tracks):
    """Which tracks these are: where each begins, and from where."""
    return [(track.start, float(track.boxes[0, 0])) for track in tracks]


def box(x, y, width=0, height=0):
    return {"x": x, "y": y, "width": width, "height": height}


LEFT, RIGHT, AGAIN = track(0, 30), track(0, 130), track(14, 132)
FACES = Faces(30, 100, 200, [RIGHT, LEFT, AGAIN])


@pytest.mark.parametrize(
    ("drawn", "meant"),
    [
        (box(25, 35, 30, 30), [LEFT]),
        (box(40, 50), [LEFT]),  # a click
        ([box(53, 50)], [LEFT]),  # on the hair
        (box(0, 0, 200, 100), [RIGHT, LEFT, AGAIN]),
        ([box(40, 50), box(140, 50)], [RIGHT, LEFT, AGAIN]),
        ([[box(136, 46, 6, 6)]], [RIGHT, AGAIN]),  # who was lost and found is the same person
    ],
)
def test_a_box_means_the_people_in_it_wherever_they_are(drawn, meant):
    assert starts(pointed_at(FACES, drawn, 4)) == starts(meant)
    left = [t for t in starts(FACES.tracks) if t not in starts(meant)]
    assert starts(chosen(FACES, exclude=drawn, frame=4)) == left


def test_it_is_the_place_that_is_meant_in_the_frame_it_was_drawn_in():
    moving = Track(0, np.array([[10.0 + 5 * i, 40.0, 20.0, 20.0] for i in range(30)]), np.ones(30, bool))
    faces = Faces(30, 100, 200, [moving, track(20, 20)])
    assert starts(pointed_at(faces, box(20, 50), 0)) == starts([moving])
    assert starts(pointed_at(faces, box(30, 50), 25)) == starts(faces.tracks[1:])
    of_frames = [[box(20, 50)] if frame == 0 else [box(30, 50)] for frame in range(30)]
    assert starts(pointed_at(faces, of_frames, 25)) == starts(faces.tracks[1:])


def test_who_is_picked_may_be_excluded_again():
    assert starts(chosen(FACES, [box(40, 50), box(140, 50)], box(140, 50))) == starts([LEFT])
    assert starts(chosen(FACES)) == starts(FACES.tracks)


@pytest.mark.parametrize(
    ("drawn", "frame", "shown"),
    [
        (
            box(90, 50, 4, 4),
            4,
            r"pick: nobody is at 90, 50 \(4x4\) in frame 4. There are face 0 at 130, 40 \(20x20\), face",
        ),
        (box(40, 50), 12, "No face was found in that frame"),
        (box(40, 50), 30, "pick_frame is 30; the clip has 30 frames"),
        ([], 4, "pick is connected and holds no box"),
        ([[]], 4, "holds no box"),
        ([[box(40, 50)]] * 7, 4, "boxes for 7 frames and the clip has 30"),
        (box(400, 50, 9, 9), 4, "lies outside of the 200x100 pictures"),
        ([{"x": 3}], 4, "needs x, y, width and height"),
        ("a box", 4, "pick holds no bounding boxes"),
    ],
)
def test_a_pick_of_nobody_is_refused(drawn, frame, shown):
    with pytest.raises(ValueError, match=shown):
        pointed_at(FACES, drawn, frame)
