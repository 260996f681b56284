"""A small SD 1.5 in ComfyUI's own classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import torch

from .model import Model

Conv2d: type[torch.nn.Conv2d] = (
    comfy.ops.disable_weight_init.Conv2d
)  # one whose weights the host can fetch for each call


def small_sd15(
    unet: dict[str, Any],
    heads: int,
    text: dict[str, Any],
    autoencoder: torch.nn.Module,
    embeddings: list[str],
    colours: tuple[Sequence[Sequence[float]], Sequence[float]] | None = None,
) -> tuple[Model, Any, Any]:
    """An SD 1.5 of other sizes in the host's own classes: MODEL, CLIP and VAE, their weights still to be filled in.

    Args:
        unet: the UNet's configuration, as the host's model detection writes it.
        heads: attention heads of the UNet.
        text: CLIP-L's configuration.
        autoencoder: a module with ``encode`` and ``decode`` over pictures in -1..1, 8 times smaller, 4 channels, of
            the host's layers (:data:`Conv2d`).
        embeddings: folders in which prompts look for ``embedding:name``.
        colours: red, green and blue of each latent channel, and of none, for live previews; SD 1.5's without.

    The model predicts v and has AnimateDiff's noise schedule (linear betas 0.00085-0.012).
    """
    config = comfy.supported_models.SD15({**unet, "dtype": torch.float32})
    config.unet_config["num_heads"] = heads
    config.sampling_settings = {"beta_schedule": "sqrt_linear", "linear_start": 0.00085, "linear_end": 0.012}
    config.set_inference_dtype(torch.float32, None)
    if colours is not None:
        config.latent_format.latent_rgb_factors, config.latent_format.latent_rgb_factors_bias = colours
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    # of exactly this class: AnimateDiff-Evolved asks for it
    base = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType.V_PREDICTION, device="cpu")
    model = comfy.model_patcher.CoreModelPatcher(base, load_device=device, offload_device=offload)

    target = config.clip_target({})
    target.params = {}
    options = {"dtype": torch.float32, "clip_l_model_config": text}
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=options)

    vae = _empty_vae()
    vae.first_stage_model = autoencoder.eval().requires_grad_(False)
    vae.patcher = comfy.model_patcher.CoreModelPatcher(
        vae.first_stage_model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    vae.memory_used_encode = lambda shape, dtype: 400 * shape[2] * shape[3] * 4
    vae.memory_used_decode = lambda shape, dtype: 400 * shape[2] * shape[3] * 64 * 4
    return model, clip, vae


def _empty_vae() -> Any:
    """The host's VAE object around the smallest autoencoder it takes; the caller puts its own in."""
    parameters = {
        "ddconfig": {
            "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
        },
        "embed_dim": 4,
    }  # fmt: skip
    weights = comfy.ldm.models.autoencoder.AutoencoderKL(**parameters).state_dict()
    return comfy.sd.VAE(sd=weights, config={"params": parameters}, dtype=torch.float32)
