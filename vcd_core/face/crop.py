"""Cut a face video out of a clip and put it back: windows of one size that follow a track at sub-pixel precision.

Crops are resampled once, with antialiasing, reflecting at the border.  Paste adds the change that the refinement made,
so what was not changed comes back exactly, and outside the feathered region nothing changes, bit for bit.  By change it
adds nothing else, whatever the size of window and crop: what was not changed is not touched.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from .smooth import smooth_boxes
from .track import Track

Size = tuple[int, int]
HEAD = 1.2  # the sides of a head's ellipse over the face's, from ear to ear and from the hair to the chin
LIFT = 0.08  # how much higher the ellipse's middle is than the face's, over the face's height
FLAT = 2 / 255  # a spread below this tells nothing of the contrast of what was drawn


@dataclass
class Windows:
    """Where a track's windows are: one size, a centre for each frame (in pixels, the picture from 0 to its size)."""

    start: int
    centres: np.ndarray  # [n, 2] x, y
    size: tuple[float, float]  # width, height
    face: np.ndarray  # [n, 4] the smoothed face box x, y, width, height
    visible: np.ndarray | None = None  # [n] bool: in which frames to paste; None for all

    @property
    def frames(self) -> range:
        return range(self.start, self.start + len(self.centres))

    def pasted(self, frame: int) -> bool:
        """Whether the face is put back in this frame of the clip: it has a window there and is not hidden."""
        return frame in self.frames and (self.visible is None or bool(self.visible[frame - self.start]))


def windows(
    track: Track, height: int, width: int, crop_factor: float = 3.0, aspect: float = 1.0, smoothing: float = 0.85
) -> Windows:
    """The windows of a track: ``crop_factor`` times the face, no larger than the picture, following it smoothly.

    Args:
        track: the face.
        height, width: of the picture in pixels.
        crop_factor: the window's side over the face's (3 in the release).
        aspect: width over height.
        smoothing: 0 follows the detections, towards 1 only their slow motion.
    """
    if crop_factor < 1:
        raise ValueError(f"crop_factor is {crop_factor}; a window smaller than the face makes no sense. Use 1 or more.")
    face = smooth_boxes(track.boxes, smoothing)
    side = crop_factor * _side(face)
    wide, tall = side * math.sqrt(aspect), side / math.sqrt(aspect)
    shrink = min(1.0, width / wide, height / tall)
    return Windows(track.start, face[:, :2] + face[:, 2:] / 2, (wide * shrink, tall * shrink), face, track.visible)


def crop_size(side: int, aspect: float = 1.0, step: int = 8) -> Size:
    """Height and width, multiples of ``step``, of a crop with ``side`` squared pixels and this aspect (width over
    height).

    Example:
        >>> crop_size(512), crop_size(512, 1.5)
        ((512, 512), (416, 624))
        >>> crop_size(520, step=32)  # a video VAE with cells of 32 pixels
        (512, 512)
    """
    if not 0.25 <= aspect <= 4:
        raise ValueError(f"The aspect is {aspect}; expected width over height between 0.25 and 4.")
    height, width = (step * max(1, round(length / step)) for length in (side / aspect**0.5, side * aspect**0.5))
    return height, width


def crop(
    images: torch.Tensor,
    place: Windows,
    size: Size,
    limits: tuple[float, float] | None = (0.0, 1.0),
    on_frame: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """The windows' content [n, size[0], size[1], C], one resampling.

    Args:
        images: the clip, IMAGE [F, H, W, C].
        place: the windows; their frames are taken from the clip.
        size: height and width of the result in pixels.
        limits: what values are kept within; None where they may be any, as in the hints of an inpainting ControlNet.
        on_frame: called before each frame; what it raises stops the work.
    """
    out = torch.empty(len(place.centres), *size, images.shape[-1])
    for i, frame in enumerate(place.frames):
        on_frame()
        out[i] = _view(images[frame], place, i, size)
    return out if limits is None else out.clamp_(*limits)


def paste(
    images: torch.Tensor,
    refined: torch.Tensor,
    place: Windows,
    feather: float = 5.0,
    paste_factor: float = 1.6,
    masks: torch.Tensor | None = None,
    match_colour: bool = False,
    out: torch.Tensor | None = None,
    neighbours: Sequence[Windows] = (),
    on_frame: Callable[[], object] = lambda: None,
    unsampled: torch.Tensor | None = None,
    feather_share: float = 0.0,
    head: bool = False,
) -> torch.Tensor:
    """The clip with refined windows put back.  A refined frame that is NaN or black leaves its frame as it was, and so
    does one in which the face is hidden (``place.visible``).

    Pastes build on each other: what is added to ``out`` is the change from ``images``, and where the regions of
    neighbours overlap each pixel goes to the face that is nearer, with a soft border between them.  So no face erases
    another, and the order does not matter.

    Args:
        images: the clip that was cropped, IMAGE [F, H, W, C].
        refined: the refined crops [n, h, w, C].
        place: the windows they were cut by.
        feather: width in pixels of the picture over which the new content fades in.
        paste_factor: the pasted region's side over the face's (a rounded box), at most the window.
        masks: [F, H, W] the region to paste instead of the rounded box, as far as it lies near the face.
        match_colour: give the refined clip the mean and spread that the original has around the pasted region.
        out: where to write, e.g. the result of an earlier paste; a copy of ``images`` by default.
        neighbours: the windows of the clip's other faces, refined or not.
        on_frame: called before each frame; what it raises stops the paste.
        unsampled: what the refinement would have given without changing anything [n, h, w, C], such as the crops
            through the VAE and back.  Only the difference from it is pasted (residual paste): neither what the VAE
            loses nor what a window larger than its crop loses by shrinking, and a pixel without change keeps its bits.
        feather_share: the feather as a share of the face's side, in place of ``feather``; 0: ``feather`` counts.
        head: paste an ellipse of ``HEAD`` times the face, and nothing of the corners beside it, instead of the box.

    Raises:
        ValueError: another number of refined frames than windows; ``unsampled`` of another shape than ``refined``.

    Example:
        >>> place = windows(Track(0, np.array([[40.0, 40.0, 60.0, 60.0]]), np.ones(1, bool)), 160, 160, 2.0)
        >>> images = torch.rand(1, 160, 160, 3)
        >>> crops = crop(images, place, (64, 64))  # less than the window's 120 pixels: they cannot hold its detail
        >>> torch.equal(paste(images, crops, place, unsampled=crops), images)
        True
    """
    check_count(len(refined), len(place.centres))
    check_same(refined, unsampled)
    softness = partial(_softness, feather=feather, share=feather_share)
    weight = partial(_mask, softness=softness, paste_factor=paste_factor, head=head)
    out = images.clone() if out is None else out
    size = (refined.shape[1], refined.shape[2])
    match = partial(_colour_match, images, refined, place, paste_factor, on_frame, unsampled)
    gain, offset = match() if match_colour else (1.0, 0.0)
    for i, frame in enumerate(place.frames):
        on_frame()
        if not place.pasted(frame):
            continue
        rows, columns = _region(place, i, images.shape[1], images.shape[2])
        here = partial(weight, rows=rows, columns=columns, mask=None if masks is None else masks[frame])
        mask = _shared(here(place, i), place, frame, rows, columns, neighbours, here, softness)
        if not mask.any():
            continue
        before = _view(images[frame], place, i, size).clamp(0, 1)
        if not usable(refined[i], before):
            logging.warning("Face VCD: frame %d came back NaN or black and was left as it is.", frame)
            continue
        new = refined[i].to(before) * gain + offset
        base = images[frame, rows[0] : rows[1], columns[0] : columns[1]]
        target = out[frame, rows[0] : rows[1], columns[0] : columns[1]]
        if unsampled is not None:
            change = _back(new - unsampled[i].to(before), place, i, rows, columns)
            mask = mask * (change != 0).any(-1)
            _blend(target, base, (base + change).clamp(0, 1), mask[..., None])
            continue
        # what the crop could hold of the original comes back exactly; where the crop is smaller than its window
        # it could not hold the detail, and the new content stands alone
        enlarged = size[0] >= place.size[1] and size[1] >= place.size[0]
        change = _back(new - before if enlarged else new, place, i, rows, columns)
        value = (base + change if enlarged else change).clamp(0, 1)
        _blend(target, base, value, mask[..., None])
    return out


def check_count(refined: int, cropped: int) -> None:
    """Raise ``ValueError`` unless as many frames came back as were cut out."""
    if refined != cropped:
        raise ValueError(
            f"{refined} refined frames came back for {cropped} cropped ones. The steps in between must "
            "keep the number of frames."
        )


def check_same(refined: torch.Tensor, unsampled: torch.Tensor | None) -> None:
    """Raise ``ValueError`` unless frames and those they are compared with have one shape; None stands for none."""
    if unsampled is not None and unsampled.shape != refined.shape:
        raise ValueError(
            f"unsampled is {list(unsampled.shape)} and refined {list(refined.shape)}; they must have one shape. Take "
            "for unsampled the crops through the same VAE and back, as many and as large as the refined ones."
        )


def _side(face: np.ndarray) -> float:
    """The side in pixels of a track's face: the longer one, of its larger frames."""
    return float(np.quantile(face[:, 2:].max(1), 0.9))


def _softness(place: Windows, feather: float, share: float) -> float:
    """How wide a face's feather is: see :func:`paste`."""
    return max(share * _side(place.face) or feather, 1e-3)


def _blend(target: torch.Tensor, base: torch.Tensor, value: torch.Tensor, mask: torch.Tensor) -> None:
    """Write ``value`` into ``target`` as far as ``mask`` goes; what an earlier paste changed of ``base`` stays under
    it."""
    mask, value = mask.to(target), value.to(target)
    built_on = target * (1 - mask) + value * mask
    changed = target != base
    if changed.any():
        built_on = torch.where(changed, (target + (value - base) * mask).clamp(0, 1), built_on)
    target.copy_(torch.where(mask > 0, built_on, target))


def usable(refined: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether a refined frame can be pasted: it is finite, and not black where the original was not."""
    return bool(torch.isfinite(refined).all()) and not (refined.amax() < 0.02 < before.amax() - 0.1)


def _view(image: torch.Tensor, place: Windows, i: int, size: Size) -> torch.Tensor:
    """One window's content [h, w, C]."""
    (x, y), (wide, tall) = place.centres[i], place.size
    rows, first_row, last_row = _sampling(y - tall / 2, tall, size[0], image.shape[0])
    columns, first, last = _sampling(x - wide / 2, wide, size[1], image.shape[1])
    part = image[first_row:last_row, first:last].float()
    half = torch.einsum("oi,iwc->owc", rows, part)
    return torch.einsum("pw,owc->opc", columns, half)


def _sampling(start: float, length: float, samples: int, limit: int) -> tuple[torch.Tensor, int, int]:
    """Cubic weights [samples, last - first] that read ``length`` pixels from ``start``, widened when they shrink.

    Positions outside 0..limit are reflected at the border.
    """
    step = length / samples
    support = max(1.0, step)
    centre = start + (np.arange(samples) + 0.5) * step - 0.5
    reach = math.ceil(2 * support)
    taps = np.floor(centre)[:, None].astype(int) + np.arange(-reach, reach + 1)[None]
    weights = _cubic((taps - centre[:, None]) / support)
    weights /= weights.sum(1, keepdims=True)
    period = 2 * limit
    inside = taps % period
    inside = np.where(inside >= limit, period - 1 - inside, inside)
    first, last = int(inside.min()), int(inside.max()) + 1
    matrix = np.zeros((samples, last - first), np.float32)
    np.add.at(matrix, (np.arange(samples)[:, None], inside - first), weights)
    return torch.from_numpy(matrix), first, last


def _cubic(x: np.ndarray) -> np.ndarray:
    """The Catmull-Rom kernel."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _region(place: Windows, i: int, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rows and columns of the picture whose pixel centres lie in the window."""
    (x, y), (wide, tall) = place.centres[i], place.size

    def span(centre: float, length: float, limit: int) -> tuple[int, int]:
        low = min(max(0, math.ceil(centre - length / 2 - 0.5)), limit)
        high = max(min(limit, math.floor(centre + length / 2 - 0.5) + 1), low)
        return low, high

    return span(y, tall, height), span(x, wide, width)


def _back(refined: torch.Tensor, place: Windows, i: int, rows: Size, columns: Size) -> torch.Tensor:
    """A window's content resampled to the picture's pixels of its region."""
    (x, y), (wide, tall) = place.centres[i], place.size
    down, across = refined.shape[0] / tall, refined.shape[1] / wide
    row_weights, r0, r1 = _sampling(
        (rows[0] - (y - tall / 2)) * down, (rows[1] - rows[0]) * down, rows[1] - rows[0], refined.shape[0]
    )
    column_weights, c0, c1 = _sampling(
        (columns[0] - (x - wide / 2)) * across, (columns[1] - columns[0]) * across, columns[1] - columns[0],
        refined.shape[1],
    )  # fmt: skip
    half = torch.einsum("oi,iwc->owc", row_weights, refined[r0:r1, c0:c1])
    return torch.einsum("pw,owc->opc", column_weights, half)


def _mask(
    place: Windows,
    i: int,
    rows: Size,
    columns: Size,
    softness: Callable[[Windows], float],
    paste_factor: float,
    head: bool,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weight of the new content at each pixel of the region: 0 at the window's edge and outside the face."""
    y = torch.arange(*rows)[:, None] + 0.5
    x = torch.arange(*columns)[None, :] + 0.5
    fx, fy, fw, fh = place.face[i]
    (cx, cy), (wide, tall) = place.centres[i], place.size
    edge = rounded_box(x - cx, y - cy, wide, tall, 0.0)
    feather = softness(place)
    weight = (-edge / feather).clamp(0, 1)
    if mask is not None:
        paste_factor *= 1.5  # the mask decides; the box keeps it off a neighbour's face
    if head and mask is None:
        distance = to_head(x, y, place.face[i], min(paste_factor, HEAD))
    else:
        side_x, side_y = min(wide, paste_factor * fw), min(tall, paste_factor * fh)
        distance = rounded_box(x - (fx + fw / 2), y - (fy + fh / 2), side_x, side_y, 0.35 * min(side_x, side_y))
    weight = torch.minimum(weight, (0.5 - distance / feather).clamp(0, 1))
    if mask is not None and weight.any():
        weight = torch.minimum(weight, _soften(mask, feather)[rows[0] : rows[1], columns[0] : columns[1]])
    return weight * weight * (3 - 2 * weight)


def _shared(
    mask: torch.Tensor,
    place: Windows,
    frame: int,
    rows: Size,
    columns: Size,
    neighbours: Sequence[Windows],
    weight: Callable[[Windows, int], torch.Tensor],
    softness: Callable[[Windows], float],
) -> torch.Tensor:
    """A face's weight at each pixel where other faces are near: its share of what all of them cover together.

    A share falls from one to zero over the feather's width where another face becomes the nearer one, as far as that
    one is pasted there.  Whichever face asks, each gets the same share, so no pixel is given away twice.
    """
    others = [other for other in neighbours if other.pasted(frame)]
    there = [weight(other, frame - other.start) for other in others]
    near = [(other, theirs) for other, theirs in zip(others, there, strict=True) if bool((theirs * mask).any())]
    if not near:
        return mask
    faces = [place, *(other for other, _ in near)]
    weights = torch.stack([mask, *(theirs for _, theirs in near)])
    distances = torch.stack([_to_face(face, frame, rows, columns) for face in faces])
    feathers = torch.tensor([softness(face) for face in faces])[:, None, None]
    between = (feathers[None] + feathers[:, None]) / 2
    ahead = (0.5 + (distances[None] - distances[:, None]) / between).clamp(0, 1)  # of the first over the second
    ahead = ahead * ahead * (3 - 2 * ahead)
    ahead[range(len(faces)), range(len(faces))] = 1.0
    nearest = (1 - weights * (1 - ahead)).prod(1)
    claimed = (weights * nearest).sum(0)
    covered = 1 - (1 - weights).prod(0)
    return torch.where(claimed > 0, mask * nearest[0] / claimed.clamp(min=1e-9) * covered, torch.zeros_like(mask))


def to_head(x: torch.Tensor, y: torch.Tensor, face: np.ndarray, factor: float = HEAD) -> torch.Tensor:
    """The signed distance in pixels of each place to a head, an ellipse of ``factor`` times the face; negative inside.

    Args:
        x, y: the places in pixels of the picture.
        face: x, y, width, height.
    """
    left, top, wide, tall = (float(value) for value in face)
    side_x, side_y = factor * wide, factor * tall
    return rounded_box(
        x - (left + wide / 2), y - (top + (0.5 - LIFT) * tall), side_x, side_y, 0.5 * min(side_x, side_y)
    )


def _to_face(place: Windows, frame: int, rows: Size, columns: Size) -> torch.Tensor:
    """The signed distance of each pixel to a window's face, negative inside."""
    x, y, wide, tall = place.face[frame - place.start]
    down = torch.arange(*rows)[:, None] + 0.5 - (y + tall / 2)
    across = torch.arange(*columns)[None, :] + 0.5 - (x + wide / 2)
    return rounded_box(across, down, wide, tall, 0.0)


def rounded_box(x: torch.Tensor, y: torch.Tensor, width: float, height: float, corner: float) -> torch.Tensor:
    """The signed distance to a rounded box around the origin, negative inside."""
    dx, dy = x.abs() - width / 2 + corner, y.abs() - height / 2 + corner
    outside = torch.sqrt(dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2)
    return outside + torch.maximum(dx, dy).clamp(max=0) - corner


def _soften(mask: torch.Tensor, feather: float) -> torch.Tensor:
    size = 2 * max(1, round(feather / 2)) + 1
    half, values = size // 2, mask[None, None].float()
    for side, edge in (
        ((size, 1), (half, 0)),
        ((1, size), (0, half)),
    ):  # the mean of a square is that of its lines' means
        values = torch.nn.functional.avg_pool2d(values, side, 1, edge, count_include_pad=False)
    return values[0, 0]


def _colour_match(
    images: torch.Tensor,
    refined: torch.Tensor,
    place: Windows,
    paste_factor: float,
    on_frame: Callable[[], object],
    unsampled: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gain and offset a channel for the whole clip, from the ring between the pasted region and the window's edge."""
    size = (refined.shape[1], refined.shape[2])
    y = (torch.arange(size[0]) + 0.5) / size[0] * place.size[1] - place.size[1] / 2
    x = (torch.arange(size[1]) + 0.5) / size[1] * place.size[0] - place.size[0] / 2
    count, sums = 0, torch.zeros(4, refined.shape[-1], dtype=torch.float64)
    for i, frame in enumerate(place.frames):
        on_frame()
        half_x, half_y = paste_factor * place.face[i, 2] / 2, paste_factor * place.face[i, 3] / 2
        ring = (y.abs()[:, None] > half_y) | (x.abs()[None, :] > half_x)
        window = _view(images[frame], place, i, size).clamp(0, 1)
        if ring.any() and place.pasted(frame) and usable(refined[i], window):
            old = (window if unsampled is None else unsampled[i])[ring].double()
            new = refined[i][ring].double()
            count += len(old)
            sums += torch.stack([old.sum(0), (old * old).sum(0), new.sum(0), (new * new).sum(0)])
    if not count:
        return torch.ones(1), torch.zeros(1)
    before, before_square, after, after_square = sums / count
    spread, new_spread = (
        (square - mean * mean).clamp(min=0).sqrt() for mean, square in ((before, before_square), (after, after_square))
    )
    # before a plain wall the ring has no contrast to go by
    known = (torch.minimum(spread, new_spread) / FLAT).clamp(max=1.0)
    gain = 1 + known * ((spread / new_spread.clamp(min=1e-6)).clamp(0.5, 2.0) - 1)
    return gain.float(), (before - gain * after).float()
