"""ControlNets that see another hint, their weights shared."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch


def pixels_of_cell(control: Any) -> int:
    """How many pixels of its hint a ControlNet takes for a latent cell, a side."""
    vae = getattr(control, "vae", None)
    return int(control.compression_ratio * (vae.spacial_compression_encode() if vae is not None else 1))


def with_hint(control: Any, cut: Callable[[Any, torch.Tensor], torch.Tensor]) -> Any:
    """A copy of a ControlNet, and of those chained before it, that sees ``cut(control, hint)``."""
    found = copy.copy(control)
    for name, value in vars(control).items():  # some packs bind methods to the instance
        if isinstance(value, MethodType) and value.__self__ is control:
            setattr(found, name, MethodType(value.__func__, found))
    if control.cond_hint_original is not None:
        found.cond_hint_original = cut(control, control.cond_hint_original)
    more = getattr(control, "extra_concat_orig", [])
    found.extra_concat_orig = [each if each.shape[-1] == 1 else cut(control, each) for each in more]
    found.cond_hint = found.extra_concat = None
    if control.previous_controlnet is not None:
        found.previous_controlnet = with_hint(control.previous_controlnet, cut)
    return found
