"""Latents in a conditioning, changed as the pictures that they show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from ...vcd_core.frames import held
from .pictures import Codec, cell_of, frames_taken, of_video, within
from .ui import Unseen

Change = Callable[[torch.Tensor], torch.Tensor]


def redrawn(vae: Any, latents: torch.Tensor, frames: int, change: Change, patch: int, name: str) -> torch.Tensor:
    """Latents of a clip, or of several whose channels are joined, decoded, changed as pictures and encoded again.

    Args:
        latents: [1, n * C, T, h, w] for a VAE of C channels.
        frames: of the clip. Where the latents end within a latent frame of its end the last picture is held; those of
            another length are refused.
        change: IMAGE [frames, H, W, 3] to IMAGE.
        patch: how many latent cells a side the model takes together.
        name: what the conditioning calls them.

    Raises:
        ValueError: latents of another length, or of another VAE.
    """
    channels, found = vae.latent_channels, min(frames, frames_in(vae, latents.shape[2]))
    if len(latents) != 1 or latents.shape[1] % channels or not of_video(vae):
        raise ValueError(
            f"'{name}' in the conditioning has shape {list(latents.shape)}, which this VAE ({channels} channels) "
            "cannot decode. Make it with the VAE that is connected here."
        )
    if not is_of(vae, latents.shape[2], frames):
        raise ValueError(
            f"'{name}' in the conditioning is of {frames_in(vae, latents.shape[2])} frames, but the clip has {frames}. "
            f"Make it for {frames_taken(vae, frames)} frames, without a reference picture before them."
        )
    before = Codec(vae, found, latents.shape[-2] * cell_of(vae), latents.shape[-1] * cell_of(vae))
    parts = []
    for part in latents.split(channels, 1):
        images = change(held(before.decode(part, Unseen()), frames))
        parts.append(Codec(vae, len(images), images.shape[1], images.shape[2], patch).encode(images, Unseen()))
    return torch.cat(parts, 1)


def redrawn_masks(vae: Any, masks: torch.Tensor, frames: int, change: Change, patch: int, name: str) -> torch.Tensor:
    """As :func:`redrawn` for masks over such latents.

    Args:
        masks: [1, c, T, h, w]: with c of 1 a value for a latent frame, with as many as the pictures of a latent frame
            one for each of these, with as many as the pixels of a cell one for each pixel.
    """
    cell, times, channels = cell_of(vae), pictures_of_latent(vae), masks.shape[1]
    height, width = masks.shape[-2:]
    pictures = [min(i, frames_in(vae, masks.shape[2]) - 1) for i in range(frames)]
    latent_frame = [latent_frame_of(vae, i) for i in pictures]
    if not is_of(vae, masks.shape[2], frames) or channels not in (1, times, cell * cell):
        raise ValueError(
            f"'{name}' in the conditioning has shape {list(masks.shape)}; expected masks of {frames} frames with 1, "
            f"{times} or {cell * cell} channels."
        )
    if channels == cell * cell:
        pixels = F.pixel_shuffle(masks[0].movedim(1, 0), cell)[latent_frame]  # [frames, 1, H, W]
    else:
        each = masks[0].movedim(0, 1).reshape(-1, 1, height, width)  # the first picture as often as others share one
        rows = [times - 1 + i for i in pictures] if channels > 1 else latent_frame
        pixels = F.interpolate(each[rows], scale_factor=cell, mode="nearest")
    changed = change(pixels.movedim(1, -1).expand(-1, -1, -1, 3))[..., :1].movedim(-1, 1)
    return _packed(vae, changed, channels, patch)


def _packed(vae: Any, pixels: torch.Tensor, channels: int, patch: int) -> torch.Tensor:
    """Masks [frames, 1, H, W] as a conditioning holds them, [1, channels, T, h, w]."""
    cell, times = cell_of(vae), pictures_of_latent(vae)
    taken, height, width = Codec(vae, len(pixels), pixels.shape[-2], pixels.shape[-1], patch).taken
    pixels = F.pad(pixels, (0, width - pixels.shape[-1], 0, height - pixels.shape[-2]), mode="replicate")
    pixels = pixels[[min(i, len(pixels) - 1) for i in range(taken)]]
    if channels > 1 and channels != cell * cell:
        cells = F.avg_pool2d(pixels, cell)
        return torch.cat([cells[:1]] * (times - 1) + [cells])[:, 0].unflatten(0, (-1, times)).movedim(1, 0)[None]
    first = pixels[[_begin(vae, i) for i in range(latent_frame_of(vae, taken - 1) + 1)]]
    values = F.avg_pool2d(first, cell) if channels == 1 else F.pixel_unshuffle(first, cell)
    return values.movedim(1, 0)[None]


def leading(vae: Any, latents: torch.Tensor, frames: int, masks: bool) -> int:
    """How many latent frames of reference pictures stand before those of a clip, as VACE has them.

    There the channels behind the VAE's hold one value each, and so do masks.

    Args:
        latents: [1, c, T, h, w].
        masks: whether they are masks over latents.
    """
    more = latents.shape[2] - latent_frame_of(vae, frames_taken(vae, frames) - 1) - 1
    marks = latents[:, 0 if masks else vae.latent_channels :, : max(0, more)]
    return more if marks.numel() and bool((marks == marks[..., :1, :1]).all()) else 0


def references_redrawn(vae: Any, latents: torch.Tensor, size: tuple[int, int], patch: int, name: str) -> torch.Tensor:
    """Latents of reference pictures, one a latent frame, as those of the same pictures at ``size``.

    Channels behind the VAE's stay what they are all over a picture.
    """
    channels = vae.latent_channels

    def change(images: torch.Tensor) -> torch.Tensor:
        return within(images, *size)

    pictures = [redrawn(vae, one, 1, change, patch, name) for one in latents[:, :channels].split(1, 2)]
    drawn = torch.cat(pictures, 2)
    more = latents[:, channels:, :, :1, :1].expand(-1, -1, -1, *drawn.shape[-2:])
    return torch.cat([drawn, more.to(drawn)], 1)


def is_of(vae: Any, latent_frames: int, frames: int) -> bool:
    """Whether latents are of a clip of so many frames, or lack less than a latent frame of it."""
    return frames_in(vae, latent_frames) <= frames_taken(vae, frames) <= frames_in(vae, latent_frames + 1)


def frames_in(vae: Any, latent_frames: int) -> int:
    """How many pictures a video VAE makes of so many latent frames."""
    ratio = vae.upscale_ratio
    return int(ratio[0](latent_frames)) if isinstance(ratio, tuple) else latent_frames


def latent_frame_of(vae: Any, picture: int) -> int:
    """In which latent frame a picture lies, both counted from 0."""
    latent_frame = 0
    while frames_in(vae, latent_frame + 1) <= picture:
        latent_frame += 1
    return latent_frame


def _begin(vae: Any, latent_frame: int) -> int:
    """The first picture of a latent frame."""
    return frames_in(vae, latent_frame) if latent_frame else 0


def pictures_of_latent(vae: Any) -> int:
    """How many pictures a latent frame that is not the first holds."""
    return frames_in(vae, 2) - frames_in(vae, 1)


def resized(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Latents [..., h, w] resampled to another size."""
    flat = values.reshape(-1, 1, *values.shape[-2:]).float()
    small = F.interpolate(flat, size=(height, width), mode="bilinear", antialias=True)
    return small.reshape(*values.shape[:-2], height, width).to(values)
