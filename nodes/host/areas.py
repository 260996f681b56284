"""Areas, GLIGEN boxes and masks: where in the picture a conditioning holds, in the host's units."""

from __future__ import annotations

from typing import Any

import torch

from ...vcd_core.tiled import Tile

AREA_CELL = 8  # pixels that the host counts as one in a conditioning's area


def area_in(area: Any, tile: Tile) -> tuple[int, ...] | None:
    """An area (height, width, top, left; for video with time before each half) cut to a tile, seen from its corner."""
    height, width, top, left = area[-4:] if len(area) == 4 else (*area[1:3], *area[4:6])
    bottom, right = min(top + height, tile.top + tile.height), min(left + width, tile.left + tile.width)
    top, left = max(top, tile.top), max(left, tile.left)
    if bottom <= top or right <= left:
        return None
    inside = (bottom - top, right - left, top - tile.top, left - tile.left)
    return inside if len(area) == 4 else (area[0], *inside[:2], area[3], *inside[2:])


def reaches(mask: torch.Tensor) -> bool:
    """Whether anything of a mask [F, H, W] is left in the latent's cells, in which the sampler sees it."""
    cells = torch.nn.functional.interpolate(mask[:, None], scale_factor=1 / AREA_CELL, mode="bilinear")
    return bool(cells.amax() > 0.01)


def mask_of_area(area: tuple[Any, ...], picture: tuple[int, int]) -> torch.Tensor:
    """The mask [1, H, W] of an area: height, width, top and left in latent cells, or as shares of the picture."""
    shares = isinstance(area[0], str)
    sides = area[1:] if shares else area
    height, width, top, left = (
        round(float(value) * (side if shares else AREA_CELL)) for value, side in zip(sides, 2 * picture, strict=True)
    )
    mask = torch.zeros(1, *picture)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def enlarged_areas(conditioning: Any, scale: float) -> Any:
    """A conditioning whose areas and GLIGEN boxes, in cells of a clip's latent, fit the clip enlarged by ``scale``."""

    def enlarged(area: Any) -> Any:
        return area if isinstance(area[0], str) else tuple(round(value * scale) for value in area)

    changed = []
    for tensor, options in conditioning:
        options = dict(options)
        if options.get("area") is not None:
            options["area"] = enlarged(options["area"])
        if options.get("gligen") is not None:
            kind, gligen, boxes = options["gligen"]
            options["gligen"] = (kind, gligen, [(box[0], *enlarged(box[1:])) for box in boxes])
        changed.append([tensor, options])
    return changed
