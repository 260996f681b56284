"""Drawing some places of a latent less than others: a mask of the sampler whose values are shares of the denoise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import comfy.patcher_extension
import comfy.utils
import numpy as np
import torch

from .latents import on_the_video, pictures_covered, video_part
from .model import Model, of_video
from .sampling import Sampling, noise_share
from .wrappers import with_wrapper

STRENGTH = "vcd_strength"


def with_strength(model: Model, strength: torch.Tensor, settings: Sampling) -> Model:
    """A clone that draws each cell of a latent with its share of the denoise; a second one takes the first's place.

    Until the sampler has come down to a cell's share, the model sees the source with the noise of the step there, and
    so the cell begins from the same noise as in a sampling of the smaller denoise.  This is the host's noise mask with
    one threshold a step (as its Differential Diffusion), held around the model alone: models that read the host's mask
    as a picture to fill in (Wan's image-to-video) or as one timestep a frame (Wan 2.2 5B) are shown none, and all
    cells have the noise of one step.

    Of a latent of video and sound the video's cells alone are held.

    Args:
        strength: of the cells, 0 to 1: [F, 1, h, w], or [1, 1, T, h, w] of video.
        settings: what is sampled with.
    """
    levels = shares_left(model, settings)
    held: dict[str, Any] = {}

    def outer(executor, noise, latent, sampler, *more, **named):  # type: ignore[no-untyped-def]
        shapes = named.get("latent_shapes")
        sampler = copy.copy(sampler)
        sample = sampler.sample

        def begin(guider, sigmas, extra, callback, noise, latent, *rest, **named):  # type: ignore[no-untyped-def]
            held.update(noise=_video(noise, shapes), latent=_video(latent, shapes), shapes=shapes)
            try:
                return sample(guider, sigmas, extra, callback, noise, latent, *rest, **named)
            finally:
                held.clear()

        sampler.sample = begin
        return executor(noise, latent, sampler, *more, **named)

    def predict(executor, x, sigma, *more, **named):  # type: ignore[no-untyped-def]
        sampling, shapes = executor.class_obj.inner_model.model_sampling, held["shapes"]
        latent, noise = held["latent"].to(x), held["noise"].to(x)
        now = sigma[:1].reshape([1] * latent.ndim)
        level = float(np.interp(float(sigma[0]), *levels)) - 0.5 / settings.steps  # to the nearest step
        drawn = (strength.to(latent) >= level) & (strength.to(latent) > 0)
        source = sampling.noise_scaling(now, noise, latent)
        x = on_the_video(lambda video: torch.where(drawn, video, source), shapes)(x)
        out = executor(x, sigma, *more, **named)
        return on_the_video(lambda video: torch.where(drawn, video, latent), shapes)(out)

    kinds = comfy.patcher_extension.WrappersMP
    model = with_wrapper(model, kinds.PREDICT_NOISE, STRENGTH, predict)
    return with_wrapper(model, kinds.OUTER_SAMPLE, STRENGTH, outer)


def shares_left(model: Model, settings: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The sigmas of the steps, rising from 0, and at each the share of the denoise that is still to come.

    It is counted as ``denoise`` is: in steps, or in the noise that is left.
    """
    sigmas = settings.sigmas(model).double().cpu().numpy()
    if settings.by_noise:
        left = np.array([noise_share(model, float(sigma)) for sigma in sigmas])
        left /= max(float(left[0]), 1e-9)
    else:
        left = np.linspace(1.0, 0.0, len(sigmas))
    return sigmas[::-1], left[::-1]


def to_cells(model: Model, strength: torch.Tensor, frames: int, shape: Sequence[int], cell: int) -> torch.Tensor:
    """The strength [F, H, W] of a clip's pixels as that of its latent's cells.

    Args:
        frames: how many frames the VAE was given: the clip's, and its last one held.
        shape: the latent's.
        cell: how many pixels a side a cell is.

    A cell takes the mean of its pixels, and the most that a frame has is kept where all of it lies in parts of cells; a
    latent frame that covers several pictures takes the largest of theirs, so that a face which moves within it is
    covered.
    """
    strength = torch.cat([strength, strength[-1:].expand(frames - len(strength), -1, -1)])
    rows, columns = (side * cell - have for side, have in zip(shape[-2:], strength.shape[1:], strict=True))
    strength = torch.nn.functional.pad(strength[:, None], (0, columns, 0, rows))
    cells = torch.nn.functional.avg_pool2d(strength, cell)
    cells *= strength.amax((1, 2, 3), True) / cells.amax((1, 2, 3), True).clamp(min=1e-9)
    if not of_video(model):
        return cells
    ends = np.cumsum(pictures_covered(model, shape[2])).clip(max=frames)
    starts = [0, *(min(end, frames - 1) for end in ends[:-1])]
    return torch.stack([cells[a : max(b, a + 1)].amax(0) for a, b in zip(starts, ends, strict=True)], 1)[None]


def _video(latent: torch.Tensor, shapes: Any) -> torch.Tensor:
    if shapes is None or len(shapes) < 2:
        return latent
    return comfy.utils.unpack_latents(latent, shapes)[video_part(shapes)]
