"""What a MODEL takes for the clean latents, asked outside of a sampler and with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import torch

from .context import Entry
from .gradients import attention
from .latents import pictures_covered
from .model import Model, draws_sound
from .nested import empty_sound, with_clean_sound

Conditions = dict[str, Any]  # what the host makes of it, by the names of a model's inputs


def estimate(model: Model, noised: torch.Tensor, sigma: torch.Tensor, told: Sequence[Entry]) -> torch.Tensor:
    """A loaded model's estimate of the clean latents, each for its prompt; gradients flow to the prompts' rows.

    A model that draws sound beside the video hears silence, clean, and its estimate of that is left out. It is asked
    for one at a time: MiniMax H3 takes no more.

    Args:
        noised: pictures [N, C, h, w], or clips [N, C, T, h, w] of a video model, on the model's device.
        sigma: [N].
        told: for each; those that share an entry are encoded once.
    """
    made = {id(entry): _conditions(model, entry, noised[:1]) for entry in told}
    groups = _alike([made[id(entry)] for entry in told], alone=draws_sound(model))
    found = torch.cat([_of_group(model, noised[at], sigma[at], conditions) for at, conditions in groups])
    return found[torch.tensor([i for at, _ in groups for i in at]).argsort()]


def _conditions(model: Model, entry: Entry, video: torch.Tensor) -> Conditions:
    rows, options = entry
    latent, shapes, drawn = _with_silence(model, video)
    made = comfy.samplers.encode_model_conds(
        model.model.extra_conds, comfy.sampler_helpers.convert_cond([[rows, options]]), latent, latent.device,
        "positive", latent_image=torch.zeros_like(latent), denoise_mask=drawn, seed=0, latent_shapes=shapes,
    )  # fmt: skip
    return {name: part.process_cond(batch_size=1, area=None) for name, part in made[0]["model_conds"].items()}


def _with_silence(model: Model, video: torch.Tensor) -> tuple[torch.Tensor, list[torch.Size], torch.Tensor | None]:
    """The latent that the model takes, the shapes of its parts, and which of it is drawn where that is not all."""
    if not draws_sound(model):
        return video, [video.shape], None
    silence = empty_sound(model, sum(pictures_covered(model, video.shape[2]))).to(video)
    silence = silence.expand(len(video), *silence.shape[1:])
    latent, shapes = comfy.utils.pack_latents([video, silence])
    return latent, shapes, comfy.utils.pack_latents([torch.ones_like(video), torch.zeros_like(silence)])[0]


def _alike(conditions: list[Conditions], alone: bool) -> list[tuple[list[int], Conditions]]:
    """Groups that the model takes in one call: the places of their members, and their conditions together."""
    groups: list[list[int]] = []
    for place, one in enumerate(conditions):
        same = [g for g in groups if not alone and comfy.samplers.cond_equal_size(conditions[g[0]], one)]
        if same:
            same[0].append(place)
        else:
            groups.append([place])
    return [(group, comfy.samplers.cond_cat([conditions[place] for place in group])) for group in groups]


def _of_group(model: Model, noised: torch.Tensor, sigma: torch.Tensor, conditions: Conditions) -> torch.Tensor:
    latent, shapes, _ = _with_silence(model, noised)
    kept = with_clean_sound(model).model_options.get("transformer_options", {}) if len(shapes) > 1 else {}
    options = {**kept, "optimized_attention_override": attention}
    found: torch.Tensor = model.model.apply_model(latent, sigma, transformer_options=options, **conditions)
    return found if len(shapes) == 1 else comfy.utils.unpack_latents(found, shapes)[0]
