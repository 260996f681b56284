"""Frames in which a face stands still."""

import numpy as np
import pytest
import torch

from vcd_core.face.crop import Windows
from vcd_core.face.repeats import ALIKE, without_repeats


def place_of(centres, size=(8.0, 6.0), start=0):
    centres = np.array(centres, float)
    return Windows(start, centres, size, np.concatenate([centres - 2, np.full_like(centres, 4)], 1))


def noise(frames, seed=0):
    return torch.rand(frames, 24, 32, 3, generator=torch.Generator().manual_seed(seed))


def test_windows_stand_still_with_the_picture_alone():
    images = noise(5)[[0, 0, 0, 1, 1]]
    place = place_of([[10 + i / 3, 9 - i / 4] for i in range(5)])
    held, first = without_repeats(images, place)
    assert first.tolist() == [0, 0, 0, 3, 3]
    assert np.array_equal(held.centres, place.centres[first])
    assert np.array_equal(held.face, place.face[first])
    assert without_repeats(noise(5), place)[1].tolist() == [0, 1, 2, 3, 4]


def test_what_changes_elsewhere_does_not_count():
    images = noise(1).repeat(3, 1, 1, 1)
    images[1:, :, 20:] = noise(2, 1)[:, :, 20:]
    assert without_repeats(images, place_of([[8, 8]] * 3))[1].tolist() == [0, 0, 0]
    assert without_repeats(images, place_of([[18, 8]] * 3))[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(("step", "expected"), [(ALIKE * 0.9, [0, 0, 2, 2]), (ALIKE * 1.1, [0, 1, 2, 3])])
def test_slow_changes_add_up(step, expected):
    """Each frame is compared with the first of its run: a fade is no still picture."""
    images = torch.stack([torch.full((16, 16, 3), 0.2 + i * step) for i in range(4)])
    assert without_repeats(images, place_of([[8, 8]] * 4))[1].tolist() == expected


def test_frames_are_those_of_the_track():
    images = noise(6)[[0, 1, 2, 2, 2, 5]]
    assert without_repeats(images, place_of([[8, 8]] * 4, start=2))[1].tolist() == [0, 0, 0, 3]


@pytest.mark.parametrize("centre", [[-3, -3], [40, 30], [16, 12]])
def test_windows_may_reach_out_of_the_picture(centre):
    images = noise(3)[[0, 0, 1]]
    first = without_repeats(images, place_of([centre] * 3, size=(12.0, 12.0)))[1]
    assert first.tolist() == [0, 0, 2]
