"""Tiled VCD: denoising a large clip tile by tile, all frames of a tile together (grids: vcd_core.tiled)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from comfy_api.latest import io

from ..vcd_core import tiled as core
from ..vcd_core.frames import colours, side_by_side
from .host.areas import enlarged_areas
from .host.memory import affordable_side, handed_on
from .host.model import Model, latent_cell, patch_of
from .host.pictures import resize, upscale
from .host.references import fitted, has_references, of_the_clip
from .host.sampling import Sampling
from .host.text import with_rows_held
from .host.tiles import with_tiles
from .host.ui import Progress, pictures_below, ui_text
from .inputs import CATEGORY, NOISE, STEPS, denoise_by_input, gamma_input, sampling_inputs, seed_input, sound_input
from .stage import NotFinite, Stage

KEY = "vcd_tiles"
TILED_CATEGORY = f"{CATEGORY}/tiled"
ALIASES = ["tiled diffusion", "multidiffusion", "magic me", "vcd"]
DENOISE_ALIASES = [
    "upscale", "upscale video", "video upscale", "ultimate sd upscale", "ultimate upscale", "usdu", "hires fix", "tile",
    "tiled upscale", "enlarge", *ALIASES,
]  # fmt: skip
REPEATS_ABOVE = 0.4
SMALLEST, LARGEST = 64, 4096  # pixels a side of a tile
AUTO = 0  # a tile_size: the largest that memory allows
MOVING, FIXED = "moving", "fixed"
GridAt = Callable[[int, int, int, int, int, int], core.Grid]  # height, width, tile, overlap, step, unit
AS_CONNECTED, OWN_TILE = "as connected", "the clip's own tile"


def step_of(model: Model) -> int:
    """The pixels of the cells that a model takes together, along a side."""
    return latent_cell(model) * patch_of(model)


def fitting(model: Model, tile_size: int, overlap: int) -> tuple[int, int]:
    """The largest tile of at most ``tile_size`` pixels, and the least overlap of at least ``overlap``, that the model
    takes: multiples of the cells that it takes together.

    Raises:
        ValueError: an overlap that is then not smaller than the tile.
    """
    core.check(tile_size, overlap)
    step = step_of(model)
    tile, least = max(step, tile_size // step * step), -(-overlap // step) * step
    if least >= tile:
        raise ValueError(
            f"tile_size is {tile_size} and overlap {overlap}; this model takes multiples of {step} pixels, {tile} and "
            f"{least}, and the overlap must be smaller."
        )
    return tile, least


def rounded(model: Model, tile_size: int, overlap: int) -> str:
    """What to say where the model takes other tiles than these; empty where it takes them, or chooses its own."""
    if tile_size == AUTO:
        core.check(overlap + 1, overlap)
        return ""
    tile, least = fitting(model, tile_size, overlap)
    if (tile, least) == (tile_size, overlap):
        return ""
    return f"Tiles of {tile} pixels with an overlap of {least}: what this model takes."


def tile_refused(tile_size: int | None) -> bool | str:
    """For ``validate_inputs``, in place of the host's own check of the range: True, or what tile_size should be."""
    if tile_size is None or tile_size == AUTO or SMALLEST <= tile_size <= LARGEST:
        return True
    return f"tile_size is {tile_size}; expected {SMALLEST} to {LARGEST}, or 0 for the largest that memory allows."


def affordable(model: Model, overlap: int, shape: Sequence[int]) -> tuple[int, int]:
    """The largest tile that memory allows for a latent of this shape, at most what covers it, and an overlap of at
    least ``overlap`` pixels, but at most half the tile: multiples of the cells that the model takes together."""
    cell, step = latent_cell(model), step_of(model)
    largest = -(-max(shape[-2:]) * cell // step) * step
    tile = min(largest, max(step, affordable_side(model, shape) * cell // step * step))
    return tile, min(-(-overlap // step) * step, tile // 2 // step * step)


def fixed(height: int, width: int, tile: int, overlap: int, step: int, unit: int) -> core.Grid:
    return core.grid(height, width, tile, overlap)


def shifted(height: int, width: int, tile: int, overlap: int, step: int, unit: int) -> core.Grid:
    return core.grid(height, width, tile, overlap, core.shifts(step))


def grid_called(name: str, shift: bool) -> GridAt:
    """The grid that the widgets ``grid`` and ``shift_grid`` say."""
    return core.moving_grid if name == MOVING else shifted if shift else fixed


def with_tile_grid(
    model: Model,
    tile_size: int,
    overlap: int,
    grid: GridAt = fixed,
    on_tiles: Callable[[float], None] | None = None,
    own_references: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> Model:
    """``model`` predicting in tiles of ``tile_size`` pixels with ``overlap`` pixels between neighbours, as
    :func:`fitting` rounds them; ``grid`` is ``fixed``, ``shifted`` or ``moving``.

    ``tell`` is told once, as is the log, how many tiles there are.
    """
    cell, patch = latent_cell(model), patch_of(model)
    given = None if tile_size == AUTO else fitting(model, tile_size, overlap)
    said: set[tuple[int, ...]] = set()

    def grid_of(shape: Sequence[int], step: int) -> core.Grid:
        side, shared = given or affordable(model, overlap, shape)
        height, width = shape[-2:]
        made = grid(height, width, side // cell, shared // cell, step, patch)
        if (height, width) not in said:
            said.add((height, width))
            text = tiles_said(made, side, (width * cell, height * cell))
            logging.info("Tiled VCD: %s", text)
            tell(text)
        return made

    return with_tiles(model, KEY, grid_of, on_tiles, own_references)


def tiles_said(grid: core.Grid, side: int, size: tuple[int, int]) -> str:
    """How many tiles of this many pixels a side a picture of this width and height has, and what they cost."""
    picture = f"{size[0]}x{size[1]}"
    if len(grid.tiles) == 1:
        return f"One tile of {side} pixels covers the whole {picture}."
    return f"{len(grid.tiles)} tiles of {side} pixels over {picture}, {grid.cost:.2f} times its pixels."


def tile_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "tile_size",
            default=512,
            min=AUTO,
            max=LARGEST,
            step=8,
            tooltip="Side of a tile in pixels: the size that the model draws best, 512 for SD 1.5. 0: as large as the "
            "device's memory allows.",
        ),
        io.Int.Input(
            "overlap",
            default=32,
            min=0,
            max=1024,
            step=8,
            tooltip="Least overlap of neighbouring tiles in pixels: 16 or 32 in a moving grid, 64 in a fixed one.",
            advanced=True,
        ),
    ]


def shift_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "shift_grid",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Of a fixed grid: move it at every step all the same, by a row and a column of whole tiles more.",
    )


def grid_input() -> io.Combo.Input:
    return io.Combo.Input(
        "grid",
        options=[MOVING, FIXED],
        default=MOVING,
        optional=True,
        advanced=True,
        extra_dict={"before": FIXED},
        tooltip="moving: elsewhere at every step, so that no place is at a tile's border for long and little overlap "
        "is enough; tiles at the edge are cut short. fixed: in one place, as in graphs of earlier versions.",
    )


class TiledPatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_TiledPatch",
            display_name="Tiled VCD Patch",
            category=TILED_CATEGORY,
            description="Makes any sampler denoise in tiles: at every step the model sees tiles of all frames, and "
            "their "
            "predictions are blended before the sampler's update. No seams, no flicker, one noise for the whole clip.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with, motion and noise prior included."),
                *tile_inputs(),
                shift_input(),
                grid_input(),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def validate_inputs(cls, tile_size: int | None = None) -> bool | str:
        return tile_refused(tile_size)

    @classmethod
    def execute(
        cls, model: Model, tile_size: int, overlap: int, shift_grid: bool = False, grid: str = FIXED
    ) -> io.NodeOutput:
        text = rounded(model, tile_size, overlap)
        patched = with_rows_held(with_tile_grid(model, tile_size, overlap, grid_called(grid, shift_grid)))
        return io.NodeOutput(patched, ui=ui_text(text) if text else None)


class TiledDenoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_TiledDenoise",
            display_name="Tiled VCD Denoise",
            category=TILED_CATEGORY,
            description="Makes a clip larger and sharper: enlarges it (with an upscale model, or Lanczos), then draws "
            "its details tile by tile with the same model, motion and identity, from correlated noise.",
            search_aliases=DENOISE_ALIASES,
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="The frames of the clip."),
                io.Model.Input("model", tooltip="The model with its motion module; longer clips with context windows."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt with the identity. Masks in it hold tile by tile."
                ),
                io.Conditioning.Input("negative", tooltip="What to keep away from."),
                io.UpscaleModel.Input(
                    "upscale_model", optional=True, tooltip="ESRGAN or the like; without it Lanczos enlarges."
                ),
                io.Float.Input(
                    "scale", default=2.0, min=1.0, max=8.0, step=0.25, tooltip="The result's size over the clip's."
                ),
                *tile_inputs(),
                *sampling_inputs(steps=20, cfg=8.0, denoise=0.2),
                gamma_input(advanced=True),
                seed_input(),
                shift_input(),
                sound_input(),
                denoise_by_input(),
                io.Combo.Input(
                    "references",
                    options=[AS_CONNECTED, OWN_TILE],
                    default=AS_CONNECTED,
                    optional=True,
                    advanced=True,
                    tooltip="What a tile sees of the reference pictures in the prompt (Phantom, VACE, Fun): them, or "
                    "its own part of the clip in their place, so that no tile draws the whole subject anew.",
                ),
                grid_input(),
            ],
            outputs=[io.Image.Output(display_name="images")],
        )

    @classmethod
    def validate_inputs(cls, tile_size: int | None = None) -> bool | str:
        return tile_refused(tile_size)

    @classmethod
    def execute(
        cls,
        images: torch.Tensor,
        model: Model,
        vae: Any,
        positive: Any,
        negative: Any,
        scale: float,
        tile_size: int,
        overlap: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        gamma: float,
        seed: int,
        upscale_model: Any = None,
        shift_grid: bool = False,
        sound: Any = None,
        denoise_by: str = STEPS,
        references: str = AS_CONNECTED,
        grid: str = FIXED,
    ) -> io.NodeOutput:
        settings = Sampling(steps, cfg, sampler_name, scheduler, denoise, seed, denoise_by == NOISE)
        stage = Stage(model, vae, settings, gamma, sound)
        stage.check(images, positive=positive, negative=negative)
        if references == OWN_TILE and not has_references(vae, positive, len(images)):
            raise ValueError(
                "references is 'the clip's own tile', but positive holds no reference pictures of a video model. "
                "Connect a node that puts them there (WanPhantomSubjectToVideo, WanVaceToVideo), or leave it "
                f"'{AS_CONNECTED}'."
            )
        if scale < 1:
            raise ValueError(f"scale is {scale}; this node enlarges, so expected at least 1.")
        tiles = rounded(model, tile_size, overlap)  # refuses bad tiles before any heavy work
        repeats = repetition_warned(denoise)
        told: list[str] = []
        progress = Progress(len(images) * (2 + (upscale_model is not None) + steps))
        large = enlarged(colours(images), scale, upscale_model, progress)
        prompts = [
            prompt_for(large, conditioning, scale, stage, references == OWN_TILE)
            for conditioning in (positive, negative)
        ]

        def patch(model: Model, on_tiles: Callable[[float], None]) -> Model:
            at_step = grid_called(grid, shift_grid)
            return with_tile_grid(model, tile_size, overlap, at_step, on_tiles, references == OWN_TILE, told.append)

        try:
            drawn, text = stage.refine(large, prompts[0], prompts[1], progress, patch), stage.begin()
        except NotFinite as error:
            if error.drawn is None:
                raise
            drawn, text = error.over(large), f"Some frames are only enlarged. {error}"
            logging.warning("Tiled VCD: %s", text)
        shown = pictures_below(side_by_side(large, drawn), cls)
        shown |= ui_text(" ".join(filter(None, (repeats, tiles, *told, text))))
        if images.shape[-1] == 4:
            alpha = resize(images[..., 3:].cpu().expand(-1, -1, -1, 3), *drawn.shape[1:3])
            drawn = torch.cat([drawn, alpha[..., :1].to(drawn)], -1)
        return io.NodeOutput(handed_on(drawn), ui=shown)


def repetition_warned(denoise: float) -> str:
    """What to say, in the log and in the node, of a denoise at which each tile draws the whole prompt; else empty."""
    if denoise <= REPEATS_ABOVE:
        return ""
    message = f"At denoise {denoise:.2f} tiles begin to repeat content; the paper uses 0.2."
    logging.warning("Tiled VCD: %s", message)
    return message


def prompt_for(large: torch.Tensor, conditioning: Any, scale: float, stage: Stage, own_references: bool) -> Any:
    """A conditioning of a clip for the clip enlarged by ``scale``; with ``own_references`` its pictures are the
    clip's."""
    size, patch = (large.shape[1], large.shape[2]), patch_of(stage.model)
    found = fitted(enlarged_areas(conditioning, scale), size, len(large), stage.vae, patch)
    return of_the_clip(found, large, stage.vae, patch) if own_references else found


def enlarged(images: torch.Tensor, scale: float, upscale_model: Any, progress: Progress) -> torch.Tensor:
    """The frames at ``scale`` times their size, by an UPSCALE_MODEL where there is one."""
    height, width = round(images.shape[1] * scale), round(images.shape[2] * scale)
    if upscale_model is None:
        return resize(images, height, width)
    return upscale(upscale_model, images, height, width, progress)


NODES: list[type[io.ComfyNode]] = [TiledPatch, TiledDenoise]
