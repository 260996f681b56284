"""What a MODEL is: its kind, what it predicts, and the shape of its latents."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.ops
import torch

Model = Any  # comfy.model_patcher.ModelPatcher
Latent = dict[str, Any]


def predicts(model: Model) -> str:
    """ "eps", "v" or the host's name of what else a model predicts, as it is or as a node (ModelSamplingDiscrete) told it."""
    kinds = {comfy.model_sampling.EPS: "eps", comfy.model_sampling.V_PREDICTION: "v"}
    sampling = type(model.get_model_object("model_sampling"))
    how = next(kind for kind in sampling.__mro__ if "calculate_denoised" in vars(kind))
    return kinds.get(how, how.__name__)


def latent_cell(model: Model) -> int:
    """How many pixels a side one cell of a model's latents is."""
    return int(getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8))


def latent_channels(model: Model) -> tuple[int, int]:
    """Channels and dimensions (2 for pictures, 3 for video) of the model's latents."""
    latent_format = model.get_model_object("latent_format")
    return latent_format.latent_channels, latent_format.latent_dimensions


def operations(model: Model) -> tuple[Any, torch.dtype]:
    """The host's layers for weights beside this model's, which cast and move them as it does, and their dtype."""
    dtype = model.model_dtype()
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):  # 8-bit weights are for the model alone
        dtype = model.model.manual_cast_dtype or torch.float16
    return comfy.ops.pick_operations(dtype, model.model.manual_cast_dtype), dtype


def kind_of(model: Model) -> str:
    """What kind of model this is, in the host's words; "SD15" for SD 1.5."""
    if not hasattr(model.model.diffusion_model, "input_blocks"):
        return type(model.model).__name__
    config = model.model.model_config.unet_config
    if config.get("adm_in_channels"):
        return type(model.model).__name__
    return "SD20" if config.get("context_dim") == 1024 else "SD15"
