"""Reference pictures beside or before a clip's frames, and conditionings for a clip that was enlarged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from . import rules
from .cut import Cut
from .pictures import Codec
from .redrawn import leading
from .ui import Unseen


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
    controls = _latents(conditioning, rules.LATENTS)
    found = [latents[:, : vae.latent_channels, : leading(vae, latents, frames, masks=False)] for latents in controls]
    counts = sorted({one.shape[2] for one in found})
    if len(counts) > 1:
        raise ValueError(
            f"The conditioning has {counts[0]} reference pictures before some of its control videos and {counts[-1]} "
            "before others. Connect the reference picture to each of the nodes that make them."
        )
    return found[0] if counts and counts[0] else None


def of_the_clip(conditioning: Any, images: torch.Tensor, vae: Any, patch: int) -> Any:
    """A conditioning with pictures of the clip, spread over it, in place of the reference pictures before and beside
    it; as it is where it holds none.

    So each tile can be shown its own part of the clip, instead of the whole subject that it would draw anew.

    Args:
        images: the clip as it is sampled, IMAGE [F, H, W, 3].
    """

    def pictures(count: int) -> torch.Tensor:
        at = torch.linspace(0, len(images) - 1, 2 * count + 1)[1::2].round().long()
        codec = Codec(vae, 1, images.shape[1], images.shape[2], patch)
        return torch.cat([codec.encode(images[one : one + 1], Unseen()) for one in at], 2)

    def changed(rule: str, value: Any) -> Any:
        if isinstance(value, (list, tuple)) and rule in (rules.BESIDE, rules.LATENTS):
            return type(value)(changed(rule, one) for one in value)
        if not torch.is_tensor(value) or value.ndim != 5:
            return value
        if rule == rules.BESIDE:
            return pictures(value.shape[2]).to(value)
        if rule == rules.LATENTS and (before := leading(vae, value, len(images), masks=False)):
            value = value.clone()
            value[:, : vae.latent_channels, :before] = pictures(before)
        return value

    return [
        [rows, {name: changed(rules.rule_of(name, value), value) for name, value in options.items()}]
        for rows, options in conditioning
    ]


def has_references(vae: Any, conditioning: Any, frames: int) -> bool:
    """Whether a conditioning holds reference pictures before or beside a clip of so many frames."""
    return (
        before_clip(vae, conditioning, frames) is not None
        or next(_latents(conditioning, rules.BESIDE), None) is not None
    )


def _latents(conditioning: Any, rule: str) -> Iterator[torch.Tensor]:
    """The latents of videos in a conditioning to which a rule applies."""
    for _, options in conditioning:
        for name, value in options.items():
            if rules.rule_of(name, value) == rule:
                for latents in value if isinstance(value, (list, tuple)) else [value]:
                    if torch.is_tensor(latents) and latents.ndim == 5:
                        yield latents
