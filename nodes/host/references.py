"""Reference pictures beside or before a clip's frames, and conditionings for a clip that was enlarged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import rules
from .cut import Cut
from .redrawn import leading


def fitted(conditioning: Any, size: tuple[int, int], frames: int, vae: Any, patch: int) -> Any:
    """A conditioning whose latents of a clip, made at any size, fit the clip enlarged to ``size``."""
    whole = Cut(size=size, length=frames, vae=vae, patch=patch)
    sized = (
        rules.PLACES, rules.LATENTS, rules.LATENT_MASKS, rules.BESIDE, rules.OWN_OR_WHOLE, rules.TOKENS,
        rules.OF_ALL_FRAMES,
    )  # fmt: skip
    return [
        [
            rows,
            {name: whole.value(name, v) if rules.rule_of(name, v) in sized else v for name, v in options.items()},
        ]
        for rows, options in conditioning
    ]


def before_clip(vae: Any, conditioning: Any, frames: int) -> torch.Tensor | None:
    """The latents [1, C, n, h, w] of reference pictures that stand before a clip of so many frames (VACE); None without
    any.

    The model draws them as frames of their own: they go before what is sampled, and are cut off again.

    Raises:
        ValueError: some latents have such pictures and others have none, or fewer.
    """
    found = [latents[:, : vae.latent_channels, : _count(vae, latents, frames)] for latents in _controls(conditioning)]
    counts = sorted({one.shape[2] for one in found})
    if len(counts) > 1:
        raise ValueError(
            f"The conditioning has {counts[0]} reference pictures before some of its control videos and {counts[-1]} "
            "before others. Connect the reference picture to each of the nodes that make them."
        )
    return found[0] if counts and counts[0] else None


def _controls(conditioning: Any) -> Iterator[torch.Tensor]:
    """The latents of control videos in a conditioning."""
    for _, options in conditioning:
        for name, value in options.items():
            if rules.rule_of(name, value) == rules.LATENTS:
                for latents in value if isinstance(value, (list, tuple)) else [value]:
                    if torch.is_tensor(latents) and latents.ndim == 5:
                        yield latents


def _count(vae: Any, latents: torch.Tensor, frames: int) -> int:
    return leading(vae, latents, frames, masks=False)
