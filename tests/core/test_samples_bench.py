"""The figures of the samples benchmark, on samples that are known, and what its reader of actions learns from."""

import random
from dataclasses import replace

import torch
from torch.nn import functional as F

from benchmarks import actions, eyes, samples
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


def test_other_ways_to_draw_are_judged_by_pairs():
    pair = samples.Pair
    made = [pair("euler", "faces", 0.5 + 0.1 * i, 0.4 + 0.1 * i + 0.02 * (i % 2)) for i in range(4)]
    others = [
        pair("euler", "hats", 1.0, 0.0),
        pair("euler", "hats", 1.0, 0.0),
        *[pair("motion", "faces", 0.5, 0.75)] * 2,
    ]
    text = samples.table_of_pairs([*made, *others])
    assert "| euler | faces | 0.560 | 0.650 | 0.090 ± 0.018 | 4 |" in text
    assert "| euler | hats | 0.000 | 1.000 | 1.000 ± 0.000 | 2 |" in text
    assert "| motion | faces | 0.750 | 0.500 | -0.250 ± 0.000 | 2 |" in text


class Plain:
    """Stands for an autoencoder: latents are the pictures, 8 times smaller."""

    def encode(self, images):
        return F.avg_pool2d(images.movedim(-1, 1), 8)

    def decode(self, latents):
        return F.interpolate(latents, scale_factor=8).movedim(1, -1)


def test_true_clips_come_from_their_seed_and_show_every_action():
    clips, wanted = actions.true_clips(Plain(), 8, 3, 0.5)
    again, _ = actions.true_clips(Plain(), 8, 3, 0.5)
    assert torch.equal(clips, again)
    assert clips.shape == (8, world.FRAMES, 3, actions.HALF, actions.HALF)
    assert set(actions.true_clips(Plain(), 24, 3, 0.0)[1].tolist()) == set(range(len(world.ACTIONS)))
    assert len(wanted) == 8
    true, _ = actions.true_clips(Plain(), 8, 3, 0.0)
    assert [torch.equal(*pair) for pair in zip(clips, true, strict=True)] == [False] * 4 + [True] * 4


def test_flicker_changes_a_still_clip_in_some_places_and_leaves_its_mean():
    still = torch.full((64, 128, 128, 3), 0.5)
    still[:, 32:96, 32:96] = 0.8
    found = actions.flickering(Plain(), still, torch.Generator().manual_seed(1))
    moved = F.avg_pool2d((found - still).std(0).mean(-1)[None], 32)
    assert moved.max() > 3 * moved.min() > 0
    assert (found.mean(0) - still[0]).abs().mean() < 0.01


def test_disturbances_keep_the_clip_and_leave_the_picture_readable():
    clips, _ = actions.true_clips(Plain(), 4, 3, 0.0)
    found = actions.disturbed(clips, torch.Generator().manual_seed(0))
    assert found.shape == clips.shape
    difference = (found - clips.float() / 255).abs()
    assert 0.005 < difference.mean() < 0.1


def test_reading_takes_frames_of_any_size():
    images = torch.rand(16, 256, 192, 3)
    assert actions.halved(images).shape == (16, 3, actions.HALF, actions.HALF)
    assert actions.ActionReader().eval().read(images) in world.ACTIONS


def test_a_close_up_that_lost_an_eye_is_told_from_a_whole_one():
    rng = random.Random(4)
    clips = [
        world.random_take(rng, person, framing="close-up", action="standing") for person in world.identities(8, seed=3)
    ]
    shown = [clip for clip in clips if eyes.shown(clip)]
    assert len(shown) > 4
    for clip in shown:
        frame = world.render(clip, 0)
        picture = torch.tensor(frame.image)[None] / 255
        x, y, w, h = frame.faces[0]
        cheek = picture[:, int(y + 0.66 * h), int(x + 0.27 * w)]
        blind = picture.clone()
        blind[:, int(y + 0.28 * h) : int(y + 0.54 * h), int(x + 0.5 * w) : int(x + 0.96 * w)] = cheek
        assert eyes.both(torch.cat([picture, blind])) == [True, False], world.describe(clip.people[0])


def test_eyes_are_not_looked_for_behind_dark_glass_or_far_away():
    for framing, glasses, shown in (
        ("close-up", "none", True), ("close-up", "sunglasses", False), ("far away", "none", False),
    ):  # fmt: skip
        person = replace(world.identities(1)[0], glasses=glasses)
        assert eyes.shown(world.random_take(random.Random(1), person, framing=framing)) == shown
