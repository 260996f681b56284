"""The guides of LTX-Video, frames appended to the latent, within a tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...vcd_core.tiled import Tile


def tokens_in(coordinates: torch.Tensor, tile: Tile, picture: tuple[int, int], name: str) -> torch.Tensor:
    """The pixel coordinates [B, 3, n * h * w, 2] of guides' cells that lie in a tile, counted from the tile's corner.

    Args:
        coordinates: of n frames, (time, row, column) from begin to end of each cell.
        picture: height and width in cells.

    Raises:
        ValueError: as many coordinates as no number of whole frames has.
    """
    height, width = picture
    if coordinates.ndim != 4 or coordinates.shape[2] % (height * width):
        raise ValueError(
            f"'{name}' in the conditioning has shape {list(coordinates.shape)}; expected one for each of the "
            f"{height}x{width} cells of whole frames."
        )
    cells = coordinates.unflatten(2, (-1, height, width))
    inside = cells[:, :, :, tile.top : tile.top + tile.height, tile.left : tile.left + tile.width].clone()
    if inside.shape[2]:
        for axis in (1, 2):
            inside[:, axis] -= inside[:, axis, :, :1, :1, :1] - cells[:, axis, :, :1, :1, :1]
    return inside.flatten(2, 4)


def guides_in(entries: list[dict[str, Any]], tile: Tile, cut: Callable[[torch.Tensor], torch.Tensor]) -> list[Any]:
    """The entries of LTX-Video's guides for a tile; ``cut`` takes what of a mask lies in it."""
    inside = []
    for entry in entries:
        frames, *_ = entry["latent_shape"]
        mask = entry.get("pixel_mask")
        inside.append({
            **entry,
            "latent_shape": [frames, tile.height, tile.width],
            "pre_filter_count": frames * tile.height * tile.width,
            "pixel_mask": mask if mask is None or mask.shape[-1] == 1 else cut(mask),
        })  # fmt: skip
    return inside
