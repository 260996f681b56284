"""IMAGE frames through a VAE and back, through an UPSCALE_MODEL, and to another size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.utils
import torch

from ...vcd_core.frames import colours, held
from .memory import raise_unless_memory
from .ui import Progress, stop_if_asked


def check_vae(vae: Any) -> None:
    """Raise ``ValueError`` for a VAE that is not there, that is of sound, or that changes the size of pictures."""
    if vae is None:
        raise ValueError("VAE is missing: the checkpoint holds none. Load it with its own loader.")
    if getattr(vae, "latent_dim", 2) not in (2, 3):
        raise ValueError("This VAE is that of a sound model; expected one of pictures or of video.")
    # four channels: with transparency; more: the pixels of a larger picture
    if vae.spacial_compression_decode() != cell_of(vae) or getattr(vae, "conv_out_channels", 3) > 4:
        raise ValueError(
            "This VAE gives pictures back at another size than it gets them, as that of Stable Cascade or one that "
            "enlarges. Load the model's plain VAE."
        )


def of_video(vae: Any) -> bool:
    """Whether a VAE puts several frames into one latent frame."""
    return getattr(vae, "latent_dim", 2) == 3 and not getattr(vae, "not_video", False)


def cell_of(vae: Any) -> int:
    """How many pixels a side one latent cell of a VAE is."""
    return int(vae.spacial_compression_encode())


def frames_taken(vae: Any, frames: int) -> int:
    """The least number of frames, from ``frames`` on, that a VAE gives back as many as it got: what it says of itself.

    Raises:
        ValueError: a VAE that names none within a hundred frames.
    """
    if not of_video(vae) or not isinstance(vae.upscale_ratio, tuple):
        return frames
    into, out = vae.downscale_ratio[0], vae.upscale_ratio[0]
    for count in range(frames, frames + 100):
        if out(into(count)) == count:
            return count
    raise ValueError(f"This VAE gives back another number of frames than it gets, for {frames} frames and for more.")


def latents_of(vae: Any, frames: int) -> int:
    """How many latent frames a VAE makes of a clip's frames; of a picture one."""
    ratio = vae.downscale_ratio
    return int(ratio[0](frames)) if of_video(vae) and isinstance(ratio, tuple) else 1


@dataclass(frozen=True)
class Codec:
    """Frames of one size into a VAE's latents, and back as many and as large as they were.

    Time is lengthened by holding the last frame, sides by repeating the edge; both are cut off again.  Sides are at
    least two cells, since some VAEs (LTX-Video's) reflect pictures at their border and have nothing to reflect in one.

    Attributes:
        vae: a VAE of pictures, whose frames lie along the batch, or of video.
        frames, height, width: of the clip, in pixels.
        patch: how many latent cells a side the model takes together.
    """

    vae: Any
    frames: int
    height: int
    width: int
    patch: int = 1

    @property
    def cell(self) -> int:
        """How many pixels a side a latent cell is."""
        return cell_of(self.vae)

    @property
    def taken(self) -> tuple[int, int, int]:
        """Frames, height and width of what goes into the VAE."""
        step, least = self.cell * self.patch, 2 * self.cell
        height, width = (max(least, side) for side in (self.height, self.width))
        return frames_taken(self.vae, self.frames), height + -height % step, width + -width % step

    def encode(self, images: torch.Tensor, progress: Progress) -> torch.Tensor:
        """IMAGE [F, H, W, 3] to latents: [F, C, h, w], or [1, C, T, h, w] of a video VAE."""
        frames, height, width = self.taken
        sides = (0, width - self.width, 0, height - self.height)
        if any(sides):
            images = torch.nn.functional.pad(images.movedim(-1, 0), sides, mode="replicate").movedim(0, -1)
        if not of_video(self.vae):
            return encode(self.vae, images, progress)
        latent = self.vae.encode(held(images, frames))
        progress.advance(self.frames)
        return latent

    def decode(self, latents: torch.Tensor, progress: Progress) -> torch.Tensor:
        """Latents to IMAGE of the clip's own length and size."""
        if not of_video(self.vae):
            return decode(self.vae, latents, progress)[:, : self.height, : self.width]
        images = self.vae.decode(latents)[0, : self.frames, : self.height, : self.width, :3]
        progress.advance(self.frames)
        return images


def encode(vae: Any, images: torch.Tensor, progress: Progress) -> torch.Tensor:
    """IMAGE [F, H, W, 3] (sides multiples of :func:`cell_of`) to a picture VAE's latents, some frames at a time.

    Large frames are encoded in tiles.
    """
    parts = []
    for chunk in images.split(frames_at_once(images.shape[1:3])):
        parts.append(vae.encode_tiled(chunk) if _large(chunk.shape[1:3]) else vae.encode(chunk))
        progress.advance(len(chunk))
    return torch.cat(parts)


def decode(vae: Any, latents: torch.Tensor, progress: Progress) -> torch.Tensor:
    """A picture VAE's latents [F, C, h, w] to IMAGE in one preallocated result on the CPU, some frames at a time."""
    size = (latents.shape[-2] * cell_of(vae), latents.shape[-1] * cell_of(vae))
    out = torch.empty(latents.shape[0], *size, 3)
    at = 0
    for chunk in latents.split(frames_at_once(size)):
        images = vae.decode_tiled(chunk) if _large(size) else vae.decode(chunk)
        # a video VAE made for pictures gives clips of one frame
        out[at : at + len(chunk)] = colours(images[:, 0] if images.ndim == 5 else images)
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
    from comfy_extras.nodes_upscale_model import ImageUpscaleWithModel  # needs spandrel, without which the host starts

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


def within(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """IMAGE as large as fits into this size at its own aspect, white around it: as reference pictures are shown to the
    models that draw from them (VACE, Phantom)."""
    scale = min(height / images.shape[1], width / images.shape[2])
    small = resize(images, max(1, round(images.shape[1] * scale)), max(1, round(images.shape[2] * scale)))
    out = torch.ones(len(images), height, width, images.shape[3])
    top, left = (height - small.shape[1]) // 2, (width - small.shape[2]) // 2
    out[:, top : top + small.shape[1], left : left + small.shape[2]] = small
    return out
