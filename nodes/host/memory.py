"""Where ComfyUI computes and keeps things, and room for models that it does not manage."""

from __future__ import annotations

import comfy.model_management
import torch


def intermediate_device() -> torch.device:
    """Where ComfyUI keeps latents and pictures between nodes."""
    return comfy.model_management.intermediate_device()


def make_room(gib: float) -> None:
    """Unload models until this much memory of the device is free, for models that the host does not manage."""
    comfy.model_management.free_memory(gib * 2**30, torch_device())


def handed_on(values: torch.Tensor) -> torch.Tensor:
    """A latent, picture or mask where, and in the precision in which, ComfyUI keeps it between nodes."""
    dtype = getattr(comfy.model_management, "intermediate_dtype", lambda: values.dtype)()
    return values.to(intermediate_device(), dtype)


def torch_device() -> torch.device:
    """The device that ComfyUI computes on."""
    return comfy.model_management.get_torch_device()


def raise_unless_memory(error: Exception) -> None:
    """Raise what is not a lack of memory; hosts before ``raise_non_oom`` tell it by its class."""
    if hasattr(comfy.model_management, "raise_non_oom"):
        comfy.model_management.raise_non_oom(error)
    elif not isinstance(error, comfy.model_management.OOM_EXCEPTION):
        raise error
