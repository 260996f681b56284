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
    """Tiles of one size that cover a picture, and how they are blended."""

    tiles: list[Tile]
    weights: list[torch.Tensor]  # one [height, width] for each tile; over the picture they sum to one

    @property
    def cost(self) -> float:
        """Pixels of all tiles over the picture's pixels."""
        bottom = max(tile.top + tile.height for tile in self.tiles)
        right = max(tile.left + tile.width for tile in self.tiles)
        return sum(tile.height * tile.width for tile in self.tiles) / (bottom * right)


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
    begins = [stride * i for i in range(count)]
    if shift % 1:
        begins = [stride * (i - shift % 1) for i in range(count + 1)]
    return sorted({min(max(round(begin), 0), length - tile) for begin in begins})


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
    rows, columns = starts(height, tile, overlap, shift[0]), starts(width, tile, overlap, shift[1])
    tall, wide = min(tile, height), min(tile, width)
    row_weights, column_weights = _axis_weights(rows, tall, height), _axis_weights(columns, wide, width)
    tiles = [Tile(top, left, tall, wide) for top in rows for left in columns]
    weights = [r[:, None] * c[None, :] for r in row_weights for c in column_weights]
    return Grid(tiles, weights)


def shifts(step: int) -> tuple[float, float]:
    """The grid's shift at a step: 0 at step 0, the others spread evenly over the stride (the R2 sequence)."""
    return (step * 0.7548776662466927) % 1, (step * 0.5698402909980532) % 1


def check(tile: int, overlap: int) -> None:
    """Raise ``ValueError`` unless 1 <= tile and 0 <= overlap < tile."""
    if tile < 1:
        raise ValueError(f"The tile size is {tile}; expected at least 1.")
    if not 0 <= overlap < tile:
        raise ValueError(f"The overlap is {overlap} and the tile {tile}; the overlap must be smaller than the tile.")


def _axis_weights(begins: list[int], tile: int, length: int) -> list[torch.Tensor]:
    """Raised-cosine ramps across each overlap, divided by their sum (float64 inside, float32 out)."""
    raw = []
    for i, start in enumerate(begins):
        at = torch.arange(tile, dtype=torch.float64) + 0.5
        weight = torch.ones(tile, dtype=torch.float64)
        if i > 0:
            into = begins[i - 1] + tile - start
            weight *= _ramp(at / into)
        if i + 1 < len(begins):
            out = start + tile - begins[i + 1]
            weight *= _ramp((tile - at) / out)
        raw.append(weight)
    total = torch.zeros(length, dtype=torch.float64)
    for start, weight in zip(begins, raw, strict=True):
        total[start : start + tile] += weight
    return [(weight / total[start : start + tile]).float() for start, weight in zip(begins, raw, strict=True)]


def _ramp(x: torch.Tensor) -> torch.Tensor:
    return 0.5 - 0.5 * torch.cos(math.pi * x.clamp(0, 1))
