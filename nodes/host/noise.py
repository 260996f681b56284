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
import comfy.sample
import torch

from .latents import on_the_video
from .model import Model
from .wrappers import with_wrapper

NOISE_PRIOR = "vcd_noise_prior"
MOST_FRAMES = 4096
Correlate = Callable[[torch.Tensor, list[int] | None], torch.Tensor]


def with_noise_prior(model: Model, correlate: Correlate, each_step: bool) -> Model:
    """A clone whose samplers start from correlated noise, and with ``each_step`` add such; a second call replaces the
    first.

    The sampler itself is wrapped, inside every wrapper of the model: noise that another pack draws and noise that the
    host's FreeNoise shuffles is correlated too, whatever the order of the nodes.

    Of a latent that holds a video and its sound, the video's noise alone is correlated.

    Args:
        correlate: ``correlate(noise, frames)`` for noise of these frames of a clip, or of a whole one (None).
    """

    def wrapper(  # type: ignore[no-untyped-def]
        executor,
        noise,
        latent,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        disable_pbar=False,
        seed=None,
        **named,
    ):
        frames = frames_drawn(noise, seed)
        on_all = on_the_video(correlate, named.get("latent_shapes"))

        def start(drawn: torch.Tensor) -> torch.Tensor:
            if frames is None:
                return on_all(drawn, None)
            whole = _draw(noise, seed, max(frames) + 1).float()
            if not torch.equal(whole[frames], drawn.float().cpu()):  # another wrapper changed it on its way here
                return correlate(drawn, frames)
            return correlate(whole, list(range(len(whole))))[frames].to(drawn)

        if each_step:
            sampler = _with_step_noise(sampler, lambda drawn: on_all(drawn, frames))
        sampler = _with_initial_noise(sampler, start)
        # positional: some packs read them from the end
        return executor(noise, latent, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **named)

    return with_wrapper(model, comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, NOISE_PRIOR, wrapper)


def frames_drawn(noise: torch.Tensor, seed: int | None) -> list[int] | None:
    """Which frames of the clip that the host draws from ``seed`` the rows of ``noise`` [F, C, h, w] are.

    For a latent with a ``batch_index`` (LatentFromBatch) the host draws a clip frame by frame and keeps those picked;
    which, it tells no one, so they are drawn again until each row is found.  None: the clip from its start, or noise
    from elsewhere.
    """
    if seed is None or noise.ndim != 4 or not noise.any():
        return None
    noise = noise.cpu()
    if torch.equal(_draw(noise, seed), noise):
        return None
    generator = torch.Generator().manual_seed(seed)
    found: dict[int, int] = {}
    for frame in range(MOST_FRAMES):
        drawn = comfy.sample.prepare_noise_inner(noise[:1], generator)[0]
        same = (noise[:, 0, 0, 0] == drawn[0, 0, 0]).nonzero().flatten().tolist()
        found |= {row: frame for row in same if torch.equal(noise[row], drawn)}
        if len(found) == len(noise):
            frames = [found[row] for row in range(len(noise))]
            return None if frames == list(range(len(noise))) else frames
    return None


def _draw(like: torch.Tensor, seed: int, frames: int | None = None) -> torch.Tensor:
    """The host's noise of ``seed`` for a latent like this one; with ``frames`` of so many, each drawn apart."""
    generator = torch.Generator().manual_seed(seed)
    if frames is None:
        return comfy.sample.prepare_noise_inner(like, generator)
    return torch.cat([comfy.sample.prepare_noise_inner(like[:1], generator) for _ in range(frames)])


def _with_initial_noise(sampler: Any, transform: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a SAMPLER that starts from ``transform`` of the noise that it is given."""
    sampler = copy.copy(sampler)
    sample = sampler.sample

    def start(guider, sigmas, extra_args, callback, noise, *rest, **named):  # type: ignore[no-untyped-def]
        return sample(guider, sigmas, extra_args, callback, transform(noise), *rest, **named)

    sampler.sample = start
    return sampler


def _with_step_noise(sampler: Any, transform: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a SAMPLER whose steps add ``transform`` of the noise that they would have added.

    Samplers that add no noise, and those that were given a noise of their own, stay as they are.
    """
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


def latent_that_starts_as(model: Model, sigmas: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The LATENT from which a sampler that adds no noise starts exactly as it would from ``noise`` and an empty latent.

    The host multiplies a non-zero latent by the model's scale factor and then asks the model's ``noise_scaling`` for
    the starting point; both are undone here.

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
    return model.get_model_object("latent_format").process_out(start / weight)
