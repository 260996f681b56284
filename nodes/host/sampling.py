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
FINEST = 1024  # times the steps: of a longer schedule the host's own do not tell the last steps apart


def noise_share(model: Model, sigma: float) -> float:
    """How much of what a model starts from at ``sigma`` is noise, beside the picture: 0 to 1, told by the model."""
    scaling = model.get_model_object("model_sampling").noise_scaling
    level, one, none = torch.tensor([sigma]), torch.ones(1), torch.zeros(1)
    noise, picture = float(scaling(level, one, none)), float(scaling(level, none, one))
    return noise / (noise + picture)


def sigma_of(model: Model, share: float) -> float:
    """The sigma at which this share is noise; the model's largest where it knows none so large."""
    low, high = 0.0, float(model.get_model_object("model_sampling").sigma_max)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if noise_share(model, middle) < share else (low, middle)
    return high


@dataclass(frozen=True)
class Sampling:
    """How to sample: what a KSampler's widgets say, and whether ``denoise`` is a share of the steps or of the noise."""

    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float
    seed: int
    by_noise: bool = False

    def sigmas(self, model: Model) -> torch.Tensor:
        """The noise levels [steps + 1] that a model is sampled at, down to 0."""
        if self.by_noise and 0 < self.denoise < 1:
            return self._from(model, sigma_of(model, self.denoise))
        return self._schedule(model, self.steps, self.denoise)

    def _schedule(self, model: Model, steps: int, denoise: float) -> torch.Tensor:
        return comfy.samplers.KSampler(
            model, steps, model.load_device, self.sampler_name, self.scheduler, denoise, model.model_options
        ).sigmas

    def _from(self, model: Model, sigma: float) -> torch.Tensor:
        """The end of the shortest schedule whose last ``steps`` begin at ``sigma`` or below, begun there."""
        few, many = self.steps - 1, self.steps
        while self._end(model, many)[0] > sigma and many < FINEST * self.steps:
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if self._end(model, middle)[0] > sigma else (few, middle)
        end = self._end(model, many)
        levels = torch.unique_consecutive(torch.cat([end.new_tensor([sigma]), end[end < sigma]]))
        at = torch.linspace(0, len(levels) - 1, self.steps + 1, device=levels.device)  # fine schedules repeat levels
        below = at.long().clamp(max=len(levels) - 2)
        return torch.lerp(levels[below], levels[below + 1], at - below)

    def _end(self, model: Model, steps: int) -> torch.Tensor:
        return self._schedule(model, steps, 1.0)[-(self.steps + 1) :].clone()


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
        seed=settings.seed, noise_mask=mask, sigmas=settings.sigmas(model),
    ))  # fmt: skip
