"""How strongly each place of a face video is drawn anew: the head and not what is beside it, large faces less than
small ones.

A strength of 1 is the stage's whole denoise, 0 leaves a place as it is, and between them a place joins in later, when
the sampler has come down to its share of the denoise.  That is what a smaller denoise means, place by place.
"""

from __future__ import annotations

import numpy as np
import torch

from .crop import Size, Windows, to_head

AROUND = 1.5  # the drawn ellipse's sides over the face's: more than what is pasted, so that a head has room
SOFT = 0.25  # the width over which the strength falls, over the face's side


def head(place: Windows, size: Size) -> torch.Tensor:
    """The strength [n, h, w] of a mask of the head in each window's crop: 1 on the head, 0 beside it, soft between.

    Args:
        place: the windows.
        size: height and width of the crops in pixels.
    """
    wide, tall = place.size
    y = ((torch.arange(size[0]) + 0.5) / size[0] - 0.5)[:, None] * tall
    x = ((torch.arange(size[1]) + 0.5) / size[1] - 0.5)[None] * wide
    out = torch.empty(len(place.centres), *size)
    for i, ((centre_x, centre_y), face) in enumerate(zip(place.centres, place.face, strict=True)):
        distance = to_head(x + centre_x, y + centre_y, face, AROUND)
        weight = (0.5 - distance / (SOFT * max(face[2:]))).clamp(0, 1)
        out[i] = weight * weight * (3 - 2 * weight)
    return out


def by_size(place: Windows, denoise: float, denoise_large: float, small: float, large: float) -> np.ndarray:
    """The denoise [n] of a track's frames by the face's side in pixels: ``denoise`` up to ``small``, ``denoise_large``
    from ``large`` on, a straight line between.

    Raises:
        ValueError: ``small`` not below ``large``.

    Example:
        >>> place = Windows(0, np.zeros((3, 2)), (90.0, 90.0), np.array([[0, 0, s, s] for s in (30.0, 60.0, 90.0)]))
        >>> by_size(place, 0.8, 0.4, 30, 90).tolist()
        [0.8, 0.6, 0.4]
    """
    check_sizes(small, large)
    sides = place.face[:, 2:].max(1)
    share = np.clip((sides - small) / (large - small), 0, 1)
    return np.round(denoise + share * (denoise_large - denoise), 6)


def check_sizes(small: float, large: float) -> None:
    """Raise ``ValueError`` unless the small face is smaller than the large one."""
    if small >= large:
        raise ValueError(
            f"small_face is {small:g} pixels and large_face {large:g}; the small one must be smaller. Set large_face "
            "to 0 for one denoise whatever the size."
        )
