"""Face VCD on real clips of generated people, from pinned packages; skipped where those are not to be had."""

import numpy as np
import pytest
import torch

from dev import clips
from dev.lights import LIGHTS
from vcd_core.face.crop import crop, paste, windows
from vcd_core.face.detect import detect
from vcd_core.face.people import people
from vcd_core.face.scenes import scene_cuts
from vcd_core.face.track import WEAK, follow

pytestmark = pytest.mark.slow


def clip(name, frames=1000):
    try:
        return clips.clip(name, frames)
    except clips.Missing as missing:
        pytest.skip(str(missing))


def tracks_of(images):
    return follow(images, detect(images, WEAK * 0.6), threshold=0.6)


@pytest.mark.parametrize("name", ["avatar", "turning"])
def test_one_person_is_one_steady_track(name):
    images = clip(name)
    tracks = tracks_of(images)
    assert len(tracks) == 1
    assert len(tracks[0].frames) >= 0.98 * len(images)
    place = windows(tracks[0], *images.shape[1:3])
    raw = tracks[0].boxes[:, :2] + tracks[0].boxes[:, 2:] / 2
    jitter = lambda path: np.abs(np.diff(path, 2, axis=0)).mean()  # noqa: E731
    assert jitter(place.centres) <= 0.25 * jitter(raw)
    refined = crop(images, place, (512, 512))
    assert (paste(images, refined, place) - images).abs().max() < 1 / 255


def test_a_face_that_fills_the_frame_is_found():
    images = clip("talking", 41)[::20]
    side = max(detect(images)[0][0].box[2:])
    for image in images:
        ((face,),) = detect(image[None])
        x, y = face.box[0] + (face.box[2] - side) / 2, face.box[1] + (face.box[3] - side) / 2
        part = image[int(y) : int(y + side), int(x) : int(x + side)].movedim(-1, 0)[None]
        for pixels in (640, 1280, 1920):
            large = torch.nn.functional.interpolate(part, size=(pixels, pixels), mode="bicubic").movedim(1, -1)
            ((found,),) = detect(large.clamp(0, 1))
            assert found.score > 0.85
            assert max(found.box[2:]) > 0.85 * pixels


@pytest.mark.parametrize("light", LIGHTS)
@pytest.mark.parametrize("name", ["talking", "turning"])
def test_a_change_of_light_is_no_cut(name, light):
    images = LIGHTS[light](clip(name, 40))
    assert scene_cuts(images) == []
    tracks = tracks_of(images)
    assert [track.frames for track in tracks] == [range(40)]
    assert people(tracks) == [0]


def test_a_woman_in_flashing_light_is_one():
    images = clip("flashing")
    tracks = tracks_of(images)
    assert [track.frames for track in tracks] == [range(len(images))]
    assert people(tracks) == [0]


def test_a_real_cut_parts_two_people_at_one_place():
    shots = [clip(name, 12) for name in ("talking", "avatar", "turning")]
    size = shots[0].shape[1:3]
    shots = [torch.nn.functional.interpolate(shot.movedim(-1, 1), size=size).movedim(1, -1) for shot in shots]
    images = torch.cat(shots)
    assert scene_cuts(images) == [12, 24]
    tracks = sorted(tracks_of(images), key=lambda track: track.start)
    assert [track.frames for track in tracks] == [range(12), range(12, 24), range(24, 36)]
    assert len(set(people(tracks))) == 3


def test_a_lit_window_is_no_face():
    assert tracks_of(clip("landscape")) == []
