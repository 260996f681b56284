"""The figures of the paper's evaluation (Magic-Me, sec. 5) over embeddings and frames, on any device.

Embeddings come from outside (CLIP, DINO, a face model); what is computed here is the same whatever made them. Each
function gives a value for each frame (or pair of frames), to be drawn as a curve; the paper's figure is the mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from . import files
from .parts import part
from .summary import Interval, difference

# the paper's Table 1 and its rows for Stable Diffusion and VCD
PAPER = {
    "DINO": (0.267, 0.585),
    "CLIP-I": (0.595, 0.747),
    "CLIP-T": (0.265, 0.315),
    "temporal consistency": (0.729, 0.835),
}


OnFrame = Callable[[], object]  # called before each frame; what it raises stops the work


def nothing() -> None:
    """What happens before a frame where nobody wants to know."""


@dataclass(frozen=True)
class Figure:
    """One measure of a clip.

    Attributes:
        values: [n] along the clip, in ``unit``.
        better: what one wishes for: "high", "low", or "" where it depends.
        gaps: whether NaN says that a frame has no value, as of a face that it does not show; else it is a fault.
    """

    name: str
    values: torch.Tensor
    unit: str = "cosine"
    better: str = "high"
    gaps: bool = False

    @property
    def mean(self) -> float:
        return float(self.values.float().nanmean() if self.gaps else self.values.float().mean())

    @property
    def known(self) -> torch.Tensor:
        """``values``, or none at all where some are faults."""
        return self.values if self.gaps or bool(self.values.isfinite().all()) else self.values[:0]


def changes(videos: Mapping[str, Sequence[Figure]]) -> dict[str, dict[str, Interval]]:
    """How much each other clip changes each figure of the first: figure -> clip -> change.

    Example:
        >>> first, other = (Figure("sharpness", torch.full((9,), value)) for value in (1.0, 3.0))
        >>> print(changes({"before": [first], "after": [other]})["sharpness"]["after"])
        2.000 ± 0.000
    """
    (_, before), *others = videos.items()
    found: dict[str, dict[str, Interval]] = {}
    for figure in before:
        after = ((name, one) for name, figures in others for one in figures if one.name == figure.name)
        found[figure.name] = {name: difference(figure.known, one.known) for name, one in after}
    return found


def as_number(value: float, digits: str) -> str:
    """A value as people read it; "not computed" where it is NaN or infinite, as the mean of no values is.

    Example:
        >>> as_number(0.12345, ".3f"), as_number(math.nan, ".3f")
        ('0.123', 'not computed')
    """
    return format(value, digits) if math.isfinite(value) else "not computed"


def to_references(frames: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """DINO, CLIP-I and face likeness: for each frame the mean cosine to all references; the mean is over all pairs.

    Args:
        frames: [F, d]; references: [R, d]; neither need be normalised.

    Example:
        >>> to_references(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0]])).tolist()
        [1.0, 0.0]
    """
    if not len(references):
        raise ValueError("There is no reference picture to compare with.")
    _same_width(frames, references)
    return (F.normalize(frames.float(), dim=-1) @ F.normalize(references.float(), dim=-1).T).mean(1)


def to_text(frames: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """CLIP-T: the cosine of each frame [F, d] to the prompt [d] or to its own prompt [F, d].

    Example:
        >>> to_text(torch.eye(2), torch.tensor([1.0, 0.0])).tolist()
        [1.0, 0.0]
    """
    _same_width(frames, text)
    return (F.normalize(frames.float(), dim=-1) * F.normalize(text.float(), dim=-1)).sum(-1)


def temporal_consistency(frames: torch.Tensor) -> torch.Tensor:
    """The cosine of each frame's embedding [F, d] to the next one's, [F - 1].

    It rises when motion dies; read it beside :func:`dynamics`, as the paper says.

    Example:
        >>> temporal_consistency(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])).tolist()
        [1.0, 0.0]
    """
    _more_than(frames, 1, "Temporal consistency")
    unit = F.normalize(frames.float(), dim=-1)
    return (unit[1:] * unit[:-1]).sum(-1)


def subject_consistency(frames: torch.Tensor) -> torch.Tensor:
    """VBench's subject consistency (arXiv 2311.17982, sec. 3.2) over DINO embeddings [F, d]: for each frame from the
    second on the mean of its cosines to the first frame and to the one before, neither below 0, [F - 1].

    Example:
        >>> subject_consistency(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).tolist()
        [1.0, 0.0, 0.5]
    """
    _more_than(frames, 1, "Subject consistency")
    unit = F.normalize(frames.float(), dim=-1)
    to_first, to_last = unit[1:] @ unit[0], (unit[1:] * unit[:-1]).sum(-1)
    return (to_first.clamp(min=0) + to_last.clamp(min=0)) / 2


def motion_smoothness(images: torch.Tensor, between: torch.Tensor) -> torch.Tensor:
    """VBench's motion smoothness (arXiv 2311.17982, sec. 3.2): how like every other frame is to what is interpolated
    between its neighbours, 1 minus the mean difference, [n].

    Args:
        images: IMAGE [F, H, W, 3] in 0..1.
        between: what an interpolation model draws between frames 0, 2, 4, ..., [(F - 1) // 2, H, W, 3].

    Example:
        >>> ramp = torch.linspace(0, 1, 5).view(5, 1, 1, 1)
        >>> motion_smoothness(ramp, (ramp[0:4:2] + ramp[2::2]) / 2).tolist()
        [1.0, 1.0]
    """
    _more_than(images, 2, "Motion smoothness")
    return torch.stack([1 - (a - b.to(a)).abs().mean() for a, b in zip(images[1:-1:2], between, strict=True)])


_LINEAR = {"weight": 2, "bias": 1}  # dimensions of the tensors of a linear layer


def aesthetic_score(frames: torch.Tensor, path: str | Path) -> torch.Tensor:
    """VBench's aesthetic quality: LAION's linear predictor over CLIP ViT-L/14 embeddings [F, 768], over 10, [F].

    Args:
        frames: the embeddings; they need not be normalised.
        path: the predictor's weights, ``sa_0_4_vit_l_14_linear.pth`` of LAION's aesthetic-predictor.

    Raises:
        ValueError: another file, or embeddings of another CLIP.
    """
    path = Path(path)
    state, _ = files.read(path, "an aesthetic predictor")
    if not isinstance(state, dict) or {name: getattr(t, "ndim", 0) for name, t in state.items()} != _LINEAR:
        raise ValueError(f"{path.name} is no linear aesthetic predictor; expected LAION's, a weight and a bias.")
    if state["weight"].shape[1] != frames.shape[1]:
        raise ValueError(
            f"{path.name} is for embeddings {state['weight'].shape[1]} wide and clip_vision gives {frames.shape[1]}: "
            "connect the CLIP that it was made for (ViT-L/14)."
        )
    return F.linear(F.normalize(frames.float(), dim=-1), state["weight"].float(), state["bias"].float())[:, 0] / 10


def dynamics(images: torch.Tensor, side: int = 256, on_frame: OnFrame = nothing) -> torch.Tensor:
    """How far the picture moves from frame to frame: mean optical flow (DIS) in hundredths of its diagonal, [F - 1].

    Args:
        images: IMAGE [F, H, W, 3] in 0..1; the longer side is brought to ``side`` first.

    Example:
        >>> still = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
        >>> dynamics(still).tolist()
        [0.0, 0.0]
    """
    _more_than(images, 1, "Dynamics")
    cv2 = part("cv2", "dynamics")
    scale = side / max(images.shape[1:3])
    size = (max(16, round(images.shape[2] * scale)), max(16, round(images.shape[1] * scale)))
    grey = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in _grey(images)]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    diagonal = float(np.hypot(*size))
    lengths = []
    for a, b in itertools.pairwise(grey):
        on_frame()
        lengths.append(np.linalg.norm(flow.calc(a, b, np.zeros((*a.shape, 2), np.float32)), axis=-1).mean())
    return torch.tensor(lengths, dtype=torch.float32) / diagonal * 100


def flicker(images: torch.Tensor, mask: torch.Tensor | None = None, on_frame: OnFrame = nothing) -> torch.Tensor:
    """How far each frame is from the mean of its neighbours, in 255ths, [F - 2]: change that comes and goes at once.

    Args:
        images: IMAGE [F, H, W, C] in 0..1. mask: the region, [F, H, W] or [1, H, W]; all of it without.

    Example:
        >>> flicker(torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1)).tolist()
        [255.0]
    """
    _more_than(images, 2, "Flicker")
    out = []
    for i in range(1, len(images) - 1):
        on_frame()
        difference = (images[i] - (images[i - 1] + images[i + 1]) / 2).abs().mean(-1)
        out.append(_mean_in(difference, mask, i) * 255)
    return torch.stack(out)


def sharpness(images: torch.Tensor, mask: torch.Tensor | None = None, on_frame: OnFrame = nothing) -> torch.Tensor:
    """The variance of the Laplacian of the grey picture (0..255) in a region, [F].

    Args:
        images: IMAGE [F, H, W, 3] in 0..1. mask: the region, [F, H, W] or [1, H, W]; all of it without.

    Example:
        >>> checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2
        >>> pictures = torch.stack([torch.full((8, 8), 0.5), checks.float()])[..., None].expand(-1, -1, -1, 3)
        >>> flat, sharp = sharpness(pictures)
        >>> bool(flat < 1e-3 < sharp)
        True
    """
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=images.device)[None, None]
    out = []
    for i, frame in enumerate(images[..., :3]):
        on_frame()
        frame = frame.float()
        grey = frame @ torch.tensor([0.299, 0.587, 0.114], device=frame.device) * 255
        edges = F.conv2d(F.pad(grey[None, None], (1, 1, 1, 1), mode="replicate"), kernel)[0, 0]
        middle = _mean_in(edges, mask, i)
        out.append(_mean_in((edges - middle) ** 2, mask, i))
    return torch.stack(out)


def _grey(images: torch.Tensor) -> list[np.ndarray]:
    weights = torch.tensor([0.299, 0.587, 0.114])
    return [(frame[..., :3].cpu().float() @ weights * 255).round().clamp(0, 255).byte().numpy() for frame in images]


def _mean_in(values: torch.Tensor, mask: torch.Tensor | None, frame: int) -> torch.Tensor:
    if mask is None:
        return values.mean()
    weight = mask[frame if len(mask) > 1 else 0].to(values)
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)


def _same_width(frames: torch.Tensor, others: torch.Tensor) -> None:
    if frames.shape[-1] != others.shape[-1]:
        raise ValueError(
            f"The frames' embeddings are {frames.shape[-1]} wide and the others {others.shape[-1]}: they come from "
            "models of different families, whose spaces have nothing in common. Use the two halves of one model."
        )


def _more_than(frames: torch.Tensor, least: int, what: str) -> None:
    if len(frames) <= least:
        raise ValueError(f"{what} needs at least {least + 1} frames; the clip has {len(frames)}.")
