"""Who is where: places as people write them, as faces say them, and what share of the picture each has."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcd_core import cast
from vcd_core.face.track import Faces, Track


def test_people_stand_side_by_side_where_nothing_is_written():
    boxes = cast.read_places("\n# nothing\n", ["a", "b", "c"], 16)
    assert boxes.shape == (3, 1, 4)
    assert np.allclose(boxes[:, 0, 0], [0, 1 / 3, 2 / 3])
    assert np.allclose(boxes[:, 0, 2:], [1 / 3, 1])


def test_people_cross_and_leave():
    boxes = cast.read_places("0: left, 8: right\n0: right | 8: left third | 12: away\nmiddle", ["a", "b", "c"], 16)
    assert boxes.shape == (3, 16, 4)
    assert np.allclose(boxes[0, [0, 4, 8, 15], 0], [0, 0.25, 0.5, 0.5])
    assert np.allclose(boxes[1, [0, 4, 8], 0], [0.5, 0.25, 0])
    assert np.allclose(boxes[1, 4, 2], (1 / 2 + 1 / 3) / 2)
    assert np.isfinite(boxes[1, :12]).all()
    assert np.isnan(boxes[1, 12:]).all()
    assert (boxes[2] == boxes[2, :1]).all()
    assert np.isnan(cast.read_places("0: away, 5: left", ["a"], 8)[0, :5]).all()


def test_boxes_are_shares_or_hundredths():
    one, other = (cast.read_places(text, ["a"], 1) for text in ("0.1 0.2 0.4 0.8", "10% 20% 40% 80%"))
    assert np.allclose(one, other)
    assert np.allclose(one[0, 0], [0.1, 0.2, 0.4, 0.8])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("left", "2 people and 1 places, one a line: her has none"),
        ("left\nright\ntop", "'top' is nobody's"),
        ("left\nthere", "The place of her is 'there'; expected one of left, right"),
        ("left\n0.6 0 0.5 1", "The place of her, '0.6 0 0.5 1', leaves the picture"),
        ("-0.1 0 0.5 1\nright", "The place of me, '-0.1 0 0.5 1', leaves the picture"),
        ("left\n0: right, 5: 0 0 2 1", "The place of her, '0 0 2 1', leaves the picture"),
        ("left\n0 0 0 1", "leaves the picture"),
        ("left\nnan 0 1 1", "The place of her"),
    ],
)
def test_places_that_make_no_sense_name_the_person(text, said):
    with pytest.raises(ValueError, match="place") as refused:
        cast.read_places(text, ["me", "her"], 16)
    assert said in str(refused.value)


def test_masks_are_half_at_their_border_and_have_none_at_the_pictures_edge():
    masks = cast.masks_of(cast.read_places("left\nright", ["a", "b"], 1), 20, 40, softness=0.4)
    assert torch.allclose(masks.sum(0), torch.ones(1, 20, 40))
    row = masks[0, 0, 10]
    assert row[0] == 1
    assert row[-1] == 0
    assert float(row[19:21].mean()) == pytest.approx(0.5)
    assert int(((row > 0) & (row < 1)).sum()) == 8  # 0.4 of 20
    hard = cast.masks_of(np.array([[(0.25, 0.5, 0.5, 0.5), (np.nan,) * 4]]), 20, 40)
    assert hard[0, 0].sum() == 200
    assert hard[0, 1].sum() == 0


boxes = st.tuples(*(st.floats(0, 0.9) for _ in range(2)), *(st.floats(0.05, 0.9) for _ in range(2)))


@given(st.lists(boxes, min_size=1, max_size=4), st.floats(0, 0.5), st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None)
def test_shares_are_a_partition_of_unity(places, softness, height, width):
    given_ = np.array([[(x, y, min(w, 1 - x), min(h, 1 - y))] for x, y, w, h in places])
    found = cast.shares(cast.masks_of(given_, height, width, softness))
    assert found.shape == (len(places) + 1, 1, height, width)
    assert float(found.min()) >= 0
    assert torch.allclose(found.sum(0), torch.ones(1, height, width), atol=1e-5)
    small = cast.at_size(found, max(1, height // 2), max(1, width // 2))
    assert torch.allclose(small.sum(0), torch.ones_like(small[0]), atol=1e-5)


def test_places_of_tracked_faces_hold_head_and_body():
    def track(start, x, count=6):
        return Track(start, np.array([[x, 20.0, 10.0, 10.0]] * count), np.ones(count, bool))

    faces = Faces(8, 100, 100, [track(0, 70, 8), track(2, 15)])
    found = cast.places_of(faces, ["me", "her"])
    assert np.isnan(found[0, :2]).all()
    assert np.isfinite(found[0, 2:]).all()
    x, y, width, height = found[1, 4]
    assert x < 0.7 < 0.8 < x + width
    assert y < 0.2
    assert y + height == pytest.approx(1)
    with pytest.raises(ValueError, match="2 people were tracked, from left to right, and there is nobody for him"):
        cast.places_of(faces, ["me", "her", "him"])
