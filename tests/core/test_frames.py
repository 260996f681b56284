"""What is wrong with frames is said by their number, and transparency stays."""

import pytest
import torch

from vcd_core.frames import broken_frames, check_finite, colours, named, with_alpha


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("frames", [[0], [17], [3, 16, 40]])
def test_broken_frames_are_named(value, frames):
    clip = torch.rand(41, 4, 5, 3)
    clip[frames, 1, 2, 0] = value
    assert broken_frames(clip) == frames
    with pytest.raises(ValueError, match=f"images hold NaN or infinite values in {named(frames)}"):
        check_finite(clip)


def test_whole_frames_pass():
    assert broken_frames(torch.rand(40, 4, 5, 3)) == []
    assert broken_frames(torch.empty(0, 4, 5, 3)) == []
    check_finite(torch.rand(3, 4, 5, 4))


def test_transparency_stays_with_what_was_done():
    clip = torch.rand(3, 4, 5, 4)
    done = with_alpha(torch.zeros(3, 4, 5, 3), clip)
    assert torch.equal(done[..., 3], clip[..., 3])
    assert not done[..., :3].any()
    assert with_alpha(done[..., :3], clip[..., :3]).shape == (3, 4, 5, 3)
    assert colours(clip).data_ptr() == clip.data_ptr()  # no copy
