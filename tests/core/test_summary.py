"""Means, worst tenths, drifts and differences with intervals."""

import math

import numpy as np
import pytest
import torch

from vcd_core import summary


def series(n, r, seed, drift=0.0):
    """A first-order process of this correlation and unit variance, with a drift over its length."""
    rng = np.random.default_rng(seed)
    values = [rng.normal()]
    for _ in range(n - 1):
        values.append(r * values[-1] + math.sqrt(1 - r * r) * rng.normal())
    return torch.tensor(np.array(values) + drift * np.linspace(-0.5, 0.5, n))


@pytest.mark.parametrize("r", [0.0, 0.5, 0.8])
@pytest.mark.parametrize(("what", "truth"), [("mean", 0.0), ("drift", 2.0)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(r, what, truth):
    found = [getattr(summary, what)(series(150, r, seed, drift=truth)) for seed in range(400)]
    inside = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.88 <= inside <= 0.985, inside


def test_intervals_that_took_frames_for_independent_would_not():
    inside = 0
    for seed in range(200):
        values = series(150, 0.8, seed).numpy()
        inside += abs(values.mean()) <= 1.98 * values.std(ddof=1) / math.sqrt(len(values))
    assert inside / 200 < 0.7


def test_drift_is_scipys_slope_over_the_length():
    from scipy.stats import linregress

    values = series(80, 0.0, 3, drift=1.0)
    line = linregress(np.arange(80), values.numpy())
    found = summary.drift(values)
    assert found.value == pytest.approx(line.slope * 79)
    assert found.half == pytest.approx(1.99 * line.stderr * 79, rel=0.15)


def test_frames_without_a_value_keep_their_place():
    values = torch.linspace(0, 1, 41)
    values[[3, 4, 20, 39]] = math.nan
    assert summary.drift(values).value == pytest.approx(1.0)
    assert summary.mean(values).value == pytest.approx(float(values[values.isfinite()].mean()))


def test_a_difference_of_the_same_frames_is_told_closer_than_one_of_means():
    before = series(100, 0.9, 5) * 3
    after = before + 0.2 + series(100, 0.0, 6) * 0.05
    paired, apart = summary.difference(before, after), summary.difference(before, after[:-1])
    assert paired.decided
    assert not apart.decided
    assert paired.value == pytest.approx(0.2, abs=0.02)
    assert paired.half < apart.half / 10


@pytest.mark.parametrize("values", [[], [math.nan] * 5, [1.0], [1.0, 2.0]])
def test_too_few_values_tell_no_interval(values):
    values = torch.tensor(values)
    for found in (summary.mean(values), summary.drift(values)):
        assert not found.decided
        assert math.isnan(found.half)
    assert summary.worst_tenth(torch.tensor([]))[1] == []


def test_the_worst_tenth_is_a_tenth_from_either_side():
    values = torch.arange(40.0).flip(0)
    assert summary.worst_tenth(values) == (1.5, [39, 38, 37, 36])
    assert summary.worst_tenth(values, least_is_worst=False) == (37.5, [0, 1, 2, 3])
