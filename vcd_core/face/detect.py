"""YuNet, a face detector of 53 thousand parameters, in torch: a batch of frames on any device, without OpenCV.

Wu, Peng and Yu, "YuNet: A Tiny Millisecond-level Face Detector" (2023).  The weights are opencv_zoo's
``face_detection_yunet_2023mar.onnx`` (MIT), converted by ``dev/convert_yunet.py``; boxes and scores equal those of
OpenCV's FaceDetectorYN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "weights" / "yunet_2023mar.safetensors"
LONGEST_SIDE = 640  # larger frames are scaled down first
SMALL_PICTURE = 320  # below this the frames are also searched at twice their size
COARSE_SIDE = 160  # larger frames are also searched this small, for faces that fill more than half of them
AT_ONCE = 8  # frames
CACHED = 786432  # pixels whose features stay in a CPU's cache
LARGE = 96  # faces of this many searched pixels are found at half the size too
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
    on_frame: Callable[[], object] = lambda: None,
    search_every: int = 1,
    on_call: Callable[[], object] = lambda: None,
) -> list[list[Face]]:
    """Faces of every frame, best first.

    Frames are shrunk where they lie, one at a time, before they go to the device.

    Args:
        images: IMAGE [F, H, W, 3 or more] in 0..1; only the first three channels are looked at.
        threshold: the least score, 0..1.
        small_faces: also search at twice the size (four times the work), and frames of more than 1920 at 2/3 of theirs,
            for faces of 16 pixels.
        overlap: detections that overlap a better one by more than this (intersection over union) are left out.
        device: where to run; the frames may lie elsewhere.
        on_frame: called after each frame; may raise to stop.
        search_every: every so many frames, and the last, are searched whole; those between two in which as many faces
            were found, all large, at half the size (a quarter of the work), the others whole too.
        on_call: called before each call of the network, of which a frame may take several; may raise to stop.

    Example:
        >>> detect(torch.zeros(2, 64, 96, 3))
        [[], []]
    """
    longest = max(images.shape[1:3])
    scales = _scales(longest, small_faces)
    found: dict[int, list[Face]] = {}

    def search(numbers: Sequence[int], scales: Sequence[float], halve: bool = False) -> None:
        for chunk in (numbers[i : i + AT_ONCE] for i in range(0, len(numbers), AT_ONCE)):
            rows = _searched(_picked(images, chunk), scales, threshold, device, halve, on_call)
            for number, row in zip(chunk, rows, strict=True):
                found[number] = _best(row, overlap, longest)
                on_frame()

    numbers = range(len(images))
    whole = sorted({*numbers[::search_every], *numbers[-1:]})
    search(whole, scales)
    between = {n: (a, b) for a, b in itertools.pairwise(whole) for n in range(a + 1, b)}
    large = {n for n, (a, b) in between.items() if _all_large(found[a], found[b], LARGE / scales[0])}
    search(sorted(set(between) - large), scales)
    search(sorted(large), scales[:1], halve=True)
    return [found[number] for number in numbers]


def _all_large(before: list[Face], after: list[Face], side: float) -> bool:
    """Whether two frames have as many faces, some and all of this side or more."""
    return 0 < len(before) == len(after) and all(max(face.box[2:]) >= side for face in (*before, *after))


def _picked(images: torch.Tensor, numbers: Sequence[int]) -> torch.Tensor:
    """The colours of some frames in rising order, without a copy where they follow each other."""
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return images[numbers[0] : numbers[-1] + 1, ..., :3]
    return images[list(numbers)][..., :3]


def _searched(
    images: torch.Tensor,
    scales: Sequence[float],
    threshold: float,
    device: torch.device | str,
    halve: bool,
    on_call: Callable[[], object],
) -> list[np.ndarray]:
    """The rows [n, 15] above the threshold of frames [N, H, W, 3], searched at these scales or at half of them."""
    height, width = images.shape[1:3]
    rows: list[list[np.ndarray]] = [[] for _ in images]
    frames = whole = images.movedim(-1, 1)
    for scale in scales:  # the smallest comes last, and out of the usual size
        size = max(1, round(height * scale)), max(1, round(width * scale))
        shrunk = _resized(frames if scale < scales[0] else whole, size, device)
        frames = shrunk if scale == scales[0] else frames
        shrunk = _halved(shrunk) if halve else shrunk
        at_once = AT_ONCE if shrunk.device.type != "cpu" else max(1, CACHED // shrunk[0, 0].numel())
        found: list[np.ndarray] = []
        for part in shrunk.split(at_once):
            on_call()
            found += _rows_of(part, (height, width), threshold)
        for row, kept in zip(rows, found, strict=True):
            row.append(kept if scale >= scales[0] else kept[kept[:, 2:4].max(1) > max(height, width) / 2])
    return [np.concatenate(row) for row in rows]


def _scales(longest: int, small_faces: bool) -> list[float]:
    """At which scales frames with this longest side are searched."""
    base = min(1.0, LONGEST_SIDE / longest)
    scales = [base]
    if small_faces or longest < SMALL_PICTURE:
        scales.append(max(2 * base, 2 / 3))  # a face of 16 pixels has 10 there
    if longest * base > SMALL_PICTURE:
        scales.append(COARSE_SIDE / longest)
    return scales


def _resized(frames: torch.Tensor, size: tuple[int, int], device: torch.device | str) -> torch.Tensor:
    """Frames [N, 3, h, w] of another size on the device; shrunk one at a time where they lie."""
    if size != tuple(frames.shape[-2:]):
        resized = partial(F.interpolate, size=size, mode="bilinear", antialias=True, align_corners=False)
        frames = torch.cat([resized(frame[None].float()) for frame in frames])
    return frames.to(device, torch.float32)


def _halved(frames: torch.Tensor) -> torch.Tensor:
    """Frames [N, 3, h, w] at half the size, the means of four pixels; of odd sides the last row or column is left."""
    height, width = frames.shape[-2] // 2 * 2, frames.shape[-1] // 2 * 2
    corners = [frames[..., top:height:2, left:width:2] for top in (0, 1) for left in (0, 1)]
    return (corners[0] + corners[1] + corners[2] + corners[3]) / 4


def _rows_of(frames: torch.Tensor, shape: tuple[int, int], threshold: float) -> list[np.ndarray]:
    """The rows [n, 15] above the threshold of each of some frames [N, 3, h, w], in pixels of ``shape``."""
    height, width = frames.shape[-2:]
    if height % 32 or width % 32:
        frames = F.pad(frames, (0, -width % 32, 0, -height % 32))
    with torch.inference_mode():
        rows = load().to(frames.device)(frames.to(memory_format=torch.channels_last)).cpu().numpy()
    factor = np.array([shape[1] / width, shape[0] / height], np.float32)
    scaling = np.concatenate([factor, factor, [1], *[factor] * 5]).astype(np.float32)
    return [frame[frame[:, 4] >= threshold] * scaling for frame in rows]


def _best(rows: np.ndarray, overlap: float, longest: int) -> list[Face]:
    """Greedy non-maximum suppression; what lies in a better face of more than half the frame is a part of it."""
    rows = rows[rows[:, 4].argsort(kind="stable")[::-1]]
    kept: list[np.ndarray] = []
    while len(rows):
        best, rows = rows[0], rows[1:]
        kept.append(best)
        low, high = np.maximum(rows[:, :2], best[:2]), np.minimum(rows[:, :2] + rows[:, 2:4], best[:2] + best[2:4])
        shared, area = (high - low).clip(0).prod(1), rows[:, 2:4].prod(1)
        same = shared > overlap * (area + best[2:4].prod() - shared)
        part = (shared > 0.7 * area) & (best[2:4].max() > longest / 2)
        rows = rows[~(same | part)]
    return [
        Face(tuple(row[:4].tolist()), float(row[4]), tuple(map(tuple, row[5:].reshape(5, 2).tolist()))) for row in kept
    ]


def iou(a: torch.Tensor | tuple[float, ...], b: torch.Tensor | tuple[float, ...]) -> float:
    """Intersection over union of two boxes x, y, width, height."""
    ax, ay, aw, ah = (float(v) for v in a[:4])
    bx, by, bw, bh = (float(v) for v in b[:4])
    across, down = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    if across <= 0 or down <= 0:
        return 0.0
    return across * down / (aw * ah + bw * bh - across * down)
