"""IMAGE frames through a VAE and back, through an UPSCALE_MODEL, and to another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.utils
import torch
from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel

from .memory import raise_unless_memory
from .ui import Progress, stop_if_asked


def check_vae(vae: Any, frames: int) -> None:
    """Raise ``ValueError`` for a VAE that is not there, or that compresses frames together where there are several."""
    if vae is None:
        raise ValueError("VAE is missing: the checkpoint holds none. Load it with its own loader.")
    if frames > 1 and getattr(vae, "latent_dim", 2) != 2:
        raise ValueError(
            "This VAE is that of a video model, which puts several frames into one latent; expected the VAE of a model of "
            "pictures, whose frames lie along the batch (SD 1.5 with a motion module, SDXL)."
        )


def cell_of(vae: Any) -> int:
    """How many pixels a side one latent cell of a VAE is."""
    return int(vae.spacial_compression_encode())


def encode(vae: Any, images: torch.Tensor, progress: Progress) -> torch.Tensor:
    """IMAGE [F, H, W, 3] (sides multiples of :func:`cell_of`) to latents, some frames at a time and, where they are large, in tiles."""
    parts = []
    for chunk in images.split(frames_at_once(images.shape[1:3])):
        parts.append(vae.encode_tiled(chunk) if _large(chunk.shape[1:3]) else vae.encode(chunk))
        progress.advance(len(chunk))
    return torch.cat(parts)


def decode(vae: Any, latents: torch.Tensor, progress: Progress) -> torch.Tensor:
    """Latents [F, C, h, w] to IMAGE in one preallocated result on the CPU, some frames at a time."""
    size = (latents.shape[-2] * cell_of(vae), latents.shape[-1] * cell_of(vae))
    out = torch.empty(latents.shape[0], *size, 3)
    at = 0
    for chunk in latents.split(frames_at_once(size)):
        out[at : at + len(chunk)] = vae.decode_tiled(chunk) if _large(size) else vae.decode(chunk)
        at += len(chunk)
        progress.advance(len(chunk))
    return out


def frames_at_once(size: Sequence[int]) -> int:
    """How many frames of this size to handle at a time: four of 512x512, one of 1024x1024."""
    return max(1, 4 * 512 * 512 // (size[0] * size[1]))


def _large(size: Sequence[int]) -> bool:
    return size[0] * size[1] > 1024 * 1024


def upscale(upscale_model: Any, images: torch.Tensor, height: int, width: int, progress: Progress) -> torch.Tensor:
    """IMAGE through an UPSCALE_MODEL and to this size, some frames at a time into one result on the CPU.

    The host makes its tiles smaller where memory runs out.
    """
    out = torch.empty(len(images), height, width, images.shape[3])
    at = 0
    for chunk in images.split(max(1, frames_at_once(images.shape[1:3]) // 2)):
        try:
            large = ImageUpscaleWithModel.execute(upscale_model, chunk).args[0].cpu()
        except Exception as error:
            raise_unless_memory(error)
            raise RuntimeError(
                "The upscale model ran out of memory even on 128-pixel tiles. Use a smaller upscale model, or none: "
                "the frames are then enlarged with Lanczos."
            ) from error
        out[at : at + len(chunk)] = resize(large, height, width)
        at += len(chunk)
        progress.advance(len(chunk))
    return out


def resize(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """IMAGE resampled with Lanczos, frame by frame on the CPU."""
    if images.shape[1:3] == (height, width):
        return images
    out = torch.empty(len(images), height, width, images.shape[3])
    for i in range(len(images)):
        stop_if_asked()
        one = images[i : i + 1].movedim(-1, 1)
        out[i] = comfy.utils.common_upscale(one, width, height, "lanczos", "disabled")[0].movedim(0, -1)
    return out
