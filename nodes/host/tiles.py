"""Predicting tile by tile inside a sampler, and blending the predictions before its update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import torch

from ...vcd_core.tiled import Grid
from .controls import Hints
from .cut import Cut
from .memory import ROOM, raise_unless_memory
from .model import Model
from .nested import Parts
from .rules import OF_ALL_FRAMES, ROWS, WHOLE, rule_of
from .wrappers import VIDEOS_IN_BATCH, with_wrapper

GridOf = Callable[[Sequence[int], int], Grid]


def with_tiles(
    model: Model,
    key: str,
    grid_of: GridOf,
    on_tiles: Callable[[float], None] | None = None,
    own_references: bool = False,
) -> Model:
    """A clone that predicts tile by tile and blends the predictions before the sampler's update.

    It wraps the host's ``calc_cond_batch``, inside context windows and outside everything that happens for one
    prediction. So samplers and schedules work as they are; ControlNets and masks are cut to the tile. Before sampling
    the host frees memory for a tile, not for the whole picture.

    Of a latent of video and sound the video is cut and every tile has the whole sound.

    Args:
        grid_of: ``grid_of(shape, step)`` gives the tiles for a latent of this shape at this step.
        on_tiles: called after each model call with the share of this step's tiles that is done, 0..1.
        own_references: reference pictures are the clip's own (:func:`.references.of_the_clip`), and cut to the tile.
    """
    hints, sampled = Hints(), list[Sequence[int]]()

    def predict(executor, base, conds, x, timestep, model_options):  # type: ignore[no-untyped-def]
        parts = Parts.of(conds, x)
        picture = parts.shapes[0]
        if len(picture) not in (4, 5):
            raise ValueError(
                f"This model samples latents of {len(picture)} axes, which have no tiles; expected 4, or 5 (video)."
            )
        grid = grid_of(picture, _step(timestep, model_options))
        if len(grid.tiles) == 1:
            results = executor(base, conds, x, timestep, model_options)
            if on_tiles:
                on_tiles(1.0)
            return results
        step = _Step(executor, base, conds, x, timestep, model_options, grid, parts, hints, own_references)
        return step.blended(on_tiles)

    def prepare(executor, patcher, noise_shape, *args, **kwargs):  # type: ignore[no-untyped-def]
        parts = Parts(sampled if len(sampled) > 1 else [noise_shape])
        tile = grid_of(parts.shapes[0], 0).largest
        return executor(patcher, parts.with_sides(tile.height, tile.width).packed, *args, **kwargs)

    def sample(executor, *args, **kwargs):  # type: ignore[no-untyped-def]
        sampled[:] = kwargs.get("latent_shapes") or []  # those of a packed latent are told nowhere else so early
        return executor(*args, **kwargs)

    wrappers = comfy.patcher_extension.WrappersMP
    model = with_wrapper(model, wrappers.OUTER_SAMPLE, key, sample)
    model = with_wrapper(model, wrappers.PREPARE_SAMPLING, key, prepare)
    done = comfy.patcher_extension.CallbacksMP.ON_CLEANUP
    model.remove_callbacks_with_key(done, key)
    model.add_callback_with_key(done, key, lambda owner: hints.clear())
    return with_wrapper(model, wrappers.CALC_COND_BATCH, key, predict)


@dataclass
class _Step:
    """One call of ``calc_cond_batch``, made tile by tile.

    Every tile predicts the sound too, for its own picture; their mean counts, each by the area for which it stands.
    After 8 steps it is 0.013 (LTX-2) and 0.055 (MiniMax H3) of the sound's norm away from the untiled sampler's, and
    the video 0.036 and 0.054 (tiny models of random weights, 15 tiles of 4x4 cells over 8x12, mean of five).  A pass
    over the whole picture for the sound alone comes to 0.001, at the time and the memory of a step without tiles, which
    tiles are there to spare; one over the picture shrunk to a tile is no nearer than the mean: 0.059 and 0.057.
    """

    executor: Any
    base: Any
    conds: list[Any]
    x: torch.Tensor
    timestep: torch.Tensor
    model_options: dict[str, Any]
    grid: Grid
    parts: Parts
    hints: Hints = field(repr=False)
    own_references: bool = False

    def blended(self, on_tiles: Callable[[float], None] | None) -> list[torch.Tensor]:
        """The predictions of all tiles under their weights, one for each conditioning."""
        out = [torch.zeros_like(self.x) for _ in self.conds]
        groups = by_hooks(self.conds)
        sums: dict[int, list[torch.Tensor]] = {}
        counts: dict[int, list[torch.Tensor]] = {}
        for turn, conds in enumerate(groups):
            for number, predictions, done in self._tiles(conds):
                if on_tiles:
                    on_tiles((turn + done) / len(groups))
                if len(groups) == 1:
                    self._add(out, number, predictions)
                    continue
                found = [self._count(cond, number) for cond in conds]
                weighted = [prediction * count for prediction, count in zip(predictions, found, strict=True)]
                sums[number] = [a + b for a, b in zip(sums[number], weighted, strict=True)] if turn else weighted
                counts[number] = [a + b for a, b in zip(counts[number], found, strict=True)] if turn else found
        for number, weighted in sums.items():
            tile = [total / count.clamp(min=1e-37) for total, count in zip(weighted, counts[number], strict=True)]
            self._add(out, number, tile)
        return out

    def _add(self, out: list[torch.Tensor], number: int, predictions: list[torch.Tensor]) -> None:
        weight, tile = self.grid.weights[number], self.grid.tiles[number]
        share = float(weight.sum()) / (self.picture[0] * self.picture[1])
        for total, prediction in zip(out, predictions, strict=True):
            (picture, *sounds), (drawn, *heard) = self.parts.apart(total), self._parts(number).apart(prediction)
            tile.cut(picture).add_(drawn * weight.to(drawn))
            for sound, one in zip(sounds, heard, strict=True):
                sound.add_(one * share)

    def _count(self, cond: list[dict[str, Any]] | None, number: int) -> torch.Tensor:
        """How much a conditioning's entries count at each place of a tile: what the host divides their sum by."""
        x = self._tile(number)
        count = torch.zeros_like(x)
        for entry in self._cut(number).entries(cond) or ():
            found = comfy.samplers.get_area_and_mult(entry, x, self.timestep)
            if found is not None:
                inside, dims = count, len(found.area or ()) // 2
                for i in range(dims):
                    inside = inside.narrow(i + 2, found.area[i + dims], found.area[i])
                inside += found.mult
        return count

    def _tiles(self, conds: list[Any]) -> Iterator[tuple[int, list[torch.Tensor], float]]:
        """Each tile's number, its predictions for some conditionings, and the share of the tiles that is done."""
        # windows of another pack that run inside ours know the clip's frames alone, not a stack of tiles
        others_inside = self.executor.idx < len(self.executor.wrappers) - 1
        at_once = 1
        if not others_inside and len(self.parts.shapes) == 1:
            at_once = _tiles_at_once(self.base, self.x, self.grid, conds, self.model_options)
        waiting = sorted(range(len(self.grid.tiles)), key=self._sides)
        while waiting:
            comfy.model_management.throw_exception_if_processing_interrupted()
            group = [number for number in waiting[:at_once] if self._sides(number) == self._sides(waiting[0])]
            results = self._unless_memory_lacks(conds, group)
            if results is None:  # what it held is freed only now that the error is gone
                comfy.model_management.soft_empty_cache()
                at_once = max(1, at_once // 2)
                continue
            waiting = waiting[len(group) :]
            parts = zip(group, *(stacked.chunk(len(group)) for stacked in results), strict=True)
            for left, (number, *tile) in zip(reversed(range(len(group))), parts, strict=True):
                yield number, tile, 1 - (len(waiting) + left) / len(self.grid.tiles)

    def _sides(self, number: int) -> tuple[int, int]:
        """Height and width of a tile: those alike can go through the model together."""
        return self.grid.tiles[number].height, self.grid.tiles[number].width

    def _unless_memory_lacks(self, conds: list[Any], group: list[int]) -> list[torch.Tensor] | None:
        """The predictions for a group of tiles; None where memory ran out and fewer may fit."""
        try:
            return self._predicted(conds, group)
        except Exception as error:
            raise_unless_memory(error)
            if len(group) == 1:
                raise RuntimeError("Out of memory on a single tile. Use a smaller tile_size.") from error
        return None

    def _predicted(self, conds: list[Any], group: list[int]) -> list[torch.Tensor]:
        """The model's predictions for a group of tiles, stacked along the batch."""
        stacked = torch.cat([self._tile(number) for number in group])
        options = self.model_options
        if len(group) > 1:
            for_all = {**options.get("transformer_options", {}), VIDEOS_IN_BATCH: len(group)}
            options = {**options, "transformer_options": for_all}
        timestep = torch.cat([self.timestep] * len(group))
        cut, parts = self._cut(group[0]), self._parts(group[0])
        told = [parts.told(cut.entries(cond), cut.places) for cond in conds]
        return self.executor(self.base, told, stacked, timestep, options)

    @property
    def picture(self) -> tuple[int, int]:
        """Height and width of the whole, in cells."""
        return self.parts.shapes[0][-2], self.parts.shapes[0][-1]

    def _tile(self, number: int) -> torch.Tensor:
        """What the sampler holds of a tile, with the whole sound."""
        video, *sound = self.parts.apart(self.x)
        return self.parts.together([self.grid.tiles[number].cut(video), *sound])

    def _parts(self, number: int) -> Parts:
        return self.parts.with_sides(self.grid.tiles[number].height, self.grid.tiles[number].width)

    def _cut(self, number: int) -> Cut:
        video = self.parts.shapes[0]
        length = video[2] if len(video) == 5 else len(self.x)
        return Cut(
            region=self.grid.tiles[number], length=length, picture=self.picture, hints=self.hints,
            own_references=self.own_references,
        )  # fmt: skip


def by_hooks(conds: list[Any]) -> list[list[Any]]:
    """Conditionings grouped by their entries' weight hooks: weights are swapped once a step, not for each tile.

    There is one group where all entries have the same hooks, or where some hold only where no other does (``default``).
    """
    entries = [entry for cond in conds for entry in cond or ()]
    hooks = list(dict.fromkeys(entry.get("hooks") for entry in entries))
    if len(hooks) < 2 or any("default" in entry for entry in entries):
        return [conds]
    return [
        [None if cond is None else [entry for entry in cond if entry.get("hooks") == hook] for cond in conds]
        for hook in hooks
    ]


def _tiles_at_once(base: Any, x: torch.Tensor, grid: Grid, conds: list[Any], model_options: dict[str, Any]) -> int:
    """How many tiles fit into memory together.

    One on a CPU, which gains nothing from more, and of a latent of several parts. One where conditionings differ by
    place, or have rows that are not those of the frames: the host repeats such rows over the whole stack. One where
    other packs patch the attention: they may treat each frame differently (IPAdapter) and would take a stack of tiles
    for one long clip.
    """
    options = model_options.get("transformer_options", {})
    patched = options.get("patches_replace") or any(name.startswith("attn") for name in options.get("patches", {}))
    by_place = any(_by_place(entry, len(x)) for cond in conds for entry in cond or ())
    if x.device.type == "cpu" or x.ndim == 3 or patched or by_place:
        return 1
    tile = grid.largest
    shape = [2 * x.shape[0], *x.shape[1:-2], tile.height, tile.width]
    free = comfy.model_management.get_free_memory(x.device)
    return int(max(1, min(len(grid.tiles), free // (ROOM * base.memory_required(shape)))))


def _by_place(entry: dict[str, Any], frames: int) -> bool:
    """Whether tiles see different values of a conditioning's entry, or rows that are not those of the frames."""
    return any(name in entry for name in ("mask", "area", "control", "gligen")) or any(
        rule_of(name, value.cond) not in (WHOLE, ROWS, OF_ALL_FRAMES)
        or (torch.is_tensor(value.cond) and value.cond.ndim and len(value.cond) not in (1, frames))
        for name, value in entry["model_conds"].items()
    )


def _step(timestep: torch.Tensor, model_options: dict[str, Any]) -> int:
    sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None:
        return 0
    return int((sigmas > timestep.reshape(-1)[0] + 1e-5).sum())
