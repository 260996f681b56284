"""The 3D Gaussian noise prior of Video Custom Diffusion (Magic-Me, arXiv 2402.09368, sec. 4.1, eq. 4).

The initial noise of a clip is drawn from N(0, Sigma) along time, with ``Sigma[m, n] = gamma ** |m - n|`` at the same
channel and position. That covariance is a first-order autoregression, so it needs no matrix::

    e[0] = n[0]
    e[i] = gamma * e[i-1] + sqrt(1 - gamma**2) * n[i]        n iid N(0, 1)

which is the Cholesky factor of Sigma applied to n, in O(frames) time, defined also at gamma = 1.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import Literal

import torch

from . import schedule
from .words import in_quotes

Gamma = float | Sequence[float]
Layout = Literal["comfy", "magic-me"]
LAYOUTS: tuple[Layout, ...] = ("comfy", "magic-me")
PART_OF_A_LOOP = (
    "The latent holds a part of a clip (its batch_index says so), and closed_loop needs the length of the whole. "
    "Sample the whole clip, or switch closed_loop off."
)


def correlate(noise: torch.Tensor, gamma: Gamma, dim: int = 0, closed_loop: bool = False) -> torch.Tensor:
    """Turn independent unit noise into noise correlated along time (eq. 4), as a new tensor.

    Args:
        noise: independent N(0, 1) values, any shape, frames along ``dim``.
        gamma: correlation of neighbouring frames, 0..1; or one value for each of the ``frames - 1`` transitions.
        dim: the axis of time (0 for ``[F, C, h, w]``, 2 for ``[B, C, T, h, w]``).
        closed_loop: the last frame is correlated with the first as with its other neighbour (one gamma only).

    Returns:
        A tensor of the same shape and dtype with unit variance at every frame. gamma 0 gives the input bit for bit,
        gamma 1 repeats the first frame. Unless ``closed_loop``, frame i depends on frames 0..i alone, so the first
        frames do not depend on how many follow.

    Raises:
        ValueError: no frames, a gamma that is NaN or outside 0..1, or a schedule whose length is not ``frames - 1``.

    Example:
        >>> n = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> e = correlate(n, 0.5)
        >>> torch.allclose(e[1], 0.5 * e[0] + 0.75 ** 0.5 * n[1])
        True
    """
    steps = transitions(noise.shape[dim], gamma, closed_loop)
    out = noise.clone(memory_format=torch.contiguous_format)
    work = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
    _correlate_(work.movedim(dim, 0), steps, closed_loop)
    return work.to(out.dtype)


def correlate_picked(noise: torch.Tensor, gamma: Gamma, frames: Sequence[int], dim: int = 0) -> torch.Tensor:
    """As :func:`correlate`, for frames picked from a clip: each pair gets the covariance that it has in the clip.

    Args:
        noise: independent N(0, 1) values, one entry along ``dim`` for each of ``frames``.
        gamma: one gamma, or one value for each of the ``max(frames)`` transitions up to the last of them.
        frames: the frames' numbers in the clip, in any order; one that is named twice has the same noise twice.

    Returns:
        A new tensor with ``Sigma[frames[i], frames[j]]`` between its entries: the gammas between two neighbours
        multiply (eq. 4), so the picked frames are an autoregression of their own.

    Raises:
        ValueError: as :func:`correlate`.

    Example:
        >>> n = torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> e = correlate_picked(n, 0.5, [4, 5, 9])
        >>> torch.allclose(e[2], 0.5 ** 4 * e[1] + (1 - 0.5 ** 8) ** 0.5 * n[2])
        True
    """
    steps = transitions(max(frames) + 1, gamma)
    order = sorted(range(len(frames)), key=lambda entry: frames[entry])
    gaps = [math.prod(steps[frames[a] : frames[b]]) for a, b in itertools.pairwise(order)]
    back = sorted(range(len(frames)), key=lambda entry: order[entry])
    in_order = noise.index_select(dim, torch.tensor(order, device=noise.device))
    return correlate(in_order, gaps, dim).index_select(dim, torch.tensor(back, device=noise.device))


def sample(
    shape: Sequence[int],
    gamma: Gamma,
    seed: int,
    layout: Layout = "comfy",
    closed_loop: bool = False,
    batch_index: Sequence[int] | None = None,
) -> torch.Tensor:
    """Draw correlated noise of ``shape`` from ``seed``, on the CPU, without touching the global generator.

    Args:
        shape: ``[F, C, h, w]`` (frames along the batch) or ``[B, C, T, h, w]`` (a video latent).
        gamma: see :func:`correlate`.
        seed: any integer that ``torch.Generator.manual_seed`` takes.
        layout: ``"comfy"`` draws as ComfyUI does, so gamma 0 equals a KSampler's own noise of that seed; ``"magic-me"``
            draws as the released node does, time innermost (``[C, h, w, F]``), and is equal to it.
        closed_loop: see :func:`correlate`.
        batch_index: which entries of the batch these are (ComfyUI's ``batch_index``): frames of the clip in 4-D shapes,
            clips in 5-D ones. The batch is drawn up to the highest of them, and each entry gets the noise it has in the
            whole; a schedule then covers the frames up to that one.

    Returns:
        float32 noise of ``shape``.

    Raises:
        ValueError: as :func:`correlate`, or a shape that is not 4-D or 5-D, an unknown layout, a part of a closed loop.

    Example:
        >>> sample((16, 4, 64, 64), 0.1, seed=7).shape
        torch.Size([16, 4, 64, 64])
    """
    if batch_index is not None:
        if len(batch_index) != shape[0]:
            raise ValueError(
                f"batch_index names {len(batch_index)} entries; the latent is {list(shape)}. Expected one for each."
            )
        if closed_loop and len(shape) == 4 and list(batch_index) != list(range(len(batch_index))):
            raise ValueError(PART_OF_A_LOOP)
        whole = (max(batch_index) + 1, *shape[1:])
        return _draw(whole, gamma, seed, layout, closed_loop, frame_by_frame=True)[list(batch_index)]
    return _draw(shape, gamma, seed, layout, closed_loop)


def covariance(frames: int, gamma: Gamma, closed_loop: bool = False) -> torch.Tensor:
    """The covariance ``Sigma`` [frames, frames] of :func:`correlate` (float64), for pictures and tests.

    Open: ``Sigma[m, n]`` is the product of the transitions' gammas between m and n, ``gamma ** |m - n|`` for one gamma
    (eq. 4). Closed loop: circulant, ``(gamma**d + gamma**(frames-d)) / (1 + gamma**frames)`` with ``d = |m - n|``, the
    same autoregression run around a circle.

    Example:
        >>> covariance(3, 0.5)
        tensor([[1.0000, 0.5000, 0.2500],
                [0.5000, 1.0000, 0.5000],
                [0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """
    steps, index = transitions(frames, gamma, closed_loop), torch.arange(frames)
    if closed_loop:
        g = torch.tensor(steps[0] if steps else 0.0, dtype=torch.float64)
        by_distance = (g**index + g ** (frames - index)) / (1 + g**frames)
        return by_distance[(index[:, None] - index[None, :]).abs()]
    factor = torch.tensor([1.0, *steps], dtype=torch.float64)
    sigma = torch.eye(frames, dtype=torch.float64)
    for m in range(frames):
        sigma[m, m + 1 :] = torch.cumprod(factor[m + 1 :], 0)
    return torch.maximum(sigma, sigma.T)


def measured_covariance(noise: torch.Tensor) -> torch.Tensor:
    """The covariance between frames [frames, frames] (float64) measured over all values of one draw ``[F, ...]``.

    The mean is known to be zero and is not subtracted.
    """
    flat = noise.reshape(noise.shape[0], -1).double()
    return flat @ flat.T / flat.shape[1]


def transitions(frames: int, gamma: Gamma, closed_loop: bool = False) -> list[float]:
    """Check gamma and spread it over the ``frames - 1`` transitions of a clip.

    Raises:
        ValueError: see :func:`correlate`.
    """
    if frames < 1:
        raise ValueError(f"The clip has {frames} frames; a noise prior needs at least 1.")
    if isinstance(gamma, (int, float)):
        steps = [float(gamma)] * (frames - 1)
        check_gamma(float(gamma))
    else:
        steps = [float(g) for g in gamma]
        if closed_loop:
            raise ValueError("A closed loop takes one gamma for the whole clip; found a schedule. Use a single value.")
        if len(steps) != frames - 1:
            raise ValueError(
                f"The gamma schedule has {len(steps)} values, but a clip of {frames} frames has {frames - 1} "
                f"transitions. Give {frames - 1} values, or one gamma for all."
            )
    for value in steps:
        check_gamma(value)
    return steps


def check_gamma(gamma: float) -> None:
    """Raise ``ValueError`` unless gamma is a number in 0..1."""
    if not 0.0 <= gamma <= 1.0:  # false for NaN as well
        raise ValueError(f"gamma is {gamma}; expected a number from 0 (independent frames) to 1 (one noise for all).")


def parse_schedule(text: str, frames: int, goes_on: bool = False, covers: Sequence[int] | None = None) -> list[float]:
    """Read a gamma schedule as people write it, one value for each of the ``frames - 1`` transitions.

    Either a list, ``"0.1, 0.1, 0.3"``, with a value for each transition; or keyframes, ``"0: 0.1, 8: 0.3"``, by frame
    number. Gamma is held before the first and after the last keyframe, and linear in between. Keyframes fit any clip:
    one beyond its end counts as it would in a longer clip.

    Args:
        goes_on: the clip goes on behind these frames, so a list may too.
        covers: for a video latent, how many pictures each of its ``frames`` latent frames covers.  Keyframes then count
            pictures, and a list has a value for each transition between pictures or between latent frames, told apart
            by their number.  Latent frame i begins at picture ``s = sum(covers[:i])``, and the transition from latent
            frame i-1 to i takes the gamma of the transition from picture s-1 to s: of [1, 4, 4], from 0 to 1 and from
            4 to 5.

    Raises:
        ValueError: text that is neither, keyframes below 0 or that do not rise, a wrong count, or a gamma outside 0..1.

    Example:
        >>> parse_schedule("0: 0, 4: 0.5", frames=6)
        [0.0, 0.125, 0.25, 0.375, 0.5]
        >>> parse_schedule("0: 0, 8: 0.8", frames=3, covers=[1, 4, 4])
        [0.0, 0.4]
    """
    keys, values = _read_schedule(text)
    before = range(frames - 1) if covers is None else [start - 1 for start in itertools.accumulate(covers[:-1])]
    if keys:
        return transitions(frames, [_interpolate(keys, picture) for picture in before])
    if covers is not None and len(values) != frames - 1 and sum(covers) != frames:
        if len(values) != sum(covers) - 1:
            raise ValueError(
                f"The gamma schedule has {len(values)} values, but a clip of {sum(covers)} frames has "
                f"{sum(covers) - 1} transitions, and {frames - 1} between its {frames} latent frames. Give a value "
                "for each of either, or keyframes by frame number."
            )
        values = [values[picture] for picture in before]
    return transitions(frames, values[: frames - 1] if goes_on else values)


def picture_spans(covers: Sequence[int]) -> list[str]:
    """The pictures that latent frames cover, as people write them.

    Example:
        >>> picture_spans([1, 4, 4])
        ['0', '1-4', '5-8']
    """
    ends = itertools.accumulate(covers)
    return [f"{end - 1}" if count == 1 else f"{end - count}-{end - 1}" for count, end in zip(covers, ends, strict=True)]


def check_schedule(text: str) -> None:
    """Raise ``ValueError`` for what is wrong in a gamma schedule whatever the number of frames."""
    for gamma in _read_schedule(text)[1]:
        check_gamma(gamma)


def _read_schedule(text: str) -> tuple[list[tuple[int, float]], list[float]]:
    """The keyframes of a schedule, or its list of values."""
    pairs = schedule.keys(text, numbers=True) or []
    written = [value for _, value in pairs] or [part for part in re.split(r"[,|\n]", text) if part.strip()]
    try:
        values = [float(value) for value in written]
    except ValueError:
        raise ValueError(
            f"The gamma schedule {in_quotes(text)} cannot be read. Write one value for each transition "
            '("0.1, 0.1, 0.3") or keyframes ("0: 0.1, 8: 0.3").'
        ) from None
    keys = [(frame, value) for (frame, _), value in zip(pairs, values, strict=False)]
    _check_keys(keys)
    return keys, values


def _check_keys(keys: list[tuple[int, float]]) -> None:
    for (before, _), (frame, _) in itertools.pairwise(keys):
        if before >= frame:
            raise ValueError(
                f"The gamma schedule has a key at frame {frame} after frame {before}; the frames must "
                "rise, each named once."
            )
    for _, value in keys:
        check_gamma(value)


def frame_dim(rank: int) -> int:
    """The axis of time of a latent of this rank: 0 for ``[F, C, h, w]``, 2 for ``[B, C, T, h, w]``."""
    if rank not in (4, 5):
        raise ValueError(
            f"The latent has {rank} axes; expected 4 ([frames, channels, height, width]) "
            "or 5 ([batch, channels, frames, height, width])."
        )
    return 0 if rank == 4 else 2


def _draw(
    shape: Sequence[int],
    gamma: Gamma,
    seed: int,
    layout: Layout,
    closed_loop: bool,
    frame_by_frame: bool = False,
) -> torch.Tensor:
    dim = frame_dim(len(shape))
    steps = transitions(shape[dim], gamma, closed_loop)
    generator = torch.Generator("cpu").manual_seed(seed)
    if layout == "magic-me":
        time_last = [n for axis, n in enumerate(shape) if axis != dim] + [shape[dim]]
        noise = torch.randn(time_last, generator=generator).movedim(-1, dim).contiguous()
    elif layout != "comfy":
        raise ValueError(f"layout is {layout!r}; expected one of {', '.join(LAYOUTS)}.")
    elif frame_by_frame:  # as ComfyUI does with a batch_index; other numbers where a frame is no multiple of 16 values
        noise = torch.cat([torch.randn((1, *shape[1:]), generator=generator) for _ in range(shape[0])])
    else:
        noise = torch.randn(tuple(shape), generator=generator)
    _correlate_(noise.movedim(dim, 0), steps, closed_loop)
    return noise


def _interpolate(keys: list[tuple[int, float]], frame: int) -> float:
    if frame <= keys[0][0]:
        return keys[0][1]
    for (f0, g0), (f1, g1) in itertools.pairwise(keys):
        if frame <= f1:
            between = g0 + (g1 - g0) * (frame - f0) / (f1 - f0)
            return min(max(between, min(g0, g1)), max(g0, g1))  # rounding may lead below 0 and above 1
    return keys[-1][1]


def _correlate_(x: torch.Tensor, steps: list[float], closed_loop: bool) -> None:
    """The recursion in place, frames along axis 0: one pass while each frame is still in the cache."""
    if closed_loop and steps:
        _correlate_loop_(x, steps[0])
        return
    for i, gamma in enumerate(steps, start=1):
        if gamma:
            x[i].mul_(math.sqrt(1 - gamma * gamma)).add_(x[i - 1], alpha=gamma)


def _correlate_loop_(x: torch.Tensor, gamma: float) -> None:
    """``e[i] = gamma * e[i-1] + s * n[i]`` with e[-1] = e[last]; s makes the variance 1."""
    frames = x.shape[0]
    if gamma == 0:
        return
    if gamma == 1:
        x[1:] = x[:1]
        return
    wrap = gamma**frames
    x.mul_(math.sqrt((1 - gamma * gamma) * (1 - wrap) / (1 + wrap)))
    for i in range(1, frames):
        x[i].add_(x[i - 1], alpha=gamma)
    last = x[-1] / (1 - wrap)
    for i in range(frames):
        x[i].add_(last, alpha=gamma ** (i + 1))
