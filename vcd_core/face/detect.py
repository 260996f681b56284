"""YuNet, a face detector of 53 thousand parameters, in torch: a batch of frames on any device, without OpenCV.

Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector" (2023).  The weights are opencv_zoo's
``face_detection_yunet_2023mar.onnx`` (MIT), converted by ``dev/convert_yunet.py``; boxes and scores equal those of
OpenCV's FaceDetectorYN.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "weights" / "yunet_2023mar.safetensors"
LONGEST_SIDE = 640  # larger frames are scaled down first
SMALL_PICTURE = 320  # below this the frames are also searched at twice their size
STRIDES = (8, 16, 32)


class Face(NamedTuple):
    """One detection, in pixels of the frame."""

    box: tuple[float, float, float, float]  # x, y, width, height
    score: float
    landmarks: tuple[tuple[float, float], ...] = ()  # right eye, left eye, nose, right and left corner of the mouth


class _Unit(nn.Sequential):
    """A pointwise and a depthwise convolution."""

    def __init__(self, into: int, out: int, relu: bool = True) -> None:
        layers = [nn.Conv2d(into, out, 1), nn.Conv2d(out, out, 3, padding=1, groups=out)]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class YuNet(nn.Module):
    """RGB frames [N, 3, H, W] in 0..1, sides multiples of 32, to scores, boxes and landmarks of every cell.

    The file's first layer takes BGR in 0..255; :func:`load` turns it to what ComfyUI's pictures are, so that they go in
    without a copy.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(inplace=True), _Unit(16, 16))
        self.early = nn.Sequential(_Unit(16, 16), _Unit(16, 32), _Unit(32, 32), _Unit(32, 64))
        self.stages = nn.ModuleList([nn.Sequential(_Unit(64, 64), _Unit(64, 64)) for _ in STRIDES])
        self.lateral = nn.ModuleList([_Unit(64, 64) for _ in STRIDES])  # coarse to fine
        self.heads = nn.ModuleDict(
            {
                name: nn.ModuleList([_Unit(64, width, relu=False) for _ in STRIDES])
                for name, width in (("cls", 1), ("bbox", 4), ("obj", 1), ("kps", 10))
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of every cell of every stride [N, cells, 15]: x, y, width, height, score, five landmarks x, y."""
        x = self.early(F.max_pool2d(self.stem(x), 2))
        levels = []
        for stage in self.stages:
            x = stage(F.max_pool2d(x, 2))
            levels.append(x)
        top = self.lateral[0](levels[2])
        middle = self.lateral[1](levels[1] + F.interpolate(top, scale_factor=2.0, mode="nearest"))
        bottom = self.lateral[2](levels[0] + F.interpolate(middle, scale_factor=2.0, mode="nearest"))
        return torch.cat([self._rows(i, level) for i, level in enumerate((bottom, middle, top))], 1)

    def _rows(self, i: int, level: torch.Tensor) -> torch.Tensor:
        maps = {name: head[i](level) for name, head in self.heads.items()}  # type: ignore[index]
        out = {name: values.flatten(2).transpose(1, 2) for name, values in maps.items()}
        height, width = level.shape[-2:]
        cells = torch.stack(
            torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1
        ).reshape(1, -1, 2).to(level)  # fmt: skip
        centre = (cells + out["bbox"][..., :2]) * STRIDES[i]
        size = out["bbox"][..., 2:].exp() * STRIDES[i]
        score = (out["cls"].sigmoid() * out["obj"].sigmoid()).sqrt()
        points = (out["kps"].unflatten(-1, (5, 2)) + cells[:, :, None]) * STRIDES[i]
        return torch.cat([centre - size / 2, size, score, points.flatten(2)], -1)


@cache
def load() -> YuNet:
    """The detector with its weights, on the CPU."""
    from safetensors.torch import load_file

    model = YuNet()
    state = load_file(WEIGHTS)
    state["stem.0.weight"] = state["stem.0.weight"].flip(1) * 255.0
    model.load_state_dict(state)
    model.eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def detect(
    images: torch.Tensor,
    threshold: float = 0.6,
    small_faces: bool = False,
    overlap: float = 0.3,
    device: torch.device | str = "cpu",
) -> list[list[Face]]:
    """Faces of every frame, best first.

    Args:
        images: IMAGE [F, H, W, 3 or more] in 0..1; only the first three channels are looked at.
        threshold: the least score, 0..1.
        small_faces: also search at twice the size, for faces under 10 pixels (four times the work).
        overlap: detections that overlap a better one by more than this (intersection over union) are left out.
        device: where to run; the frames may lie elsewhere.

    Example:
        >>> detect(torch.zeros(2, 64, 96, 3))
        [[], []]
    """
    height, width = images.shape[1:3]
    base = min(1.0, LONGEST_SIDE / max(height, width))
    scales = [base]
    if small_faces or max(height, width) < SMALL_PICTURE:
        scales.append(2 * base)
    found: list[list[Face]] = []
    at_once = 2 if torch.device(device).type == "cpu" else 16  # on a CPU two frames' features stay in its cache
    for chunk in images[..., :3].split(at_once):
        frames = chunk.to(torch.float32).movedim(-1, 1)
        rows: list[list[torch.Tensor]] = [[] for _ in chunk]
        for scale in scales:
            for frame, kept in zip(rows, _rows_at(frames, scale, threshold, device), strict=True):
                frame.append(kept)
        found += [_best(torch.cat(frame), overlap) for frame in rows]
    return found


def _rows_at(
    frames: torch.Tensor, scale: float, threshold: float, device: torch.device | str = "cpu"
) -> list[torch.Tensor]:
    """The rows above the threshold of each frame, searched at ``scale``, in pixels of the frame.

    Frames are shrunk where they lie: only what the detector looks at goes to its device.
    """
    height, width = frames.shape[-2:]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    if size != (height, width):
        frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False)
    if size[0] % 32 or size[1] % 32:
        frames = F.pad(frames, (0, -size[1] % 32, 0, -size[0] % 32))
    with torch.inference_mode():
        model = load().to(device)
        rows = model(frames.to(device).to(memory_format=torch.channels_last)).cpu()
    factor = torch.tensor([width / size[1], height / size[0]])
    scaling = torch.cat([factor, factor, torch.ones(1), factor.repeat(5)])
    return [frame[frame[:, 4] >= threshold] * scaling for frame in rows]


def _best(rows: torch.Tensor, overlap: float) -> list[Face]:
    """Greedy non-maximum suppression."""
    kept: list[torch.Tensor] = []
    for row in rows[rows[:, 4].argsort(descending=True)]:
        if all(iou(row, other) <= overlap for other in kept):
            kept.append(row)
    faces = []
    for row in kept:
        x, y, w, h, score, *points = row.tolist()
        faces.append(Face((x, y, w, h), score, tuple(zip(points[::2], points[1::2], strict=True))))
    return faces


def iou(a: torch.Tensor | tuple[float, ...], b: torch.Tensor | tuple[float, ...]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    ax, ay, aw, ah = (float(v) for v in a[:4])
    bx, by, bw, bh = (float(v) for v in b[:4])
    across, down = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    if across <= 0 or down <= 0:
        return 0.0
    return across * down / (aw * ah + bw * bh - across * down)
