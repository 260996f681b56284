"""Face VCD on real clips of generated people, from pinned packages; skipped where those are not to be had."""

import numpy as np
import pytest

from dev import clips
from vcd_core.face.crop import crop, paste, windows
from vcd_core.face.detect import detect
from vcd_core.face.track import WEAK, follow

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["avatar", "turning"])
def test_one_person_is_one_steady_track(name):
    try:
        images = clips.clip(name)
    except clips.Missing as missing:
        pytest.skip(str(missing))
    tracks = follow(images, detect(images, WEAK * 0.6), threshold=0.6)
    assert len(tracks) == 1
    assert len(tracks[0].frames) >= 0.98 * len(images)
    place = windows(tracks[0], *images.shape[1:3])
    raw = tracks[0].boxes[:, :2] + tracks[0].boxes[:, 2:] / 2
    jitter = lambda path: np.abs(np.diff(path, 2, axis=0)).mean()  # noqa: E731
    assert jitter(place.centres) <= 0.25 * jitter(raw)
    refined = crop(images, place, (512, 512))
    assert (paste(images, refined, place) - images).abs().max() < 1 / 255
