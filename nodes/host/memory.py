"""Where ComfyUI computes and keeps things, and room for models that it does not manage."""

from __future__ import annotations

import math
from collections.abc import Sequence

import comfy.model_management
import torch

from .model import Model

ROOM = 1.5  # what a model call may need over the host's estimate of it


def intermediate_device() -> torch.device:
    """Where ComfyUI keeps latents and pictures between nodes."""
    return comfy.model_management.intermediate_device()


def make_room(gib: float) -> None:
    """Unload models until this much memory of the device is free, for models that the host does not manage."""
    comfy.model_management.free_memory(gib * 2**30, torch_device())


def free_memory() -> float:
    """How many bytes of the machine's memory are free."""
    return float(comfy.model_management.get_free_memory(torch.device("cpu")))


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


def affordable_side(model: Model, shape: Sequence[int]) -> int:
    """How many cells a side a square part of a latent of this shape may have, so that a call with cfg fits into the
    device's memory beside the model; at least 1.

    It follows from the device's whole memory and not from what is free, so that a seed gives the same tiles again.  A
    model that nearly fills the device is kept in part elsewhere by the host: a quarter of the memory counts as free.
    """
    total = comfy.model_management.get_total_memory(model.load_device)
    room = total - comfy.model_management.minimum_inference_memory() - model.model_size()
    cell = model.model.memory_required([2 * shape[0], *shape[1:-2], 1, 1])
    return max(1, int(math.sqrt(max(room, total / 4) / (ROOM * cell))))
