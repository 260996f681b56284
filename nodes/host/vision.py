"""Embeddings of pictures and prompts by CLIP, CLIP vision and DINOv2."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from ...vcd_core import evaluate
from .ui import stop_if_asked


def embed_images(clip_vision: Any, images: torch.Tensor) -> torch.Tensor:
    """The CLIP vision (or DINOv2) embeddings [N, d] of IMAGE, some at a time.

    Raises:
        ValueError: a model that gives no single embedding of a picture (SigLIP).
    """
    parts = []
    for part in images.split(16):
        stop_if_asked()
        parts.append(clip_vision.encode_image(part[..., :3])["image_embeds"].float().cpu())
    if parts[0].ndim != 2:
        raise ValueError(
            f"This CLIP vision model ({vision_kind(clip_vision)}) gives no single embedding of a picture; expected a "
            "CLIP (ViT-L/14, ViT-H) or, for DINO, a DINOv2."
        )
    return torch.cat(parts)


def frames_between(interpolation: Any, images: torch.Tensor) -> torch.Tensor:
    """What an interpolation model of the host (INTERP_MODEL: FILM, RIFE) draws half way between the frames 0, 2, 4, ...
    of IMAGE [F, H, W, 3], [(F - 1) // 2, H, W, 3]."""
    from comfy_extras.nodes_frame_interpolation import FrameInterpolate

    stop_if_asked()
    return FrameInterpolate.execute(interpolation, images[::2], 2).args[0][1::2].float().cpu()


def vision_kind(clip_vision: Any) -> str:
    """What kind of model a CLIP_VISION is, in the host's words; "dinov2" for DINOv2."""
    return str(getattr(clip_vision, "model_type", "unknown"))


def embed_text(clip: Any, text: str) -> torch.Tensor:
    """The prompt's embedding [d] in the space that CLIP shares between pictures and text.

    Raises:
        ValueError: a text encoder without projection into that space.
    """
    encoders = (getattr(clip.cond_stage_model, name, None) for name in ("clip_g", "clip_h", "clip_l"))
    encoder = next((encoder for encoder in encoders if encoder is not None), None)
    projection = getattr(getattr(encoder, "transformer", None), "text_projection", None)
    if projection is None:
        raise ValueError("This CLIP has no text encoder of the CLIP family; CLIP-T cannot be computed with it.")
    pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled="unprojected")[1][0].float().cpu()
    weight = projection.weight.detach().float().cpu()
    if not _is_projection(weight) or _files_lack(clip, "text_projection"):
        raise ValueError(
            "This CLIP came without a text projection (checkpoints of SD 1.5 and the usual clip_l.safetensors leave it "
            "out), so CLIP-T would be meaningless. Load OpenAI's clip-vit-large-patch14 with 'Load CLIP' for it."
        )
    return pooled @ weight.T


def _is_projection(weight: torch.Tensor) -> bool:
    """Whether weights were loaded: the host leaves those of a missing layer as zeros or as whatever the memory held."""
    spread = float(weight.std()) if torch.isfinite(weight).all() else math.inf
    identity = weight.shape[0] == weight.shape[1] and torch.equal(weight, torch.eye(len(weight)))
    return 1e-4 < spread < 10 and not identity


def _files_lack(clip: Any, layer: str) -> bool:
    """Whether the files that a CLIP was loaded from are known and none holds this layer."""
    from safetensors import safe_open

    paths = _files_of(clip)
    if not paths or not all(path.endswith(".safetensors") and os.path.isfile(path) for path in paths):
        return False
    for path in paths:
        with safe_open(path, "pt") as file:
            if any(key.removesuffix(".weight").endswith(layer) for key in file.keys()):  # noqa: SIM118
                return False
    return True


def _files_of(clip: Any) -> list[str]:
    """The files that a CLIP was loaded from; none where the host does not know them.

    To load a model once more it keeps a function and its arguments. The first of these is a checkpoint's file, or the
    list of a text encoder's files; loaders of other packs may keep something else.
    """
    _, arguments, *_ = getattr(clip.patcher, "cached_patcher_init", None) or (None, ())
    first = arguments[0] if arguments else ()
    files = [first] if isinstance(first, str) else first
    known = isinstance(files, (list, tuple)) and all(isinstance(file, str) for file in files)
    return list(files) if known else []


def likeness_to(clip_vision: Any, reference: torch.Tensor, crops: list[torch.Tensor]) -> list[float]:
    """For each set of crops, the mean cosine of its CLIP vision embeddings to those of a reference picture."""
    wanted = embed_images(clip_vision, reference)
    return [float(evaluate.to_references(embed_images(clip_vision, images), wanted).mean()) for images in crops]
