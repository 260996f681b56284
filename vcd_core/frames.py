"""IMAGE frames [F, H, W, C]: what is wrong with them, and their transparency."""

from __future__ import annotations

import torch

_AT_ONCE = 16  # frames looked at together, so that a check needs no copy of the clip
_NAMED = 6


def check_finite(images: torch.Tensor, name: str = "images") -> None:
    """Raise ``ValueError`` that names the frames which hold NaN or infinite values.

    Example:
        >>> clip = torch.zeros(4, 8, 8, 3)
        >>> clip[2, 0, 0, 0] = float("nan")
        >>> check_finite(clip)
        Traceback (most recent call last):
        ...
        ValueError: images hold NaN or infinite values in frame 2. A VAE in half precision may give them: start \
ComfyUI with --fp32-vae and decode again.
    """
    broken = broken_frames(images)
    if broken:
        raise ValueError(
            f"{name} hold NaN or infinite values in {named(broken)}. A VAE in half precision may give them: start "
            "ComfyUI with --fp32-vae and decode again."
        )


def broken_frames(images: torch.Tensor) -> list[int]:
    """The numbers of the frames that hold NaN or infinite values."""
    finite = [part.isfinite().flatten(1).all(1) for part in images.split(_AT_ONCE)]
    return (~torch.cat(finite)).nonzero().flatten().tolist() if finite else []


def named(frames: list[int]) -> str:
    """Frames in a sentence.

    Example:
        >>> named([3]), named([3, 5, 6]), named(list(range(20)))
        ('frame 3', 'frames 3, 5, 6', 'frames 0, 1, 2, 3, 4, 5 and 14 more')
    """
    shown = ", ".join(str(frame) for frame in frames[:_NAMED])
    more = f" and {len(frames) - _NAMED} more" if len(frames) > _NAMED else ""
    return f"frame{'s' * (len(frames) > 1)} {shown}{more}"


def colours(images: torch.Tensor) -> torch.Tensor:
    """The colours [F, H, W, 3] of frames on the CPU, without their transparency; no copy of what is so already."""
    return images[..., :3].cpu()


def with_alpha(done: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """``done`` [F, H, W, 3] with the transparency that ``images`` [F, H, W, 3 or 4] of the same size have."""
    return done if images.shape[-1] == 3 else torch.cat([done, images[..., 3:].to(done)], -1)


def held(images: torch.Tensor, frames: int) -> torch.Tensor:
    """A clip lengthened to this many frames by holding its last one.

    Example:
        >>> held(torch.arange(3.0).view(3, 1, 1, 1), 5).flatten().tolist()
        [0.0, 1.0, 2.0, 2.0, 2.0]
    """
    more = frames - len(images)
    return images if more <= 0 else torch.cat([images, images[-1:].expand(more, *images.shape[1:])])


def most_changed(before: torch.Tensor, after: torch.Tensor) -> int:
    """Which frame of [F, H, W, C] changed most: the largest mean difference.

    Example:
        >>> most_changed(torch.zeros(3, 2, 2, 1), torch.tensor([0.1, 0.9, 0.2]).view(3, 1, 1, 1).expand(3, 2, 2, 1))
        1
    """
    changes = [float((a.to(b) - b).abs().mean()) for a, b in zip(after, before, strict=True)]
    return changes.index(max(changes))


def side_by_side(before: torch.Tensor, after: torch.Tensor, longest: int = 1024) -> torch.Tensor:
    """The frame that changed most, before and after: IMAGE [1, h, w, 3] where ``before`` lies, its sides at most
    ``longest`` pixels.

    Example:
        >>> side_by_side(torch.zeros(2, 8, 6, 3), torch.ones(2, 8, 6, 3)).shape
        torch.Size([1, 8, 12, 3])
    """
    at = most_changed(before, after)
    pair = torch.cat([before[at, ..., :3], after[at, ..., :3].to(before)], 1)[None].float().clamp(0, 1)
    scale = longest / max(pair.shape[1:3])
    if scale >= 1:
        return pair
    size = (round(pair.shape[1] * scale), round(pair.shape[2] * scale))
    small = torch.nn.functional.interpolate(pair.movedim(-1, 1), size, mode="bilinear", antialias=True)
    return small.movedim(1, -1)
