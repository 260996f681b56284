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
    """ "eps", "v" or the host's name of what else a model predicts, as it is or as a node (ModelSamplingDiscrete) told
    it."""
    kinds = {comfy.model_sampling.EPS: "eps", comfy.model_sampling.V_PREDICTION: "v"}
    sampling = type(model.get_model_object("model_sampling"))
    how = next(kind for kind in sampling.__mro__ if "calculate_denoised" in vars(kind))
    return kinds.get(how, how.__name__)


def latent_cell(model: Model) -> int:
    """How many pixels a side one cell of a model's latents is."""
    return int(getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8))


def patch_of(model: Model) -> int:
    """How many latent cells a side a model takes together; 1 for those that take any number of cells."""
    patch = getattr(model.model.diffusion_model, "patch_size", 1)
    return int(patch[-1]) if isinstance(patch, (tuple, list)) else int(patch)


def of_video(model: Model) -> bool:
    """Whether the frames of a model's latents lie along an axis of their own, and not along the batch."""
    return latent_channels(model)[1] == 3


def draws_sound(model: Model) -> bool:
    """Whether a model's latent holds sound beside the video: it then has a layer that takes the sound's patches in."""
    return any(name.startswith("audio_patch") for name, _ in model.model.diffusion_model.named_children())


def check_fits(model: Model, vae: Any) -> None:
    """Raise ``ValueError`` where a VAE's latents are not those that a model samples; of video and sound, the
    video's."""
    channels, dimensions = latent_channels(model)
    found, found_dimensions = vae.latent_channels, getattr(vae, "latent_dim", 2)
    if (found, found_dimensions) != (channels, dimensions):
        kinds = {2: "pictures", 3: "video"}
        raise ValueError(
            f"VAE and MODEL do not fit: the VAE's latents are {kinds.get(found_dimensions, 'sound')} of {found} "
            f"channels, "
            f"the model ({kind_of(model)}) samples {kinds.get(dimensions, 'sound')} of {channels}. Load the model's "
            f"own VAE."
        )


def latent_channels(model: Model) -> tuple[int, int]:
    """Channels and dimensions (2 for pictures, 3 for video) of the model's latents; of video and sound, the video's."""
    latent_format = model.get_model_object("latent_format")
    channels = latent_format.latent_channels
    if draws_sound(model):  # MiniMax H3's format names the larger of both
        channels = getattr(model.model.diffusion_model, "latents_dim", channels)
    return channels, latent_format.latent_dimensions


def operations(model: Model) -> tuple[Any, torch.dtype]:
    """The host's layers for weights beside this model's, and their dtype.

    They cast their weights to what comes in: which dtype the UNet computes in, a node behind may still choose.
    """
    dtype = model.model_dtype()
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):  # 8-bit weights are for the model alone
        dtype = model.get_model_object("manual_cast_dtype") or torch.float16
    return comfy.ops.manual_cast, dtype


def kind_of(model: Model) -> str:
    """What kind of model this is, in the host's words; "SD15" for SD 1.5."""
    if not hasattr(model.model.diffusion_model, "input_blocks"):
        return type(model.model).__name__
    config = model.model.model_config.unet_config
    if config.get("adm_in_channels"):
        return type(model.model).__name__
    return "SD20" if config.get("context_dim") == 1024 else "SD15"
