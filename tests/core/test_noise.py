"""The noise prior's contract: statistics, exact limits, layouts, reproducibility, refusals."""

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vcd_core import plots
from vcd_core.noise import (
    correlate,
    correlate_picked,
    covariance,
    measured_covariance,
    parse_schedule,
    picture_spans,
    sample,
)


def independent(frames: int, *rest: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(frames, *rest, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("layout", ["comfy", "magic-me"])
@pytest.mark.parametrize("gamma", [0.0, 0.05, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("closed_loop", [False, True])
def test_draws_have_the_covariance(layout, gamma, closed_loop):
    noise = sample((16, 4, 128, 128), gamma, 3, layout, closed_loop)
    error = (measured_covariance(noise) - covariance(16, gamma, closed_loop)).abs().max()
    assert error < 5 / math.sqrt(4 * 128 * 128)  # 5 standard deviations of a measured correlation


@pytest.mark.parametrize("schedule", [[0.0, 0.9, 0.3, 1.0, 0.5], [0.5] * 5])
def test_a_schedule_keeps_unit_variance_and_multiplies_along_time(schedule):
    noise = correlate(independent(6, 4, 128, 128), schedule)
    expected = covariance(6, schedule)
    assert torch.allclose(expected.diagonal(), torch.ones(6, dtype=torch.float64))
    assert expected[1, 3] == pytest.approx(schedule[1] * schedule[2])
    assert (measured_covariance(noise) - expected).abs().max() < 5 / 256


def test_recursion_is_the_cholesky_factor():
    n = independent(8, 3, 5, 5)
    factor = torch.linalg.cholesky(covariance(8, 0.6)).float()
    assert torch.allclose(correlate(n, 0.6), torch.einsum("ij,jchw->ichw", factor, n), atol=1e-5)


@given(gamma=st.floats(0, 1), frames=st.integers(1, 24))
@example(gamma=0.7095502098361263, frames=13)
@settings(max_examples=40, deadline=None)
def test_covariance_is_a_correlation_matrix(gamma, frames):
    for closed in (False, True):
        sigma = covariance(frames, gamma, closed)
        assert torch.allclose(sigma.diagonal(), torch.ones(frames, dtype=torch.float64))
        assert torch.equal(sigma, sigma.T)
        assert torch.linalg.eigvalsh(sigma).min() > -1e-9


def test_closed_loop_is_circulant():
    sigma = covariance(7, 0.7, closed_loop=True)
    assert torch.allclose(sigma, sigma.roll((1, 1), (0, 1)))
    assert sigma[0, 6] == sigma[0, 1]
    assert covariance(7, 0.7)[0, 6] < 0.12


@pytest.mark.parametrize("closed_loop", [False, True])
def test_limits_are_exact(closed_loop):
    n = independent(5, 4, 8, 8)
    assert torch.equal(correlate(n, 0.0, closed_loop=closed_loop), n)
    assert torch.equal(correlate(n, 1.0, closed_loop=closed_loop), n[:1].expand_as(n))
    assert torch.equal(correlate(torch.zeros(5, 4, 8, 8), 0.3, closed_loop=closed_loop), torch.zeros(5, 4, 8, 8))


def test_input_is_not_changed():
    n = independent(5, 4, 8, 8)
    before = n.clone()
    correlate(n, 0.5)
    assert torch.equal(n, before)


@pytest.mark.parametrize("gamma", [0.7, 1.0, [0.1, 0.9, 0.3, 1.0, 0.9, 0.8, 0.9, 0.7]])
@pytest.mark.parametrize("frames", [[4, 5, 8], [8, 0, 4], [3, 8, 3, 3], [6]])
def test_picked_frames_have_the_covariance_that_they_have_in_the_clip(gamma, frames):
    noise = independent(len(frames), 4, 128, 128)
    expected = covariance(9, gamma)[frames][:, frames]
    gamma = gamma if isinstance(gamma, float) else gamma[: max(frames)]
    assert (measured_covariance(correlate_picked(noise, gamma, frames)) - expected).abs().max() < 5 / 256


def test_a_frame_that_is_picked_twice_has_the_same_noise_twice():
    noise = correlate_picked(independent(3, 4, 8, 8), 0.4, [7, 2, 7])
    assert torch.equal(noise[0], noise[2])


def test_all_frames_picked_in_their_order_are_the_clip():
    n = independent(6, 4, 8, 8)
    assert torch.equal(correlate_picked(n, 0.4, range(6)), correlate(n, 0.4))
    video = n.movedim(0, 1)[None]
    assert torch.equal(correlate_picked(video, 0.4, range(6), dim=2), correlate(video, 0.4, dim=2))


@pytest.mark.parametrize("gamma", [0.3, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]])
def test_first_frames_do_not_depend_on_how_many_follow(gamma):
    long = sample((8, 4, 16, 16), gamma, 5)
    short = sample((4, 4, 16, 16), gamma if isinstance(gamma, float) else gamma[:3], 5)
    assert torch.equal(long[:4], short)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_frames_may_lie_along_any_axis(dim):
    n = independent(6, 4, 10, 3)
    moved = n.movedim(0, dim)
    assert torch.equal(correlate(moved, 0.4, dim=dim).movedim(dim, 0), correlate(n, 0.4))


def test_video_latents_are_correlated_along_their_third_axis():
    video = sample((2, 4, 9, 32, 32), 0.5, 1)
    clip = video[1].movedim(1, 0)
    assert (measured_covariance(clip) - covariance(9, 0.5)).abs().max() < 5 / 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_kept_and_the_recursion_does_not_lose_precision(dtype):
    n = independent(64, 4, 8, 8)
    out = correlate(n.to(dtype), 0.9)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), correlate(n.to(dtype).float(), 0.9).to(dtype).float(), atol=1e-6)


def test_comfy_layout_is_the_hosts_own_draw():
    expected = torch.randn(16, 4, 64, 64, generator=torch.Generator().manual_seed(42))
    assert torch.equal(sample((16, 4, 64, 64), 0.0, 42), expected)


def test_magic_me_layout_is_the_releases_draw():
    frames, h, w, gamma, seed = 16, 24, 40, 0.15, 11
    with torch.random.fork_rng():  # the release seeds the global generator
        torch.manual_seed(seed)
        release = torch.distributions.MultivariateNormal(torch.zeros(frames), covariance(frames, gamma).float())
        expected = release.sample((4, h, w)).permute(3, 0, 1, 2)
    assert torch.allclose(sample((frames, 4, h, w), gamma, seed, "magic-me"), expected, atol=1e-5)


def test_batch_index_gives_each_frame_the_noise_of_the_whole_clip():
    whole = sample((12, 4, 16, 16), 0.5, 9)
    part = sample((3, 4, 16, 16), 0.5, 9, batch_index=[2, 11, 2])
    assert torch.equal(part, whole[[2, 11, 2]])


def test_same_seed_same_bits_and_no_global_state():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert torch.equal(sample((4, 4, 8, 8), 0.2, 3), sample((4, 4, 8, 8), 0.2, 3))
    assert not torch.equal(sample((4, 4, 8, 8), 0.2, 3), sample((4, 4, 8, 8), 0.2, 4))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan, math.inf])
def test_gamma_outside_its_range_is_refused(gamma):
    for call in (
        lambda: sample((4, 4, 8, 8), gamma, 0),
        lambda: covariance(4, gamma),
        lambda: correlate(independent(4, 2), gamma),
    ):
        with pytest.raises(ValueError, match="gamma is"):
            call()


def test_bad_shapes_and_schedules_are_refused():
    with pytest.raises(ValueError, match="0 frames"):
        sample((0, 4, 8, 8), 0.1, 0)
    with pytest.raises(ValueError, match=r"2 values.*3 transitions"):
        sample((4, 4, 8, 8), [0.1, 0.2], 0)
    with pytest.raises(ValueError, match="3 axes"):
        sample((4, 8, 8), 0.1, 0)
    with pytest.raises(ValueError, match="layout"):
        sample((4, 4, 8, 8), 0.1, 0, "other")
    with pytest.raises(ValueError, match="one gamma"):
        correlate(independent(4, 2), [0.1, 0.2, 0.3], closed_loop=True)
    with pytest.raises(ValueError, match="batch_index"):
        sample((4, 4, 8, 8), 0.1, 0, batch_index=[1])


def test_schedules_are_read_as_written():
    assert parse_schedule("0.1, 0.2 | 0.3", 4) == [0.1, 0.2, 0.3]
    assert parse_schedule("2: 0.1, 4: 0.5", 7) == pytest.approx([0.1, 0.1, 0.1, 0.3, 0.5, 0.5])
    for text in (
        '"0": "0.1",\n"4": "0.3"',
        "# slow\n0: 0.1\n\n4: 0.3,",
        "{0: 0.1, 4: 0.3}",
        "0:0.1|4:0.3",
        "0：0.1，4：0.3",
    ):
        assert parse_schedule(text, 7) == parse_schedule("0: 0.1, 4: 0.3", 7)
    for text in ("fast", "0: a", "0: 1: 2", "0: 0.1, 0.2"):
        with pytest.raises(ValueError, match="cannot be read"):
            parse_schedule(text, 4)
    with pytest.raises(ValueError, match="must rise"):
        parse_schedule("4: 0.1, 4: 0.2", 9)
    with pytest.raises(ValueError, match="gamma is 2"):
        parse_schedule("0: 2, 4: 0.1", 9)
    with pytest.raises(ValueError, match=r"gamma is 1\.5"):
        parse_schedule("0: 0.1, 8: 1.5", 2)
    for values in ("0.1, 0.2", ", ".join(["0.1"] * 9)):
        with pytest.raises(ValueError, match=r"(2|9) values.*9 frames.*8 transitions"):
            parse_schedule(values, 9)


def test_keyframes_fit_any_clip_and_a_key_beyond_its_end_still_draws_the_line():
    long = parse_schedule("0: 0.1, 8: 0.9", 17)
    assert long[8:] == [0.9] * 8
    for frames in (1, 2, 5, 8, 9, 10):
        assert parse_schedule("0: 0.1, 8: 0.9", frames) == long[: frames - 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-2: 0.1, 4: 0.2", r"whole numbers from 0; found '-2: 0.1'"),
        ("-1: 0.1", r"found '-1: 0.1'"),
        ("1.5: 0.1, 4: 0.2", r"found '1.5: 0.1'"),
        ("0: 0.1, 4: 0.2, 4: 0.3", r"key at frame 4 after frame 4"),
        ("0: 0.1, 9: 0.2, 3: 0.3", r"key at frame 3 after frame 9"),
    ],
)
def test_keys_that_are_no_frames_are_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse_schedule(text, 16)


@pytest.mark.parametrize("covers", [[1, 4, 4, 4], [1, 8, 8], [1, 4, 4, 4, 4, 1, 4], [1, 1, 1]])
def test_a_schedule_of_a_video_latent_counts_the_pictures_that_its_frames_cover(covers):
    frames, pictures = len(covers), sum(covers)
    of_pictures = parse_schedule("0: 0, 12: 0.6", pictures)
    starts = [sum(covers[:i]) for i in range(1, frames)]
    expected = [of_pictures[start - 1] for start in starts]
    assert expected == pytest.approx([min(0.05 * (start - 1), 0.6) for start in starts])
    for text in ("0: 0, 12: 0.6", ", ".join(map(repr, of_pictures)), ", ".join(map(repr, expected))):
        assert parse_schedule(text, frames, covers=covers) == expected
    for wrong in {0, 1, frames - 2, frames, pictures - 2, pictures} - {0, frames - 1, pictures - 1}:
        with pytest.raises(ValueError, match=rf"{wrong} values.*{pictures} frames.*{frames - 1}"):
            parse_schedule(", ".join(["0.1"] * wrong), frames, covers=covers)


def test_one_picture_has_no_transition():
    assert parse_schedule("0: 0.1, 8: 0.9", 1, covers=[1]) == []
    assert picture_spans([1, 4, 4, 4, 4, 1, 4]) == ["0", "1-4", "5-8", "9-12", "13-16", "17", "18-21"]


def test_names_of_frames_stand_below_them_and_change_nothing_else():
    noise = sample((5, 4, 64, 64), 0.5, 1)
    matrices = covariance(5, 0.5), measured_covariance(noise)
    plain = plots.noise_prior_figure(*matrices, noise, "gamma 0.5")
    named = plots.noise_prior_figure(*matrices, noise, "gamma 0.5", ["0", "1-4", "5-8", "9-12", "13-16"])
    paper = plain[0, 0, 0]
    assert torch.equal(named[:, :506], plain[:, :506])
    below = (named[0, 506:526] != paper).any(-1)
    for left in (28, 500):
        assert all(below[:, left + x : left + x + 86].any() for x in range(0, 430, 86))
    assert named.shape[1] == plain.shape[1] + 40
    crowded = plots.noise_prior_figure(*matrices, noise, "", [f"{i}000000-{i}9999999" for i in range(5)])
    assert crowded.shape == named.shape


def test_a_part_of_a_clip_takes_the_beginning_of_its_schedule():
    assert parse_schedule("0.1, 0.2, 0.3, 0.4", 3, goes_on=True) == [0.1, 0.2]
    with pytest.raises(ValueError, match=r"1 values.*3 frames.*2 transitions"):
        parse_schedule("0.1", 3, goes_on=True)


def test_a_part_of_a_closed_loop_is_refused():
    whole = sample((4, 4, 8, 8), 0.5, 0, closed_loop=True, batch_index=range(4))
    assert torch.equal(whole, sample((4, 4, 8, 8), 0.5, 0, closed_loop=True))
    with pytest.raises(ValueError, match="closed_loop needs the length of the whole"):
        sample((2, 4, 8, 8), 0.5, 0, closed_loop=True, batch_index=[2, 3])


def test_entries_of_a_batch_of_videos_keep_their_noise():
    whole = sample((4, 4, 6, 8, 8), 0.5, 3, batch_index=range(4))
    assert torch.equal(sample((2, 4, 6, 8, 8), 0.5, 3, batch_index=[1, 3]), whole[[1, 3]])
    first, second = whole[:, :, 0].flatten(), whole[:, :, 1].flatten()
    assert float((first * second).mean()) == pytest.approx(0.5, abs=0.1)
