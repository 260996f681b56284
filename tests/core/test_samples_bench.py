"""The figures of the samples benchmark, on samples that are known, and what its reader of actions learns from."""

import torch

from benchmarks import actions, samples
from vcd_core.tiny import world


def test_the_table_counts_what_was_read_right():
    made = [
        samples.Sample("", torch.zeros(1), torch.zeros(1), {"scene of the clip": i < 9, "action of the clip": True})
        for i in range(10)
    ]
    text = samples.table(made, {"action": 0.98})
    assert "| scene of the clip | 9 of 10 | 0.60 to 0.98 |" in text  # Wilson's interval
    assert "| action of the clip | 10 of 10 | 0.72 to 1.00 |" in text
    assert "action 0.98" in text


def test_true_clips_come_from_their_seed_and_show_every_action():
    clips, wanted = actions.true_clips(8, 3)
    again, _ = actions.true_clips(8, 3)
    assert torch.equal(clips, again)
    assert clips.shape == (8, world.FRAMES, 3, actions.HALF, actions.HALF)
    assert set(actions.true_clips(24, 3)[1].tolist()) == set(range(len(world.ACTIONS)))
    assert len(wanted) == 8


def test_disturbances_keep_the_clip_and_leave_the_picture_readable():
    clips, _ = actions.true_clips(4, 3)
    found = actions.disturbed(clips, torch.Generator().manual_seed(0))
    assert found.shape == clips.shape
    difference = (found - clips.float() / 255).abs()
    assert 0.005 < difference.mean() < 0.1


def test_reading_takes_frames_of_any_size():
    images = torch.rand(16, 256, 192, 3)
    assert actions.halved(images).shape == (16, 3, actions.HALF, actions.HALF)
    assert actions.ActionReader().eval().read(images) in world.ACTIONS
