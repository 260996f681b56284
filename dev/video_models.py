"""ComfyUI's own video models and VAEs at a tiny size, with random weights, in its own MODEL and VAE objects.

To be used inside a process that has the host's modules (``random_models.enter_host``).  ``KINDS`` names them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

TEXT = 32  # width of the text that the tiny models read
KINDS = ("wan21", "wan22_5b", "ltxv", "hunyuan")
WITH_SOUND = ("ltx2", "h3")  # video and sound in one latent


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights of a plausible size: norms at one, biases at zero, the statistics of latents at one and zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict(keep_vars=True).items():
            if not value.is_floating_point() or not value.ndim:
                continue
            if name.endswith("bias") or "mean-of-means" in name:
                value.zero_()
            elif value.ndim == 1 or "gamma" in name or "std-of-means" in name:
                value.fill_(1.0)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) / math.sqrt(math.prod(value.shape[1:])))
    return module


def model(kind: str, seed: int = 0) -> Any:
    """A tiny MODEL of this kind."""
    import comfy.model_management as memory
    import comfy.model_patcher

    configuration = _configuration(kind)
    configuration.set_inference_dtype(torch.float32, None)
    base = configuration.get_model({}, "", device="cpu")
    fill(base.diffusion_model, seed)
    if kind == "h3":
        base.diffusion_model.rope.inv_freq.fill_(0.1)  # comes with the weights
    devices = {"load_device": memory.get_torch_device(), "offload_device": memory.unet_offload_device()}
    return comfy.model_patcher.ModelPatcher(base, **devices)


def _configuration(kind: str) -> Any:
    import comfy.supported_models as models

    wan = {
        "image_model": "wan2.1", "dim": 48, "ffn_dim": 96, "freq_dim": 32, "text_dim": TEXT, "num_heads": 2,
        "num_layers": 2, "text_len": 16, "model_type": "t2v", "dtype": torch.float32,
    }  # fmt: skip
    if kind == "wan21":
        return models.WAN21_T2V({**wan, "in_dim": 16, "out_dim": 16})
    if kind == "wan22_5b":
        return models.WAN22_T2V({**wan, "in_dim": 48, "out_dim": 48})
    if kind == "ltxv":
        return models.LTXV({
            "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 32, "attention_head_dim": 16,
            "num_attention_heads": 2, "caption_channels": TEXT, "num_layers": 2, "causal_temporal_positioning": True,
            "dtype": torch.float32,
        })  # fmt: skip
    if kind == "hunyuan":
        return models.HunyuanVideo({
            "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": TEXT,
            "context_in_dim": TEXT, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
            "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True,
            "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
            "vision_in_dim": None, "meanflow_sum": False, "dtype": torch.float32,
        })  # fmt: skip
    return _configuration_with_sound(kind)


def _configuration_with_sound(kind: str) -> Any:
    import comfy.supported_models as models

    if kind == "ltx2":
        return models.LTXAV({
            "image_model": "ltxav", "in_channels": 128, "audio_in_channels": 128, "cross_attention_dim": 32,
            "audio_cross_attention_dim": 16, "attention_head_dim": 16, "audio_attention_head_dim": 8,
            "num_attention_heads": 2, "audio_num_attention_heads": 2, "caption_channels": TEXT, "num_layers": 1,
            "causal_temporal_positioning": True, "connector_attention_head_dim": 16,
            "connector_num_attention_heads": 2, "connector_num_layers": 1, "dtype": torch.float32,
        })  # fmt: skip
    if kind == "h3":
        return models.MiniMaxH3({
            "image_model": "minimax_h3", "hidden_size": 48, "num_layers": 1, "token_refiner_num_layers": 1,
            "num_attention_heads": 2, "attention_head_dim": 24, "ffn_hidden_size": 32, "latents_dim": 24,
            "audio_latents_dim": 32, "text_dim": TEXT, "timestep_input_dim": 16, "time_embed_hidden_size": 32,
            "time_embed_dim": 16, "rope_inv_freq_len": 4, "dtype": torch.float32,
        })  # fmt: skip
    raise ValueError(f"{kind} is none of {', '.join(KINDS + WITH_SOUND)}.")


def empty(kind: str, latent_frames: int = 5, side: int = 4) -> Any:
    """An empty latent of this kind, video and sound in one for those of ``WITH_SOUND``; ``side`` in cells."""
    import comfy.nested_tensor

    channels = {"wan21": 16, "wan22_5b": 48, "ltxv": 128, "hunyuan": 16, "ltx2": 128, "h3": 24}[kind]
    video = torch.zeros(1, channels, latent_frames, side, side)
    if kind not in WITH_SOUND:
        return {"samples": video}
    sound = torch.zeros(1, 8, 9, 16) if kind == "ltx2" else torch.zeros(1, 32, 2, 9)
    return {"samples": comfy.nested_tensor.NestedTensor([video, sound])}


def prompt(kind: str, seed: int = 1, tokens: int = 6) -> Any:
    """A conditioning as a text encoder of this kind of model gives it."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(1, tokens, TEXT, generator=generator)
    pooled = {"pooled_output": torch.randn(1, TEXT, generator=generator)} if kind == "hunyuan" else {}
    mask = {"attention_mask": torch.ones(1, tokens)} if kind == "ltxv" else {}
    return [[text, pooled | mask]]


class Lossless(torch.nn.Module):
    """An autoencoder that loses nothing: pixels become channels, ``times`` frames (but for the first) one latent
    frame."""

    def __init__(self, times: int, cell: int) -> None:
        super().__init__()
        self.times, self.cell = times, cell
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, F, H, W] to [B, 3 * times * cell * cell, 1 + (F - 1) // times, H / cell, W / cell]."""
        times, cell = self.times, self.cell
        whole = pixels[:, :, : 1 + (pixels.shape[2] - 1) // times * times]
        held = torch.cat([whole[:, :, :1]] * (times - 1) + [whole], 2)
        b, f, h, w = held.shape[0], *held.shape[2:]
        cells = held.reshape(b, 3, f // times, times, h // cell, cell, w // cell, cell)
        return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, -1, f // times, h // cell, w // cell)

    def decode(self, latents: torch.Tensor, **_: Any) -> torch.Tensor:
        times, cell = self.times, self.cell
        b, f, h, w = latents.shape[0], *latents.shape[2:]
        cells = latents.reshape(b, 3, times, cell, cell, f, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return cells.reshape(b, 3, f * times, h * cell, w * cell)[:, :, times - 1 :]


SHAPES = {
    "wan21": (4, 8),
    "wan22_5b": (4, 16),
    "ltxv": (8, 32),
    "hunyuan": (4, 8),
}  # frames and pixels of a latent cell


def vae(kind: str, seed: int = 0, lossless: bool = False) -> Any:
    """A tiny VAE for a kind of model, in the host's object; ``lossless``: one that gives back what it was given.

    A lossless one has more channels than the kind's own.
    """
    times, cell = SHAPES[kind]
    if lossless:
        return _around(Lossless(times, cell), 3 * times * cell * cell, times, cell)
    channels, module = _autoencoder(kind)
    return _around(fill(module, seed), channels, times, cell)


def _autoencoder(kind: str) -> tuple[int, torch.nn.Module]:
    import comfy.ldm.lightricks.vae.causal_video_autoencoder as lightricks
    import comfy.ldm.wan.vae
    import comfy.ldm.wan.vae2_2
    from comfy.ldm.models.autoencoder import AutoencoderKL

    sizes = {
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
    }
    if kind == "wan21":
        return 16, comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, image_channels=3, conv_out_channels=3, **sizes)
    if kind == "wan22_5b":
        return 48, comfy.ldm.wan.vae2_2.WanVAE(dim=16, dec_dim=16, z_dim=48, **sizes)
    if kind == "ltxv":
        one, halve = ["res_x", {"num_layers": 1}], ["compress_all", {}]
        grow = ["compress_all", {"residual": False}]
        return 128, lightricks.VideoVAE(config={
            "dims": 3, "in_channels": 3, "out_channels": 3, "latent_channels": 128, "norm_layer": "pixel_norm",
            "patch_size": 4, "latent_log_var": "uniform", "use_quant_conv": False, "causal_decoder": False,
            "encoder_base_channels": 8, "decoder_base_channels": 8,
            "encoder_blocks": [one, halve, one, halve, one, halve, one],
            "decoder_blocks": [one, grow, one, grow, one, grow, one],
        })  # fmt: skip
    return 16, AutoencoderKL(embed_dim=16, ddconfig={
        "double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0, "conv3d": True,
        "time_compress": 4,
    })  # fmt: skip


def _around(module: torch.nn.Module, channels: int, times: int, cell: int) -> Any:
    """The host's VAE object, made for Wan 2.1's smallest autoencoder, around another."""
    import comfy.ldm.wan.vae
    import comfy.model_management as memory
    import comfy.model_patcher
    import comfy.sd

    small = comfy.ldm.wan.vae.WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[],
        temperal_downsample=[False, True, True], image_channels=3, conv_out_channels=3,
    )  # fmt: skip
    found = comfy.sd.VAE(sd=small.state_dict(), dtype=torch.float32)
    found.first_stage_model = module.eval()
    found.patcher = comfy.model_patcher.ModelPatcher(
        module, load_device=found.device, offload_device=memory.vae_offload_device()
    )
    found.latent_channels, found.latent_dim = channels, 3
    found.upscale_ratio = (lambda n: max(0, n * times - (times - 1)), cell, cell)
    found.downscale_ratio = (lambda n: max(0, math.floor((n + times - 1) / times)), cell, cell)
    found.upscale_index_formula = found.downscale_index_formula = (times, cell, cell)
    return found
