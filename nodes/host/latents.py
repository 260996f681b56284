"""The latents that a MODEL samples: which pictures their frames cover, their shapes, and the video beside its sound."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import comfy.nested_tensor
import comfy.sample
import comfy.utils
import torch

from .model import Model, draws_sound, kind_of, latent_cell, latent_channels, of_video

Shape = Sequence[int]
# kinds of models that draw video and sound, and the host's node that makes an empty latent of width, height and frames
EMPTY_WITH_SOUND = {"MiniMaxH3": ("comfy_extras.nodes_minimax_h3", "EmptyMiniMaxH3LatentAV")}


def pictures_covered(model: Model, latent_frames: int) -> list[int]:
    """How many pictures each of the first latent frames of a video model covers; one each where the model tells of no
    other number.

    The host's latent formats tell of t (``temporal_downscale_ratio``): the first latent frame is one picture, and each
    that follows t.  MiniMax H3 begins anew with every fifth; its own module tells of that (``FRAME_PER_TOKEN``).
    """
    home = sys.modules[type(model.model.diffusion_model).__module__]
    cycle = getattr(home, "FRAME_PER_TOKEN", None)
    if cycle:
        return [int(cycle[i % len(cycle)]) for i in range(latent_frames)]
    each = int(getattr(model.get_model_object("latent_format"), "temporal_downscale_ratio", 1))
    return [1, *[each] * (latent_frames - 1)]


def latent_frames(model: Model, pictures: int) -> int:
    """The least number of latent frames that a video model takes and that cover this many pictures."""
    empty = _empty_with_sound(model, pictures, 64, 64)
    if empty is not None:
        return int(empty[video_part(empty)][2])
    covered = pictures_covered(model, pictures)
    return next(n for n in range(1, pictures + 1) if sum(covered[:n]) >= pictures)


def shapes_of(model: Model | None, frames: int, height: int, width: int) -> list[Shape]:
    """The shapes of a model's latent of so many pictures: one, or of a model that draws sound one for each part.

    Without a model those of SD 1.5.

    Raises:
        ValueError: sides that are no multiples of the model's cell; a model whose sound's length only its own nodes
            know; a model of sound alone.
    """
    cell = 8 if model is None else latent_cell(model)
    check_size(width, height, cell)
    sides = (height // cell, width // cell)
    if model is None:
        return [(frames, 4, *sides)]
    channels, dimensions = latent_channels(model)
    if dimensions not in (2, 3):
        raise ValueError(f"This model ({kind_of(model)}) draws sound alone; the noise prior needs frames.")
    if draws_sound(model):
        empty = _empty_with_sound(model, frames, height, width)
        if empty is None:
            raise ValueError(
                f"This model ({kind_of(model)}) draws video and sound in one latent, and how long its sound is, its "
                "own nodes tell. Connect its empty latent (of LTX-2: from Concat AV Latent) to latent."
            )
        return empty
    if of_video(model):
        return [(1, channels, latent_frames(model, frames), *sides)]
    return [(frames, channels, *sides)]


def check_size(width: int, height: int, cell: int) -> None:
    """Raise ``ValueError`` unless both sides are multiples of a latent's cell, with the sizes next to this one."""
    if width % cell or height % cell:
        below = "x".join(str(max(cell, side // cell * cell)) for side in (width, height))
        above = "x".join(str(side + -side % cell) for side in (width, height))
        raise ValueError(
            f"The size is {width}x{height}; width and height must be multiples of {cell}. The nearest are {below} and "
            f"{above}."
        )


def check_latent(model: Model, samples: Any) -> None:
    """Raise ``ValueError`` for a latent that is not of a model's kind."""
    if samples.is_nested or draws_sound(model):
        return
    found, expected = (samples.shape[1], samples.ndim - 2), latent_channels(model)
    if found != expected:
        raise ValueError(
            f"The latent has {found[0]} channels and {found[1]} dimensions; this model's ({kind_of(model)}) have "
            f"{expected[0]} and {expected[1]}. Connect an empty latent of the model's own kind, or none."
        )


def _empty_with_sound(model: Model, frames: int, height: int, width: int) -> list[Shape] | None:
    """The shapes of the host's own empty latent for a model that draws sound; None where no node makes it of these."""
    found = EMPTY_WITH_SOUND.get(kind_of(model))
    if found is None:
        return None
    node = getattr(importlib.import_module(found[0]), found[1])
    return [tuple(part.shape) for part in node.execute(width, height, frames).args[0]["samples"].unbind()]


def video_part(shapes: Sequence[Shape]) -> int:
    """Which part of a latent in several parts is the video: that with an axis for its frames.

    Raises:
        ValueError: none of them has one.
    """
    for part, shape in enumerate(shapes):
        if len(shape) == 5:
            return part
    raise ValueError(
        f"This latent holds {len(shapes)} parts, {', '.join(str(list(shape)) for shape in shapes)}, and none is a "
        "video; the noise prior needs frames."
    )


def on_the_video(transform: Callable[..., torch.Tensor], shapes: Sequence[Shape] | None) -> Callable[..., torch.Tensor]:
    """``transform`` for a latent as the host's samplers see it; of one in several parts it gets the video alone.

    Such a latent reaches them as [B, 1, N], all parts in a row, with the ``shapes`` of the parts beside it.
    """
    if shapes is None or len(shapes) < 2:
        return transform
    video = video_part(shapes)

    def of_parts(packed: torch.Tensor, *arguments: Any) -> torch.Tensor:
        parts = comfy.utils.unpack_latents(packed, shapes)
        parts[video] = transform(parts[video], *arguments)
        return comfy.utils.pack_latents(parts)[0]

    return of_parts


def without_values(shapes: Sequence[Shape]) -> Any:
    """A latent of these shapes, in several parts where there are several, whose values nobody reads."""
    return in_parts([torch.empty(tuple(shape), device="meta") for shape in shapes])


def in_parts(parts: Sequence[torch.Tensor]) -> Any:
    """One tensor, or the host's latent of several."""
    return parts[0] if len(parts) == 1 else comfy.nested_tensor.NestedTensor(parts)


def parts_of(samples: Any) -> list[torch.Tensor]:
    """The parts of a latent: a video and its sound, or the one there is."""
    return list(samples.unbind()) if samples.is_nested else [samples]


def drawn_by_the_host(
    parts: Sequence[torch.Tensor], seed: int, batch_index: Sequence[int] | None = None
) -> list[torch.Tensor]:
    """The host's own noise of ``seed`` for the parts of a latent: one generator draws them in turn."""
    generator = torch.Generator().manual_seed(seed)
    return [comfy.sample.prepare_noise_inner(part, generator, batch_index) for part in parts]
