"""Clips of the drawn world, to try nodes on."""

import pytest
import torch

from vcd_core.tiny import clips


def test_a_clip_repeats_with_its_seed_and_has_the_person_in_its_masks():
    frames, masks = clips.clip(clips.ROBIN, "medium", 3, seed=2)
    again, _ = clips.clip(clips.ROBIN, "medium", 3, seed=2)
    other, _ = clips.clip(clips.ANYONE, "medium", 3, seed=7)
    assert torch.equal(frames, again)
    assert not torch.equal(frames, other)
    assert frames.shape == (3, 128, 128, 3)
    assert 0.05 < masks.mean() < 0.6
    assert not torch.equal(frames[0], frames[2])  # the person moves
    outside = (masks.amax(0) == 0)[..., None]
    assert torch.equal(frames[0] * outside, frames[2] * outside)  # and the scene stays


def test_pictures_are_of_one_person_in_several_scenes():
    pictures, masks = clips.pictures(clips.ROBIN, "close-up", 5, seed=1)
    corners = {tuple(picture[1, 1].tolist()) for picture in pictures}
    assert len(corners) == 5
    assert (masks.flatten(1).mean(1) > 0.2).all()


def test_another_person_is_refused():
    with pytest.raises(ValueError, match="expected 'robin' or 'by the seed'"):
        clips.clip("anna", "medium", 1, seed=0)
