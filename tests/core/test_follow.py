"""Tracks of what moves steadily, and of what was given by boxes and masks."""

import numpy as np
import pytest
import torch

from vcd_core.face.crop import windows
from vcd_core.face.detect import Face
from vcd_core.face.given import from_masks
from vcd_core.face.track import link


@pytest.mark.parametrize("frames", [2, 3, 4, 5, 6, 8, 12, 16, 32])
@pytest.mark.parametrize("speed", [(16.0, 0.0), (-3.5, 7.25)])
def test_a_straight_line_is_followed_exactly_at_any_length(frames, speed):
    places = [(400.0 + speed[0] * i, 300.0 + speed[1] * i) for i in range(frames)]
    (track,) = link([[Face((x, y, 24.0, 24.0), 1.0)] for x, y in places], sure=0.0)
    centres = windows(track, 800, 1200, 1.5).centres
    assert np.abs(centres - (np.array(places) + 12)).max() < 1e-6


def test_a_mask_that_jumps_is_one_track():
    masks = torch.zeros(4, 128, 128)
    for i in range(4):
        masks[i, 50:74, 4 + 30 * i : 28 + 30 * i] = 1
    (track,) = link(from_masks(masks), sure=0.0)
    assert track.frames == range(4)
    assert np.allclose(track.boxes[:, 0], [4, 34, 64, 94])


def test_two_boxes_in_a_frame_or_a_found_face_do_not_jump():
    far = [[Face((4.0 + 200 * i, 50.0, 24.0, 24.0), 1.0)] for i in range(4)]
    assert link(far, min_length=2) == []  # found, not given
    both = [[*faces, Face((4.0, 300.0, 24.0, 24.0), 1.0)] for faces in far]
    (still,) = link(both, min_length=2, sure=0.0)
    assert still.boxes[:, 1].tolist() == [300.0] * 4
