"""A still picture as a clip, and video models that draw it: does its brightness stay the same?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import video_models

Place = tuple[int, int]


def still(pack: Callable[[str], Any], kind: str, kept: float) -> tuple[torch.Tensor, Any, Any, set[Place]]:
    """39 frames of one picture, a VAE that loses nothing of it, and a model of a kind that recognises what part of it
    it is shown and draws that, with the share ``kept`` of what it is shown beside it."""
    import comfy.latent_formats

    picture = torch.rand(6, 6, 3, generator=torch.Generator().manual_seed(4)) * 0.3 + 0.6  # no grey
    held = picture.repeat_interleave(16, 0).repeat_interleave(16, 1).expand(39, -1, -1, -1).contiguous()
    model, vae = video_models.model(kind), video_models.vae(kind, lossless=kind != "h3")  # H3's keeps parts of 8x16
    if kind != "h3":
        form = comfy.latent_formats.LatentFormat()
        form.latent_channels, form.latent_dimensions = vae.latent_channels, 3
        form.spacial_downscale_ratio = video_models.SHAPES[kind][1]
        model.model.latent_format = form
    if kind == "wan21":  # which reads off its first layer how many channels it is shown
        model.model.diffusion_model.patch_embedding = torch.nn.Conv3d(vae.latent_channels, 48, (1, 2, 2), (1, 2, 2))
    codec, unseen = pack("nodes.host.pictures").Codec(vae, 39, 96, 96), pack("nodes.host.ui").Unseen()
    clean = model.model.process_latent_in(codec.encode(held, unseen))
    seen: set[Place] = set()

    def part(x: torch.Tensor, sigma: float) -> torch.Tensor:
        """The part of the picture that lies under this noise."""
        h, w = x.shape[-2:]
        places = [(i, j) for i in range(clean.shape[-2] - h + 1) for j in range(clean.shape[-1] - w + 1)]
        parts = {(i, j): clean[..., i : i + h, j : j + w] for i, j in places}
        place = min(parts, key=lambda place: float((x - (1 - sigma) * parts[place]).norm()))
        seen.add(place)
        return parts[place]

    def drawn(executor: Any, x: Any, timestep: torch.Tensor, *more: Any, **inputs: Any) -> Any:
        options = next(value for value in (inputs.get("transformer_options"), *more) if isinstance(value, dict))
        sigma = float(options["sigmas"][0])
        video, *sound = x if isinstance(x, list) else [x]
        found = torch.cat([(1 - kept) * (row - part(row, sigma)) / sigma for row in video.split(1)])
        return [found, *(torch.zeros_like(one) for one in sound)] if sound else found

    return held, pack("nodes.host.wrappers").with_wrapper(model, "diffusion_model", "still", drawn), vae, seen


def luma(images: torch.Tensor) -> torch.Tensor:
    """The mean brightness of each frame of IMAGE."""
    return (images.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).sum(-1).mean((1, 2))
