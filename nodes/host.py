"""The one door to ComfyUI: every import of comfy, folder_paths and comfy_execution of this pack stands here.

The rest of ``nodes/`` sees ComfyUI through these functions and through ``comfy_api``, so a change in the host is
mended in one place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.patcher_extension
import torch
from comfy_api.latest import ComfyAPI, io

Model = Any  # comfy.model_patcher.ModelPatcher
Latent = dict[str, Any]

_SAMPLER_SAMPLE = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE


async def register_replacement(replacement: io.NodeReplace) -> None:
    """Offer one of our nodes where a graph holds a node that is not installed."""
    await ComfyAPI().node_replacement.register(replacement)


def intermediate_device() -> torch.device:
    """Where ComfyUI keeps latents and pictures between nodes."""
    return comfy.model_management.intermediate_device()


def with_initial_noise(model: Model, key: str, transform: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    """A clone of ``model`` whose samplers start from ``transform(noise)``; a second call with ``key`` replaces the first.

    SAMPLER_SAMPLE wrappers run inside every OUTER_SAMPLE wrapper, so noise that another pack draws there is transformed
    too, whatever the order of the nodes.  Arguments stay positional: some packs read them from the end.
    """

    def wrapper(executor, guider, sigmas, extra_args, callback, noise, *rest):  # type: ignore[no-untyped-def]
        return executor(guider, sigmas, extra_args, callback, transform(noise), *rest)

    model = model.clone()
    model.remove_wrappers_with_key(_SAMPLER_SAMPLE, key)
    model.add_wrapper_with_key(_SAMPLER_SAMPLE, key, wrapper)
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
    sigma = sigmas[:1].to(torch.float32)
    from_start = bool(
        torch.isclose(sigma, torch.as_tensor(sampling.sigma_max, dtype=torch.float32), rtol=1e-5, atol=0)
        or sigma > sampling.sigma_max
    )
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


def latent_channels(model: Model) -> tuple[int, int]:
    """Channels and dimensions (2 for pictures, 3 for video) of the model's latents."""
    latent_format = model.get_model_object("latent_format")
    return latent_format.latent_channels, latent_format.latent_dimensions
