"""Frames that repeat what is under a face's window: animation drawn on twos, held poses, film slowed down."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .crop import Windows

ALIKE = 2 / 255  # a held frame that was compressed differs by about as much


def without_repeats(images: torch.Tensor, place: Windows) -> tuple[Windows, np.ndarray]:
    """Windows that stay where they are while the picture under them stays, and which frames those are.

    Args:
        images: the clip, IMAGE [F, H, W, 3].
        place: the windows that follow a face.

    Returns:
        The windows, and for each [n] int the number of the first window of its run: its own where the picture under it
        is another than the run's first by more than 2 of 255 in any value.

    Example:
        >>> clip = torch.zeros(4, 8, 8, 3)
        >>> clip[2:] = 0.5
        >>> centres = np.array([[4.0, 4.0], [4.2, 4.0], [4.4, 4.0], [4.6, 4.0]])
        >>> held, first = without_repeats(clip, Windows(0, centres, (4.0, 4.0), np.zeros((4, 4))))
        >>> first.tolist(), held.centres[:, 0].tolist()
        ([0, 0, 2, 2], [4.0, 4.0, 4.4, 4.4])
    """
    first = np.arange(len(place.centres))
    for i in range(1, len(first)):
        run = first[i - 1]
        both = _under(images[place.start + i], place, i, run), _under(images[place.start + run], place, i, run)
        if (both[0] - both[1]).abs().max() <= ALIKE:
            first[i] = run
    return replace(place, centres=place.centres[first], face=place.face[first]), first


def _under(image: torch.Tensor, place: Windows, *numbers: int) -> torch.Tensor:
    """The pixels under some windows and between them, and those that are reflected where they reach out."""
    reach, sides = np.array(place.size) / 2 + 1, np.array(image.shape[1::-1])
    low, high = place.centres[list(numbers)].min(0) - reach, place.centres[list(numbers)].max(0) + reach
    low, high = np.minimum(low, 2 * sides - high), np.maximum(high, -low)
    (left, top), (right, bottom) = np.floor(low).clip(0).astype(int), np.ceil(high).clip(0).astype(int)
    return image[top:bottom, left:right]
