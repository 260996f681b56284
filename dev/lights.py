"""Light that changes over a clip IMAGE [F, H, W, 3], for tests and benchmarks: it brings nobody new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Light = Callable[[torch.Tensor], torch.Tensor]


def from_the_middle(images: torch.Tensor, change: Light) -> torch.Tensor:
    half = len(images) // 2
    return torch.cat([images[:half], change(images[half:])]).clamp(0, 1)


def slope(images: torch.Tensor, down: bool) -> torch.Tensor:
    values = torch.linspace(0.25, 1.6, images.shape[1 if down else 2])
    return images * (values[:, None, None] if down else values[None, :, None])


def flashes(images: torch.Tensor, gains: list[Any]) -> torch.Tensor:
    return torch.stack([image * torch.tensor(gains[i % len(gains)]) for i, image in enumerate(images)]).clamp(0, 1)


LIGHTS: dict[str, Light] = {
    "dark": lambda images: from_the_middle(images, lambda part: 0.3 * part),
    "flash": lambda images: torch.cat([images[:9], (2.5 * images[9:12]).clamp(0, 1), images[12:]]),
    "hue": lambda images: from_the_middle(images, lambda part: part * torch.tensor([1.0, 0.35, 0.35])),
    "palette": lambda images: from_the_middle(images, lambda part: 0.5 * part[..., [1, 2, 0]]),
    "gradient": lambda images: from_the_middle(images, lambda part: slope(part, down=False)),
    "gradient down": lambda images: from_the_middle(images, lambda part: slope(part, down=True)),
    "strobe": lambda images: flashes(images, [0.3, 1.0]),
    "slow strobe": lambda images: flashes(images, [0.3, 0.3, 0.3, 1.0, 1.0, 1.0]),
    "disco": lambda images: flashes(images, [[1.0, 0.4, 0.4], [0.4, 1.0, 0.4], [0.4, 0.4, 1.0], [1.0, 1.0, 1.0]]),
}
