"""Predicting tile by tile inside a sampler, and blending before its update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.patcher_extension
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ...vcd_core import tiled
from .cut import cut_conds
from .memory import raise_unless_memory
from .model import Model
from .wrappers import CLIPS_IN_BATCH, with_wrapper


def with_tiles(
    model: Model,
    key: str,
    grid_of: Callable[[int, int, int], tiled.Grid],
    on_tiles: Callable[[float], None] | None = None,
) -> Model:
    """A clone that predicts tile by tile and blends the predictions before the sampler's update.

    It wraps the host's ``calc_cond_batch``: inside context windows in time, outside everything that happens for one
    prediction, so samplers, schedules, ControlNets and masks work as they are, each cut to the tile.  The host frees memory
    for a tile before it samples, not for the whole picture.

    Args:
        grid_of: ``grid_of(height, width, step)`` gives the tiles for a latent of this size at this step.
        on_tiles: called after each model call with the part of this step's tiles that is done, 0..1.
    """

    hints = WeakTensorKeyDictionary()

    def wrapper(executor, base, conds, x, timestep, model_options):  # type: ignore[no-untyped-def]
        if x.ndim not in (4, 5):
            raise ValueError(
                f"This model samples latents of {x.ndim} axes, which have no tiles; expected 4, or 5 (video)."
            )
        grid = grid_of(x.shape[-2], x.shape[-1], _step(timestep, model_options))
        if len(grid.tiles) == 1:
            results = executor(base, conds, x, timestep, model_options)
            if on_tiles:
                on_tiles(1.0)
            return results
        out = [torch.zeros_like(x) for _ in conds]
        # windows of another pack that run inside ours know the clip's frames alone, not a stack of tiles
        others_inside = executor.idx < len(executor.wrappers) - 1
        size = 1 if others_inside else _tiles_at_once(base, x, grid, conds, model_options)
        waiting = list(range(len(grid.tiles)))
        while waiting:
            comfy.model_management.throw_exception_if_processing_interrupted()
            group = waiting[:size]
            results = None
            try:
                results = _predict(executor, base, conds, x, timestep, model_options, grid, group, hints)
            except Exception as error:
                raise_unless_memory(error)
                if size == 1:
                    raise RuntimeError("Out of memory on a single tile. Use a smaller tile_size.") from error
            if results is None:  # out of memory; what it held is freed only now that the error is gone
                comfy.model_management.soft_empty_cache()
                size = max(1, size // 2)
                continue
            for total, parts in zip(out, results, strict=True):
                for number, part in zip(group, parts.chunk(len(group)), strict=True):
                    grid.tiles[number].cut(total).add_(part * grid.weights[number].to(part))
            waiting = waiting[size:]
            if on_tiles:
                on_tiles(1 - len(waiting) / len(grid.tiles))
        return out

    def prepare(executor, patcher, noise_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
        tile = grid_of(noise_shape[-2], noise_shape[-1], 0).tiles[0]
        return executor(patcher, [*noise_shape[:-2], tile.height, tile.width], *args, **kwargs)

    wrappers = comfy.patcher_extension.WrappersMP
    model = with_wrapper(model, wrappers.PREPARE_SAMPLING, key, prepare)
    done = comfy.patcher_extension.CallbacksMP.ON_CLEANUP
    model.remove_callbacks_with_key(done, key)
    model.add_callback_with_key(done, key, lambda owner: hints.clear())
    return with_wrapper(model, wrappers.CALC_COND_BATCH, key, wrapper)


def _predict(executor, base, conds, x, timestep, model_options, grid, group, hints):  # type: ignore[no-untyped-def]
    """The model's predictions for a group of tiles, stacked along the batch."""
    parts = torch.cat([grid.tiles[number].cut(x) for number in group])
    controls: dict[int, Any] = {}
    cut = [cut_conds(cond, grid.tiles[group[0]], x, controls, hints) for cond in conds]
    if len(group) > 1:
        options = dict(model_options.get("transformer_options", {}), **{CLIPS_IN_BATCH: len(group)})
        model_options = {**model_options, "transformer_options": options}
    return executor(base, cut, parts, torch.cat([timestep] * len(group)), model_options)


def _tiles_at_once(
    base: Any, x: torch.Tensor, grid: tiled.Grid, conds: list[Any], model_options: dict[str, Any]
) -> int:
    """How many tiles fit into memory together.

    One on a CPU, which gains nothing, where conditionings differ by place or have rows that are not those of the frames,
    which the host repeats over the whole stack, or where other packs patch the attention: they may give each frame its own
    (IPAdapter) and would take a stack of tiles for one long clip.
    """
    options = model_options.get("transformer_options", {})
    patched = options.get("patches_replace") or any(name.startswith("attn") for name in options.get("patches", {}))
    placed = any(
        key in entry for cond in conds for entry in cond or () for key in ("mask", "area", "control", "gligen")
    )
    per_place = any(
        isinstance(value, comfy.conds.CONDNoiseShape)
        or (torch.is_tensor(value.cond) and value.cond.ndim and len(value.cond) not in (1, len(x)))
        for cond in conds
        for entry in cond or ()
        for value in entry["model_conds"].values()
    )
    if x.device.type == "cpu" or placed or per_place or patched:
        return 1
    tile = grid.tiles[0]
    shape = [2 * x.shape[0], *x.shape[1:-2], tile.height, tile.width]
    free = comfy.model_management.get_free_memory(x.device)
    return int(max(1, min(len(grid.tiles), free // (1.5 * base.memory_required(shape)))))


def _step(timestep: torch.Tensor, model_options: dict[str, Any]) -> int:
    sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None:
        return 0
    return int((sigmas > timestep.reshape(-1)[0] + 1e-5).sum())
