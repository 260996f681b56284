"""Wrapping what a MODEL's sampler does, on a clone; the model that was given stays as it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import comfy.patcher_extension
import torch

from .model import Model

VIDEOS_IN_BATCH = "vcd_videos_in_batch"  # transformer option: how many clips each conditioning's batch holds


def with_wrapper(model: Model, kind: str, key: str, wrapper: Callable[..., Any]) -> Model:
    """A clone with a wrapper; a second one with the same key replaces the first."""
    model = model.clone()
    model.remove_wrappers_with_key(kind, key)
    model.add_wrapper_with_key(kind, key, wrapper)
    return model


def with_unet_call(model: Model, key: str, before: Callable[[torch.Tensor, dict[str, Any]], None]) -> Model:
    """A clone that calls ``before(x, transformer_options)`` ahead of every pass through the UNet."""

    def wrapper(
        executor: Any, x: torch.Tensor, timesteps: Any, context: Any = None, y: Any = None, control: Any = None,
        transformer_options: Any = None, **kwargs: Any,
    ) -> Any:  # fmt: skip
        before(x, transformer_options or {})
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    return with_wrapper(model, comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, key, wrapper)


class WhileSampling:
    """Whether the sampler is within a span of the sampling, given from 0 to 1 as for the host's ControlNets.

    ``attached(model, key)`` is a clone that tells it, before each sampling, what noise its own schedule has there.
    """

    def __init__(self, span: tuple[float, float]) -> None:
        self.span, self.now = span, True
        self.sigmas = (math.inf, 0.0)

    def attached(self, model: Model, key: str) -> Model:
        kind = comfy.patcher_extension.CallbacksMP.ON_PRE_RUN
        model = model.clone()
        model.remove_callbacks_with_key(kind, key)
        model.add_callback_with_key(kind, key, self._begin)
        return model

    def _begin(self, owner: Model) -> None:
        sampling = owner.get_model_object("model_sampling")
        first, last = (float(sampling.percent_to_sigma(value)) for value in self.span)
        self.sigmas = (first, last)

    def update(self, transformer_options: dict[str, Any]) -> bool:
        """Whether the step that these options belong to is within the span; kept in ``now``."""
        sigmas = transformer_options.get("sigmas")
        if self.span != (0.0, 1.0) and sigmas is not None:
            self.now = self.sigmas[0] >= float(sigmas.flatten()[0]) > self.sigmas[1]
        return self.now


def frames_of_each(batch: int, transformer_options: dict[str, Any]) -> int:
    """The frames of one clip in a UNet batch: the host stacks whole clips, one for each conditioning."""
    videos = len(transformer_options.get("cond_or_uncond", (0,))) * transformer_options.get(VIDEOS_IN_BATCH, 1)
    if batch % videos:
        raise ValueError(f"A batch of {batch} frames cannot be divided into {videos} clips.")
    return batch // videos
