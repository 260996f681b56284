"""The noise that samplers start from and add: transformed on a MODEL, or handed over as a LATENT."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.patcher_extension
import torch

from .model import Model
from .wrappers import with_wrapper

NOISE_PRIOR = "vcd_noise_prior"


def with_initial_noise(model: Model, transform: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    """A clone of ``model`` whose samplers start from ``transform(noise)``; a second call replaces the first.

    SAMPLER_SAMPLE wrappers run inside every OUTER_SAMPLE wrapper, so noise that another pack draws there is transformed
    too, whatever the order of the nodes.  Arguments stay positional: some packs read them from the end.
    """

    def wrapper(executor, guider, sigmas, extra_args, callback, noise, *rest):  # type: ignore[no-untyped-def]
        return executor(guider, sigmas, extra_args, callback, transform(noise), *rest)

    return with_wrapper(model, comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, NOISE_PRIOR, wrapper)


def with_step_noise(model: Model, transform: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    """A clone whose ancestral and SDE samplers add ``transform(noise)`` at each step; a second call replaces the first.

    Samplers that add no noise, and those that were given a noise of their own, stay as they are.
    """

    def wrapper(executor, noise, latent, sampler, *rest, **named):  # type: ignore[no-untyped-def]
        return executor(noise, latent, _with_step_noise(sampler, transform), *rest, **named)

    return with_wrapper(model, comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, NOISE_PRIOR, wrapper)


def _with_step_noise(sampler: Any, transform: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a SAMPLER whose steps add ``transform`` of the noise that they would have added."""
    function = getattr(sampler, "sampler_function", None)
    if function is None or "noise_sampler" in sampler.extra_options:
        return sampler
    if "noise_sampler" not in inspect.signature(function).parameters:
        return sampler

    @functools.wraps(function)
    def run(model, x, sigmas, extra_args=None, **options):  # type: ignore[no-untyped-def]
        noise = _step_noise(function.__name__, x, sigmas, (extra_args or {}).get("seed"))
        options["noise_sampler"] = lambda now, then: transform(noise(now, then))
        return function(model, x, sigmas, extra_args=extra_args, **options)

    sampler = copy.copy(sampler)
    sampler.sampler_function = run
    return sampler


def _step_noise(name: str, x: torch.Tensor, sigmas: torch.Tensor, seed: int | None) -> Callable[..., torch.Tensor]:
    """The noise that the host's sampler function of this name draws where it is given none."""
    if "dpmpp" in name and "_sde" in name and (sigmas > 0).any():
        on_cpu = not name.endswith("_gpu")
        return k_diffusion.BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max(), seed=seed, cpu=on_cpu)
    return k_diffusion.default_noise_sampler(x, seed=seed)


def without_noise_prior(model: Model) -> Model:
    """A clone whose samplers take the noise that they are given, and draw their own at each step."""
    model = model.clone()
    for kind in (comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, comfy.patcher_extension.WrappersMP.OUTER_SAMPLE):
        model.remove_wrappers_with_key(kind, NOISE_PRIOR)
    return model


def latent_that_starts_as(model: Model, sigmas: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The LATENT from which a sampler that adds no noise starts exactly as it would from ``noise`` and an empty latent.

    The host multiplies a non-zero latent by the model's scale factor and then asks the model's ``noise_scaling`` for the
    starting point; both are undone here.

    Raises:
        ValueError: no sigmas, or a model (flow matching) whose starting point does not depend on the latent.
    """
    if sigmas.numel() < 2:
        raise ValueError("SIGMAS is empty (denoise 0?); expected the schedule that the sampler will use.")
    sampling = model.get_model_object("model_sampling")
    sigma = sigmas[:1].to("cpu", torch.float32)
    largest = float(sampling.sigma_max)  # on the model's device once it is loaded
    from_start = math.isclose(float(sigma), largest, rel_tol=1e-5) or float(sigma) > largest
    zeros = torch.zeros_like(noise)
    start = sampling.noise_scaling(sigma, noise, zeros, from_start)
    weight = float(sampling.noise_scaling(sigma, torch.zeros(1), torch.ones(1), from_start))
    if abs(weight) < 1e-6:
        raise ValueError(
            "This model starts from pure noise and ignores the latent at the first step (flow matching), so the noise "
            "cannot be handed over as a LATENT. Use '3D Noise Prior' with SamplerCustomAdvanced, or "
            "'Apply 3D Noise Prior'."
        )
    return model.model.process_latent_out(start / weight)
