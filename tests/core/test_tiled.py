"""Tile grids: cover, sizes, partition of unity, no trace of the grid in what is blended."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vcd_core.tiled import grid, moving_grid, shifts, spans, starts

sizes = st.tuples(st.integers(1, 150), st.integers(1, 150))


def total(g, height, width):
    out = torch.zeros(height, width, dtype=torch.float64)
    for tile, weight in zip(g.tiles, g.weights, strict=True):
        tile.cut(out).add_(weight.double())
    return out


@given(size=sizes, tile=st.integers(2, 80), part=st.floats(0, 0.99), step=st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_grids_cover_with_weights_that_sum_to_one(size, tile, part, step):
    overlap = int(part * tile)
    g = grid(*size, tile, overlap, shifts(step))
    assert (total(g, *size) - 1).abs().max() < 1e-6
    assert {(t.height, t.width) for t in g.tiles} == {(min(tile, size[0]), min(tile, size[1]))}
    assert all(w.min() >= 0 for w in g.weights)
    for length in size:
        places = starts(length, tile, overlap)
        assert all(a + tile - b >= overlap for a, b in itertools.pairwise(places))
        assert places[0] == 0
        assert places[-1] + tile >= length


@given(
    size=sizes, tile=st.integers(1, 40), part=st.floats(0, 0.5), step=st.integers(0, 30), unit=st.sampled_from([1, 2])
)
@example(size=(6, 4), tile=1, part=0.0, step=1, unit=2)  # a tile of one unit, moved by all of its stride
@settings(max_examples=150, deadline=None)
def test_moving_grids_cover_at_little_more_than_the_pictures_size(size, tile, part, step, unit):
    tile, overlap = tile * unit, int(part * tile) * unit
    g = moving_grid(*size, tile, overlap, step, unit)
    assert (total(g, *size) - 1).abs().max() < 1e-6
    assert all(w.min() >= 0 for w in g.weights)
    for length, shift in zip(size, shifts(step), strict=True):
        places = spans(length, tile, overlap, shift, unit)
        assert all(sum(a) - b[0] >= overlap for a, b in itertools.pairwise(places))
        assert all(start % unit == 0 for start, _ in places)
        assert all(begun % unit == 0 or start + begun == length for start, begun in places)
        least = tile / 4 - length % unit
        assert all(min(length, least) <= one <= tile for _, one in places)
        assert sum(one for _, one in places) <= length + overlap * (len(places) - 1) + 2 * (tile / 4 + unit)
        assert len(places) <= -(-length // (tile - overlap)) + 1


def test_moving_grids_move_their_borders():
    starts_of = [tuple(start for start, _ in spans(128, 48, 8, shifts(step)[0])) for step in range(8)]
    assert len(set(starts_of)) >= 7


def test_no_more_tiles_than_needed():
    assert starts(128, 64, 8) == [0, 32, 64]
    assert starts(120, 64, 8) == [0, 56]
    assert starts(64, 64, 8) == starts(10, 64, 8) == [0]


def test_one_tile_is_the_picture():
    g = grid(20, 30, 64, 16)
    assert len(g.tiles) == 1
    assert g.cost == 1
    assert torch.equal(g.weights[0], torch.ones(20, 30))


def test_weights_have_no_step():
    g = grid(128, 128, 64, 16)
    for weight in g.weights:
        assert weight.diff(dim=0).abs().max() < 0.12
        assert weight.diff(dim=1).abs().max() < 0.12


def test_shifted_grids_move_their_borders():
    borders = {tuple(starts(128, 48, 8, shifts(step)[0])) for step in range(8)}
    assert len(borders) >= 6


@pytest.mark.parametrize(
    ("tile", "overlap", "shown"),
    [
        (0, 0, "tile size is 0"),
        (64, 64, "overlap is 64 and the tile 64"),
        (64, 80, "overlap is 80"),
        (64, -1, "overlap is -1"),
    ],
)
def test_bad_tiles_are_refused(tile, overlap, shown):
    with pytest.raises(ValueError, match=shown):
        grid(128, 128, tile, overlap)
