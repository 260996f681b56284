"""Imaging quality as VBench has it (arXiv 2311.17982, sec. 3.2): MUSIQ's score of each frame, by the package pyiqa."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from . import files, parts
from .evaluate import OnFrame, nothing

SIDE = 512  # larger pictures are scaled to this longer side
Network = Callable[[torch.Tensor], torch.Tensor]  # pictures [1, 3, h, w] in 0..1 to scores [1, 1] in 0..100


def installed() -> bool:
    """Whether the package that has the network is there."""
    return parts.installed("pyiqa")


def load(path: str | Path, device: torch.device | None = None) -> Network:
    """MUSIQ with the weights of a file.

    Args:
        path: pyiqa's weights for scores in 0..100, as VBench's ``musiq_spaq_ckpt-358bb6af.pth``.

    Raises:
        ValueError: another file, or weights for scores in 1..10 (AVA).
        BackEndMissing: pyiqa is not installed, or does not import.
    """
    path = Path(path)
    state, _ = files.read(path, "a MUSIQ model")
    found = {key.removeprefix("module."): value for key, value in state.items()} if isinstance(state, dict) else {}
    if "head.0.weight" in found:
        raise ValueError(f"{path.name} is a MUSIQ for AVA's scores from 1 to 10; VBench takes SPAQ's, from 0 to 100.")
    network = parts.part("pyiqa.archs.musiq_arch", "imaging quality").MUSIQ(pretrained=False, num_class=1)
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"{path.name} holds no weights of MUSIQ; expected pyiqa's musiq_spaq_ckpt.") from error
    made: Network = network.eval().requires_grad_(False).to(device or torch.device("cpu"))
    return made


def imaging_quality(
    images: torch.Tensor, network: Network, device: torch.device | None = None, on_frame: OnFrame = nothing
) -> torch.Tensor:
    """The score of each frame over 100, [F].

    Args:
        images: IMAGE [F, H, W, 3] in 0..1.
        network: scores pictures, see :func:`load`; on ``device``.

    Example:
        >>> imaging_quality(torch.full((2, 8, 8, 3), 0.5), lambda picture: picture.mean()[None, None] * 100).tolist()
        [0.5, 0.5]
    """
    scores = []
    for image in images[..., :3]:
        on_frame()
        picture = image.movedim(-1, 0)[None].float().to(device or image.device)
        scale = SIDE / max(picture.shape[-2:])
        if scale < 1:
            size = [int(scale * side) for side in picture.shape[-2:]]
            picture = F.interpolate(picture, size, mode="bilinear", align_corners=False)
        scores.append(network(picture).float().cpu().reshape(()) / 100)
    return torch.stack(scores)
