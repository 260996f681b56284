"""Tile grids with smooth partition-of-unity weights, for denoising a large clip piece by piece (Magic-Me, sec. 4.3).

A tile is a place in the last two axes; all frames of it are denoised together. Where tiles overlap, their predictions
are blended with weights that sum to one everywhere, so a constant stays constant and no seam shows.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """A place in the last two axes: top, left, height, width."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """The part of ``x`` [..., H, W] under this tile (a view)."""
        return x[..., self.top : self.top + self.height, self.left : self.left + self.width]


class Grid(NamedTuple):
    """Tiles that cover a picture, and how they are blended."""

    tiles: list[Tile]
    weights: list[torch.Tensor]  # one [height, width] for each tile; over the picture they sum to one

    @property
    def cost(self) -> float:
        """Pixels of all tiles over the picture's pixels."""
        bottom = max(tile.top + tile.height for tile in self.tiles)
        right = max(tile.left + tile.width for tile in self.tiles)
        return sum(tile.height * tile.width for tile in self.tiles) / (bottom * right)

    @property
    def largest(self) -> Tile:
        """The tile with the most pixels."""
        return max(self.tiles, key=lambda tile: tile.height * tile.width)


def starts(length: int, tile: int, overlap: int, shift: float = 0.0) -> list[int]:
    """Where the tiles of an axis begin: evenly from 0 to ``length - tile``, overlapping by ``overlap`` or more.

    Args:
        length: the axis' length.
        tile: the tiles' length; one tile is made where it covers the axis.
        overlap: the least overlap of neighbours, less than the tile.
        shift: 0..1, moves the grid by that share of its stride (for another grid at each step); costs one tile more.

    Example:
        >>> starts(100, 40, 8)
        [0, 30, 60]
    """
    check(tile, overlap)
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    stride = (length - tile) / (count - 1)
    moved = round(shift % 1 * stride)  # whole cells: halves are rounded to even, and neighbours would part
    begins = [round(stride * i) - moved for i in range(count + (moved > 0))]
    return sorted({min(max(begin, 0), length - tile) for begin in begins})


def grid(height: int, width: int, tile: int, overlap: int, shift: tuple[float, float] = (0.0, 0.0)) -> Grid:
    """Tiles of one size over [height, width] with weights that sum to one (units: cells of the last two axes).

    Raises:
        ValueError: a tile below 1, or an overlap that is negative or not smaller than the tile.

    Example:
        >>> small = grid(12, 20, tile=8, overlap=2)
        >>> [tuple(t) for t in small.tiles[:2]]
        [(0, 0, 8, 8), (0, 6, 8, 8)]
        >>> sums = torch.zeros(12, 20)
        >>> for tile, weight in zip(*small):
        ...     _ = tile.cut(sums).add_(weight)
        >>> torch.allclose(sums, torch.ones(12, 20), atol=1e-6)
        True
    """
    rows, columns = (
        [(start, min(tile, length)) for start in starts(length, tile, overlap, moved)]
        for length, moved in zip((height, width), shift, strict=True)
    )
    return _of_spans(rows, columns, height, width)


def spans(length: int, tile: int, overlap: int, shift: float = 0.0, unit: int = 1) -> list[tuple[int, int]]:
    """Begin and length of an axis' tiles in a grid that moves as a whole: a stride of ``tile - overlap`` apart, the
    first and the last cut short at the ends, but not below a quarter of a tile.

    So all of the axis is covered at little more than its own length, wherever the grid stands.

    Args:
        length: the axis' length.
        tile, overlap: multiples of ``unit``; one tile is made where it covers the axis.
        shift: 0..1, moves the grid by that share of its stride.
        unit: begins are multiples of it, and so are lengths, but for the last of an axis that is none.

    Example:
        >>> spans(100, 40, 8)
        [(0, 40), (32, 40), (64, 36)]
        >>> spans(100, 40, 8, shift=0.5)
        [(0, 24), (16, 40), (48, 40), (80, 20)]
    """
    check(tile, overlap)
    if length <= tile:
        return [(0, length)]
    stride = tile - overlap
    least = -(-tile // (4 * unit)) * unit
    found: list[tuple[int, int]] = []
    moved = round(shift % 1 * stride / unit) * unit % stride
    for begin in range(-moved, length, stride):
        start, end = max(begin, 0), min(begin + tile, length)
        if found and end <= sum(found[-1]):
            break  # the one before reaches the end
        if begin < 0:
            end = max(end, least)
        elif end - start < least:
            start = -(-(length - least) // unit) * unit
        found.append((start, end - start))
    return found


def moving_grid(height: int, width: int, tile: int, overlap: int, step: int, unit: int = 1) -> Grid:
    """The tiles of a step, in a grid that stands elsewhere at each: little overlap is enough, since no place is at a
    border for long.

    Args:
        unit: how many cells a model takes together; tiles begin and end at multiples of it.

    Example:
        >>> round(moving_grid(64, 64, 32, 4, step=1).cost, 2), round(grid(64, 64, 32, 8).cost, 2)
        (1.27, 2.25)
    """
    rows, columns = (
        spans(length, tile, overlap, shift, unit) for length, shift in zip((height, width), shifts(step), strict=True)
    )
    return _of_spans(rows, columns, height, width)


def _of_spans(rows: list[tuple[int, int]], columns: list[tuple[int, int]], height: int, width: int) -> Grid:
    """The tiles whose rows and columns these are."""
    tiles = [Tile(top, left, tall, wide) for top, tall in rows for left, wide in columns]
    down, across = _axis_weights(rows, height), _axis_weights(columns, width)
    return Grid(tiles, [r[:, None] * c[None, :] for r in down for c in across])


def shifts(step: int) -> tuple[float, float]:
    """The grid's shift at a step: 0 at step 0, the others spread evenly over the stride (the R2 sequence)."""
    return (step * 0.7548776662466927) % 1, (step * 0.5698402909980532) % 1


def check(tile: int, overlap: int) -> None:
    """Raise ``ValueError`` unless 1 <= tile and 0 <= overlap < tile."""
    if tile < 1:
        raise ValueError(f"The tile size is {tile}; expected at least 1.")
    if not 0 <= overlap < tile:
        raise ValueError(f"The overlap is {overlap} and the tile {tile}; the overlap must be smaller than the tile.")


def _axis_weights(places: list[tuple[int, int]], length: int) -> list[torch.Tensor]:
    """Raised-cosine ramps across each overlap, divided by their sum (float64 inside, float32 out)."""
    raw = []
    for i, (start, size) in enumerate(places):
        at = torch.arange(size, dtype=torch.float64) + 0.5
        weight = torch.ones(size, dtype=torch.float64)
        if i > 0:
            weight *= _ramp(at / (sum(places[i - 1]) - start))
        if i + 1 < len(places):
            weight *= _ramp((size - at) / (start + size - places[i + 1][0]))
        raw.append(weight)
    total = torch.zeros(length, dtype=torch.float64)
    for (start, size), weight in zip(places, raw, strict=True):
        total[start : start + size] += weight
    return [(w / total[start : start + size]).float() for (start, size), w in zip(places, raw, strict=True)]


def _ramp(x: torch.Tensor) -> torch.Tensor:
    return 0.5 - 0.5 * torch.cos(math.pi * x.clamp(0, 1))
