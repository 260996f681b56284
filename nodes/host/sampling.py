"""Sampling as a KSampler does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch

from .model import Model
from .nested import video_of, with_clean_sound, with_sound

SAMPLER_NAMES: list[str] = comfy.samplers.SAMPLER_NAMES
SCHEDULER_NAMES: list[str] = comfy.samplers.SCHEDULER_NAMES


@dataclass(frozen=True)
class Sampling:
    """How to sample: what a KSampler's widgets say."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float
    seed: int


def sample(
    model: Model,
    noise: torch.Tensor,
    positive: Any,
    negative: Any,
    latent: torch.Tensor,
    settings: Sampling,
    on_step: Callable[[int, Any], None],
    sound: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sample from ``latent`` plus ``noise`` as a KSampler does; ``on_step(step, preview)`` is called after each
    step.

    Args:
        sound: what a model that draws video and sound is shown at every step, clean; it then draws the video alone.
    """
    previewer = latent_preview.get_previewer(model.load_device, model.get_model_object("latent_format"))

    def callback(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        on_step(step, previewer.decode_latent_to_preview_image("JPEG", video_of(x0)) if previewer else None)

    mask = None
    if sound is not None:
        model = with_clean_sound(model)
        noise, _ = with_sound(noise, torch.zeros_like(sound))
        latent, mask = with_sound(latent, sound)
    return video_of(comfy.sample.sample(
        model, noise, settings.steps, settings.cfg, settings.sampler_name, settings.scheduler, positive, negative,
        latent, denoise=settings.denoise, callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=settings.seed, noise_mask=mask,
    ))  # fmt: skip
