"""Whether a refined face is better: figures on drawn people, blurred, shaken, silenced or taken away."""

import random

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vcd_core.face.crop import crop, windows
from vcd_core.face.detect import detect
from vcd_core.face.judge import judge, measure
from vcd_core.face.track import Track
from vcd_core.tiny import world

SIZE = (160, 160)
OPEN = (0.0, 0.1, 0.3, 0.5, 0.2)  # of the mouth's width


@pytest.fixture(scope="module")
def talking():
    """The crops of a person whose mouth opens and shuts, and their windows."""
    person = world.random_person(random.Random(7))
    frames = world.render_take(world.Take((person,), "beach", "standing", "close-up", 7, 16))
    images = torch.stack([torch.from_numpy(frame.image.copy()).float() / 255 for frame in frames])
    boxes = np.array([frame.faces[0] for frame in frames], float)
    place = windows(Track(0, boxes, np.ones(16, bool)), *images.shape[1:3], 2.0)
    crops = crop(images, place, SIZE)
    for i, ((face, *_), image) in enumerate(zip(detect(crops), crops, strict=True)):
        (right, top), (left, _) = face.landmarks[3:]
        middle, tall = round((left + right) / 2), round(abs(right - left) * OPEN[i % len(OPEN)])
        image[round(top) : round(top) + tall, middle - 6 : middle + 6] = 0.1
    return crops, place


def blurred(images):
    return F.avg_pool2d(images.movedim(-1, 1), 5, 1, 2).movedim(1, -1)


def test_what_stays_is_no_worse(talking):
    crops, place = talking
    figures = measure(crops, place)
    verdict = judge(figures, figures, 0.0)
    assert figures.found.all()
    assert verdict.worse == []
    assert verdict.lost == []
    assert [name for name, *_ in verdict.rows] == ["face found", "sharpness", "flicker", "mouth as before"]
    assert str(verdict).endswith("mouth as before 1.00")


def test_each_way_of_getting_worse_is_named(talking):
    crops, place = talking
    before = measure(crops, place)
    assert judge(before, measure(blurred(crops), place)).worse == ["sharpness"]
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(0)) * 0.05
    assert "flicker" in judge(before, measure((crops + noise).clamp(0, 1), place)).worse
    other = crops[torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    assert "mouth" in judge(before, measure(other, place)).worse
    gone = crops.clone()
    gone[[3, 9, 10]] = 0.5
    verdict = judge(before, measure(gone, place))
    assert verdict.lost == [3, 9, 10]
    assert "face found" in verdict.worse
    assert judge(before, measure(gone, place), 0.9).lost == [3, 9, 10]


def test_the_margin_is_what_may_be_lost(talking):
    crops, place = talking
    before, after = measure(crops, place), measure(blurred(crops), place)
    lost = 1 - after.sharpness / before.sharpness
    assert judge(before, after, lost + 0.01).worse == []
    assert judge(before, after, lost - 0.01).worse == ["sharpness"]


def test_likeness_counts_where_it_was_measured(talking):
    crops, place = talking
    one, other = measure(crops, place, likeness=0.8), measure(crops, place, likeness=0.6)
    assert judge(one, other).worse == ["likeness"]
    assert judge(other, one).worse == []
    assert ("likeness", "0.60", "0.80") in judge(other, one).rows


def test_the_mouth_is_darker_the_more_it_is_open(talking):
    crops, place = talking
    mouth = measure(crops, place).mouth
    order = np.argsort([OPEN[i % len(OPEN)] for i in range(16)], kind="stable")
    assert np.corrcoef(mouth[order], np.sort([OPEN[i % len(OPEN)] for i in range(16)]))[0, 1] > 0.9


def test_short_videos_are_measured_as_far_as_they_go(talking):
    crops, place = talking
    two = measure(crops[:2], windows(Track(0, place.face[:2], np.ones(2, bool)), 128, 128, 2.0))
    assert [name for name, *_ in judge(two, two).rows] == ["face found", "sharpness"]
