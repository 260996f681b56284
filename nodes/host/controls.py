"""Copies of ControlNets that see another hint; a hint is enlarged and encoded once for all cuts of a picture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch.utils.weak import WeakTensorKeyDictionary


def pixels_of_cell(control: Any) -> int:
    """How many pixels of its hint a ControlNet takes for a latent cell, a side."""
    vae = getattr(control, "vae", None)
    return int(control.compression_ratio * (vae.spacial_compression_encode() if vae is not None else 1))


class Hints:
    """Hints at a picture's size, and their latents: made by the first cut that needs them, and kept for the others."""

    def __init__(self) -> None:
        self.enlarged, self.encoded = WeakTensorKeyDictionary(), WeakTensorKeyDictionary()

    def clear(self) -> None:
        self.enlarged.clear()
        self.encoded.clear()

    def of_size(self, control: Any, hint: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """A hint fitted to this size by its middle, as the host does."""
        if tuple(hint.shape[-2:]) == (height, width):
            return hint
        large = self.enlarged.get(hint)
        if large is None or tuple(large.shape[-2:]) != (height, width):
            large = comfy.utils.common_upscale(hint, width, height, control.upscale_algorithm, "center")
            self.enlarged[hint] = large
        return large

    def latent_of(self, control: Any, hint: torch.Tensor) -> torch.Tensor:
        """A whole hint through its ControlNet's VAE."""
        known = self.encoded.setdefault(hint, {})
        latent = known.get(id(control.vae))
        if latent is None:
            loaded = comfy.model_management.loaded_models(only_currently_used=True)
            latent = control.vae.encode(control.preprocess_image(hint).movedim(1, -1))
            comfy.model_management.load_models_gpu(loaded)
            known[id(control.vae)] = latent
        return latent


class LatentsKnown:
    """Stands in for a ControlNet's VAE: it gives a latent that is known already, and encodes nothing."""

    def __init__(self, vae: Any, latent: torch.Tensor) -> None:
        self.vae, self.latent = vae, latent

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.latent


def with_hint(
    control: Any,
    cut: Callable[[Any, torch.Tensor], torch.Tensor],
    vae: Callable[[Any], Any] = lambda control: control.vae,
) -> Any:
    """A copy of a ControlNet and of its chain, with ``cut(control, hint)`` as hint and ``vae(control)`` as VAE."""
    found = copy.copy(control)
    for name, value in vars(control).items():  # some packs bind methods to the instance
        if isinstance(value, MethodType) and value.__self__ is control:
            setattr(found, name, MethodType(value.__func__, found))
    if control.cond_hint_original is not None:
        found.cond_hint_original = cut(control, control.cond_hint_original)
    more = getattr(control, "extra_concat_orig", [])
    found.extra_concat_orig = [each if each.shape[-1] == 1 else cut(control, each) for each in more]
    found.cond_hint = found.extra_concat = None
    if getattr(control, "vae", None) is not None:
        found.vae = vae(control)
    if control.previous_controlnet is not None:
        found.previous_controlnet = with_hint(control.previous_controlnet, cut, vae)
    return found
