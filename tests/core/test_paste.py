"""Pastes of several faces build on each other: none erases another, and their order does not matter."""

import itertools

import numpy as np
import pytest
import torch

from vcd_core.face.crop import crop, paste, windows
from vcd_core.face.track import Track

HEIGHT, WIDTH, SIDE = 100, 200, 24


def face(x, y=40.0, start=0, frames=3):
    return windows(Track(start, np.array([[x, y, SIDE, SIDE]] * frames), np.ones(frames, bool)), HEIGHT, WIDTH)


def scene():
    """A smooth picture: what a crop cannot hold of a sharp one comes back as it was, whatever is pasted."""
    across = torch.linspace(0.2, 0.8, WIDTH).expand(HEIGHT, -1)
    return torch.stack([across, across.flip(1), across * 0 + 0.5], -1).expand(3, -1, -1, -1).contiguous()


def pasted(places, order, levels, **more):
    out = scene()
    for i in order:
        flat = torch.full((len(places[i].centres), 160, 160, 3), levels[i])
        others = [place for j, place in enumerate(places) if j != i]
        paste(scene(), flat, places[i], out=out, neighbours=others, **more)
    return out


@pytest.mark.parametrize("xs", [(40.0, 64.0), (40.0, 60.0), (40.0, 75.0), (40.0, 64.0, 88.0), (64.0, 40.0, 88.0)])
def test_each_face_keeps_its_own_whatever_the_order(xs):
    places, levels = [face(x) for x in xs], [0.1, 0.9, 0.3]
    first, *others = [pasted(places, order, levels) for order in itertools.permutations(range(len(xs)))]
    for other in others:
        assert (first - other).abs().max() < 1e-5
    for i, x in enumerate(xs):
        free = [at for at in range(int(x), int(x) + SIDE) if all(abs(at + 0.5 - e) > 3 for e in edges(xs, i))]
        own = first[1, 52, free]
        assert (own - levels[i]).abs().max() < 0.02


def edges(xs, i):
    """Where another face's box begins to be nearer than a face's own: the middle between their sides."""
    x = xs[i]
    right = [(x + SIDE + other) / 2 for other in xs if other > x]
    left = [(x + other + SIDE) / 2 for other in xs if other < x]
    return [*([min(right)] if right else []), *([max(left)] if left else [])]


def test_between_two_faces_the_blend_goes_one_way():
    row = pasted([face(40.0), face(64.0)], (0, 1), [0.1, 0.9])[1, 52, 45:85, 0]
    assert (row[1:] - row[:-1]).min() > -1e-4
    assert row[0] < 0.12
    assert row[-1] > 0.88


def test_a_face_that_is_not_refined_is_left_alone():
    out = pasted([face(40.0), face(64.0)], (0,), [0.1, 0.9])
    assert (out - scene())[:, 40:64, 68:88].abs().max() < 1e-6
    assert (out[:, 45:59, 45:59] - 0.1).abs().max() < 0.02


def test_neighbours_far_away_or_in_other_frames_change_no_bit():
    alone = pasted([face(40.0)], (0,), [0.1])
    assert torch.equal(alone, pasted([face(40.0), face(160.0)], (0,), [0.1, 0.9]))
    late = [face(40.0, frames=2), face(64.0, start=2, frames=1)]
    assert torch.equal(pasted(late[:1], (0,), [0.1]), pasted(late, (0,), [0.1, 0.9]))


def test_a_paste_goes_on_what_was_changed_before():
    brighter = scene() + 0.1
    out = paste(scene(), torch.full((3, 160, 160, 3), 0.5), face(40.0), out=brighter.clone())
    assert (out[1, 52, 52] - 0.6).abs().max() < 0.02  # the change is added to what stands there
    assert torch.equal(out[:, :, 120:], brighter[:, :, 120:])


def surroundings(kind):
    """Frames with a face of strong contrast before a wall, a gradient, a texture or the dark."""
    frame = {
        "wall": torch.full((HEIGHT, WIDTH, 3), 0.7),
        "gradient": scene()[0],
        "texture": torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(1)) * 0.2 + 0.4,
        "dark": torch.zeros(HEIGHT, WIDTH, 3),
    }[kind].clone()
    frame[44:60:4, 44:60] = 0.9
    frame[46:60:4, 44:60] = 0.1
    return frame.expand(3, -1, -1, -1).contiguous()


@pytest.mark.parametrize("kind", ["wall", "gradient", "texture", "dark"])
def test_matching_colours_changes_nothing_where_nothing_was_redrawn(kind):
    images = surroundings(kind)
    crops = crop(images, face(40.0), (200, 200))
    plain, matched = (paste(images, crops, face(40.0), match_colour=match) for match in (False, True))
    assert (matched - plain).abs().max() < 1e-3


def test_a_shift_of_brightness_is_matched_before_a_wall_too():
    images = surroundings("wall")
    darker = crop(images, face(40.0), (200, 200)) - 0.1
    assert (paste(images, darker, face(40.0), match_colour=True) - images).abs().max() < 2 / 255


def test_work_stops_where_it_is_told_to():
    class Stop(Exception):
        pass

    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 2:
            raise Stop

    out = scene()
    with pytest.raises(Stop):
        paste(scene(), torch.full((3, 160, 160, 3), 0.9), face(40.0), out=out, on_frame=stop)
    assert not torch.equal(out[0], scene()[0])
    assert torch.equal(out[1:], scene()[1:])


def grain(seed=3):
    return torch.rand(3, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(16, 16), (48, 72), (72, 72), (200, 200)])
@pytest.mark.parametrize("match", [False, True])
def test_by_change_a_clip_that_was_not_changed_keeps_its_bits_at_every_size(size, match):
    images, place = grain(), face(40.0)
    crops = crop(images, place, size)
    lossy = (crops * 0.7 + 0.1).round(decimals=1)  # a VAE that loses much
    out = paste(images, lossy, place, match_colour=match, unsampled=lossy.clone(), feather_share=0.4)
    assert torch.equal(out, images)


def test_by_change_only_what_was_changed_is_pasted_and_grain_stays():
    images, place = grain(), face(40.0)
    unsampled = crop(images, place, (48, 48))
    out = paste(images, unsampled + 0.1, place, unsampled=unsampled)
    inside = (out - images)[:, 47:57, 47:57]
    free = (images[:, 47:57, 47:57] < 0.89) & (images[:, 47:57, 47:57] > 0)
    assert (inside - 0.1)[free].abs().max() < 1e-5
    assert torch.equal(out[:, :, 80:], images[:, :, 80:])


def test_by_change_frames_of_another_shape_are_refused():
    images, place = grain(), face(40.0)
    with pytest.raises(ValueError, match=r"unsampled is \[3, 32, 32, 3\] and refined \[3, 48, 48, 3\]"):
        paste(images, crop(images, place, (48, 48)), place, unsampled=crop(images, place, (32, 32)))


def test_the_feather_grows_with_the_face():
    images, place = scene(), face(40.0)

    def width(**more):
        change = paste(images, torch.full((3, 160, 160, 3), 0.1), place, **more)[1, 52] - images[1, 52]
        share = change[:52, 0] / (0.1 - images[1, 52, :52, 0])
        return int(((share > 0.01) & (share < 0.99)).sum())

    assert width(feather=2.0) <= 2
    assert width(feather=2.0, feather_share=0.5) >= 9  # half of 24 pixels, its faint ends left out
    assert width(feather=20.0, feather_share=0.05) <= 2
