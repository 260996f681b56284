"""Conditionings cut to some frames, a tile or a moving window of the clip."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any

import comfy.conds
import comfy.utils
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ...vcd_core import tiled


def cut_conds(
    entries: list[dict[str, Any]] | None,
    tile: tiled.Tile,
    x: torch.Tensor,
    controls: dict[int, Any],
    hints: WeakTensorKeyDictionary,
) -> list[dict[str, Any]] | None:
    """A conditioning cut to one tile; an entry whose mask or area does not reach the tile is left out.

    ``controls`` remembers the ControlNets cut to this tile, so that conditionings that share one still do.
    """
    if entries is None:
        return None
    kept = []
    for entry in entries:
        part = dict(entry)
        if "mask" in part:
            part["mask"] = tile.cut(part["mask"])
            if not part["mask"].any():
                continue
        if part.get("area") is not None:
            area = _cut_area(part["area"], tile)
            if area is None:
                continue
            part["area"] = area
        if part.get("gligen") is not None:
            kind, gligen, boxes = part.pop("gligen")
            inside = [(box[0], *area) for box in boxes if (area := _cut_area(box[1:], tile))]
            if inside:
                part["gligen"] = (kind, gligen, inside)
        part["model_conds"] = {name: _cut_value(value, tile, x) for name, value in part["model_conds"].items()}
        if part.get("control") is not None:
            key = id(part["control"])
            if key not in controls:
                controls[key] = _cut_control(part["control"], tile, x, hints)
            part["control"] = controls[key]
        kept.append(part)
    return kept


def _cut_value(value: Any, tile: tiled.Tile, x: torch.Tensor) -> Any:
    if isinstance(value, comfy.conds.CONDNoiseShape) and value.cond.shape[-2:] == x.shape[-2:]:
        return type(value)(tile.cut(value.cond))
    return value


def _cut_area(area: Any, tile: tiled.Tile) -> tuple[int, ...] | None:
    """An area (height, width, top, left) within the tile's own coordinates."""
    height, width, top, left = area[-4:] if len(area) == 4 else (*area[1:3], *area[4:6])
    bottom, right = min(top + height, tile.top + tile.height), min(left + width, tile.left + tile.width)
    top, left = max(top, tile.top), max(left, tile.left)
    if bottom <= top or right <= left:
        return None
    inside = (bottom - top, right - left, top - tile.top, left - tile.left)
    return inside if len(area) == 4 else (area[0], *inside[:2], area[3], *inside[2:])


def _cut_control(control: Any, tile: tiled.Tile, x: torch.Tensor, hints: WeakTensorKeyDictionary) -> Any:
    """A ControlNet whose hint is cut to the tile; the net itself is shared.

    ``hints`` remembers, for each hint, what it is at the picture's size: tiles and steps after the first find it there.
    """
    ratio = control.compression_ratio
    if getattr(control, "vae", None) is not None:
        ratio *= control.vae.spacial_compression_encode()
    place = tiled.Tile(*(v * ratio for v in tile))

    def cut(hint: torch.Tensor) -> torch.Tensor:
        full = (x.shape[-1] * ratio, x.shape[-2] * ratio)
        if (hint.shape[-1], hint.shape[-2]) == full:
            return place.cut(hint)
        large = hints.get(hint)
        if large is None or (large.shape[-1], large.shape[-2]) != full:
            hints[hint] = large = comfy.utils.common_upscale(hint, *full, control.upscale_algorithm, "center")
        return place.cut(large)

    return with_hint(control, cut)


def with_hint(control: Any, cut: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a ControlNet, and of those chained before it, that sees ``cut(hint)``."""
    part = copy.copy(control)
    for name, value in vars(control).items():  # some packs bind methods to the instance
        if isinstance(value, MethodType) and value.__self__ is control:
            setattr(part, name, MethodType(value.__func__, part))
    if control.cond_hint_original is not None:
        part.cond_hint_original = cut(control.cond_hint_original)
    part.extra_concat_orig = [e if e.shape[-1] == 1 else cut(e) for e in getattr(control, "extra_concat_orig", [])]
    part.cond_hint = part.extra_concat = None
    if control.previous_controlnet is not None:
        part.previous_controlnet = with_hint(control.previous_controlnet, cut)
    return part


AREA_CELL = 8  # pixels that the host counts as one in a conditioning's area
WHOLE_PICTURE = (
    "area",
    "set_area_to_bounds",
    "gligen",
    "concat_latent_image",
    "concat_mask",
)  # what cuts do not take over


def conditioning_of(
    conditioning: Any,
    frames: range,
    clip: int,
    picture: tuple[int, int],
    cut: Callable[[torch.Tensor], torch.Tensor],
    controls: dict[int, Any],
) -> Any:
    """A conditioning for a video that was cut out of some frames of a clip.

    Rows are those of the frames; masks and ControlNet hints are cut as the pictures were, and areas as the masks that they
    are; what then lies nowhere in the video is left out, unless nothing would remain.  GLIGEN boxes, which are places in the whole picture, are left
    out, as is the latent of the whole picture that inpainting models are shown (they then draw all of the cut anew).  Hints
    of fewer frames are repeated, as the host does.

    Args:
        picture: height and width of the clip; a hint of another shape is fitted to it as the host does, by its middle.
        cut: ``cut(images [frames, H, W, C])``, given those of the video, gives its frames.
        controls: remembers the ControlNets cut so, so that conditionings that share one still do.
    """

    def cut_hint(control: Any, hint: torch.Tensor) -> torch.Tensor:
        hint = of_frames(hint, frames)
        if tuple(hint.shape[-2:]) != picture:
            hint = comfy.utils.common_upscale(hint, picture[1], picture[0], control.upscale_algorithm, "center")
        return cut(hint.movedim(1, -1)).movedim(-1, 1)

    part: list[Any] = []
    elsewhere: list[Any] = []
    for tensor, options in conditioning:
        area = options.get("area")
        options = {k: v for k, v in options.items() if k not in WHOLE_PICTURE}
        whole = tensor.shape[0] == clip and clip > 1
        if whole and torch.is_tensor(options.get("pooled_output")) and len(options["pooled_output"]) == clip:
            options["pooled_output"] = options["pooled_output"][frames.start : frames.stop]
        masks = [options["mask"]] if "mask" in options else []
        masks += [_mask_of_area(area, picture)] if area is not None else []
        if masks:
            there = (cut(of_frames(mask, frames)[..., None])[..., 0] for mask in masks)
            options["mask"] = torch.stack(list(there)).prod(0).clamp(0, 1)
        if options.get("control") is not None:
            control = options["control"]
            if id(control) not in controls:
                controls[id(control)] = with_hint(control, partial(cut_hint, control))
            options["control"] = controls[id(control)]
        rows = tensor[frames.start : frames.stop] if whole else tensor
        if masks and not _reaches(options["mask"]):
            elsewhere.append([rows, {k: v for k, v in options.items() if k != "mask"}])
        else:
            part.append([rows, options])
    return part or elsewhere


def _reaches(mask: torch.Tensor) -> bool:
    """Whether anything of a mask [F, H, W] is left where the sampler sees it, in the latent's cells."""
    cells = torch.nn.functional.interpolate(mask[:, None], scale_factor=1 / AREA_CELL, mode="bilinear")
    return bool(cells.amax() > 0.01)


def _mask_of_area(area: tuple[Any, ...], picture: tuple[int, int]) -> torch.Tensor:
    """The mask [1, H, W] of a conditioning's area: height, width, top and left in latent cells, or parts of the picture."""
    shares = isinstance(area[0], str)
    places = area[1:] if shares else area
    height, width, top, left = (
        round(float(value) * (side if shares else AREA_CELL)) for value, side in zip(places, 2 * picture, strict=True)
    )
    mask = torch.zeros(1, *picture)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def enlarged_areas(conditioning: Any, scale: float) -> Any:
    """A conditioning whose areas and GLIGEN boxes, places in a clip's latent, fit the clip enlarged by ``scale``."""

    def enlarged(place: Any) -> Any:
        return place if isinstance(place[0], str) else tuple(round(value * scale) for value in place)

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


def of_frames(rows: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    """The rows of these frames; fewer rows than frames in the clip are repeated."""
    return rows[torch.as_tensor(list(frames)) % len(rows)]


def check_conditioning(conditioning: Any, frames: int, name: str) -> None:
    """Raise ``ValueError`` where a conditioning has rows for another number of frames than the clip."""
    for tensor, options in conditioning:
        for what, found in (("rows", tensor.shape[0]), ("mask frames", len(options.get("mask", "1")))):
            if found not in (1, frames):
                raise ValueError(
                    f"{name} has {found} {what}, but the clip has {frames} frames; expected 1 or {frames}."
                )
