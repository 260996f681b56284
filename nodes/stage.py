"""What Face VCD and Tiled VCD share: drawing the last part of a clip anew from correlated noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..vcd_core import noise as prior
from .host.model import Model
from .host.noise import with_step_noise, without_noise_prior
from .host.pictures import cell_of, decode, encode
from .host.sampling import Sampling, sample
from .host.ui import Progress


class NotFinite(ValueError):
    """The sampler returned NaN."""


def refine(
    images: torch.Tensor,
    model: Model,
    vae: Any,
    positive: Any,
    negative: Any,
    settings: Sampling,
    gamma: float,
    progress: Progress,
    patch: Callable[[Model, Callable[[float], None]], Model] = lambda model, on_call: model,
) -> torch.Tensor:
    """Draw the last part of ``images`` [F, H, W, 3] anew from correlated noise; sides need not be multiples of 8.

    A noise prior on the model is left out: ``gamma`` alone counts here.
    ``patch(model, on_call)`` prepares the model and calls ``on_call`` with the part of a step that is done.
    """
    if settings.denoise == 0:
        return images
    frames, height, width = images.shape[:3]
    cell = cell_of(vae)
    sides = (0, -width % cell, 0, -height % cell)
    if any(sides):
        images = torch.nn.functional.pad(images.movedim(-1, 0), sides, mode="replicate").movedim(0, -1)
    latent = encode(vae, images, progress)
    noise = prior.sample(latent.shape, gamma, settings.seed)
    start, steps_done = progress.done, [0]

    def on_call(part: float) -> None:
        progress.move_to(start + frames * (steps_done[0] + part))

    def on_step(step: int, preview: Any) -> None:
        steps_done[0], progress.preview = step + 1, preview
        on_call(0.0)

    model = with_step_noise(without_noise_prior(model), lambda noise: prior.correlate(noise, gamma))
    model = patch(model, on_call)
    latent = sample(model, noise, positive, negative, latent, settings, on_step)
    if not torch.isfinite(latent).all():
        raise NotFinite("The sampler returned NaN. Try another sampler, a lower cfg, or --force-fp32.")
    return decode(vae, latent, progress)[:, :height, :width]
