"""ComfyUI's own video models and VAEs at a tiny size, with random weights, in its own MODEL and VAE objects.

To be used inside a process that has the host's modules (``random_models.enter_host``).  ``KINDS`` names those of video
alone, ``WITH_SOUND`` the others.
"""

from __future__ import annotations

import io
import math
from typing import Any

import torch

TEXT = 32  # width of the text that the tiny models read
WIDE = 64  # of the text that Hunyuan's reads
LETTERS = 64  # at most so many in the tiny UMT5's vocabulary
REAL = "wan21_1.3b"  # the only kind of real size
KINDS = ("wan21", "wan22_5b", "ltxv", "hunyuan")
WITH_SOUND = ("ltx2", "h3")  # these draw video and sound in one latent


SHOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "wan21_i2v": ("WAN21_I2V", {"model_type": "i2v", "in_dim": 36}),
    "wan21_vace": ("WAN21_Vace", {"model_type": "vace", "in_dim": 16, "vace_layers": 1, "vace_in_dim": 96}),
    "wan21_camera": ("WAN21_Camera", {"model_type": "camera", "in_dim": 32}),
    "wan21_fun": ("WAN21_FunControl2V", {"model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16}),
}  # models of Wan 2.1 that are shown pictures or videos: the host's class, and what differs


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


def model(kind: str, seed: int = 0, dtypes: tuple[torch.dtype, torch.dtype | None] = (torch.float32, None)) -> Any:
    """A tiny MODEL of this kind; ``dtypes``: of its weights, and what it computes in where that is another."""
    import comfy.model_management as memory
    import comfy.model_patcher

    configuration = _configuration(kind)
    configuration.set_inference_dtype(*dtypes)
    base = configuration.get_model({}, "", device="cpu")
    fill(base.diffusion_model, seed)
    if kind == "h3":
        base.diffusion_model.rope.inv_freq.fill_(0.1)
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
    if kind == REAL:
        real = {"dim": 1536, "ffn_dim": 8960, "freq_dim": 256, "text_dim": 4096, "num_heads": 12, "num_layers": 30}
        return models.WAN21_T2V({**wan, **real, "text_len": 512, "in_dim": 16, "out_dim": 16})
    if kind == "wan22_5b":
        return models.WAN22_T2V({**wan, "in_dim": 48, "out_dim": 48})
    if kind in SHOWN:
        name, more = SHOWN[kind]
        return getattr(models, name)({**wan, "out_dim": 16, **more})
    if kind == "ltxv":
        return models.LTXV({
            "image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 32, "attention_head_dim": 16,
            "num_attention_heads": 2, "caption_channels": TEXT, "num_layers": 2, "causal_temporal_positioning": True,
            "dtype": torch.float32,
        })  # fmt: skip
    if kind.startswith("hunyuan"):
        made, channels = (models.HunyuanVideo, 16) if kind == "hunyuan" else (models.HunyuanVideoI2V, 33)
        return made({
            "image_model": "hunyuan_video", "in_channels": channels, "out_channels": 16, "vec_in_dim": WIDE,
            "context_in_dim": WIDE, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
            "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 256, "patch_size": [1, 2, 2], "qkv_bias": True,
            "guidance_embed": True, "byt5": False, "meanflow": False, "use_cond_type_embedding": False,
            "vision_in_dim": None, "meanflow_sum": False, "dtype": torch.float32,
        })  # fmt: skip
    if kind == "ltx2":
        return models.LTXAV({
            "image_model": "ltxav", "in_channels": 128, "audio_in_channels": 128, "cross_attention_dim": 32,
            "audio_cross_attention_dim": 16, "attention_head_dim": 16, "audio_attention_head_dim": 8,
            "num_attention_heads": 2, "audio_num_attention_heads": 2, "caption_channels": TEXT, "num_layers": 1,
            "causal_temporal_positioning": True, "connector_attention_head_dim": 16, "connector_num_attention_heads": 2,
            "connector_num_layers": 1, "dtype": torch.float32,
        })  # fmt: skip
    if kind == "h3":
        return models.MiniMaxH3({
            "image_model": "minimax_h3", "hidden_size": 48, "num_layers": 1, "token_refiner_num_layers": 1,
            "num_attention_heads": 2, "attention_head_dim": 24, "ffn_hidden_size": 32, "latents_dim": 24,
            "audio_latents_dim": 32, "text_dim": TEXT, "timestep_input_dim": 16, "time_embed_hidden_size": 32,
            "time_embed_dim": 16, "rope_inv_freq_len": 4, "dtype": torch.float32,
        })  # fmt: skip
    raise ValueError(f"{kind} is none of {', '.join((*KINDS, *WITH_SOUND))}.")


def text_encoder(kind: str, seed: int = 0, width: int = TEXT) -> Any:
    """A tiny CLIP as models of this kind have it: ``t5xxl`` (LTX-Video), ``umt5xxl`` (Wan), ``llama`` (Hunyuan).

    ``width`` is that of the T5s.
    """
    import comfy.sd
    import comfy.supported_models_base as supported
    import comfy.text_encoders.hunyuan_video as hunyuan
    import comfy.text_encoders.lt as lightricks
    import comfy.text_encoders.wan as wan
    import folder_paths

    tokenizer, encoder = {
        "t5xxl": (lightricks.LTXVT5Tokenizer, lightricks.ltxv_te()),
        "umt5xxl": (wan.WanT5Tokenizer, wan.te()),
        "llama": (hunyuan.HunyuanVideoTokenizer, hunyuan.hunyuan_video_clip()),
    }[kind]
    t5 = {"d_model": width, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    layers = {"num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 64}
    sizes = {
        "t5xxl_model_config": t5, "umt5xxl_model_config": {**t5, "vocab_size": LETTERS},
        "llama_model_config": {**layers, "num_key_value_heads": 2}, "clip_l_model_config": layers,
    }  # fmt: skip
    found = comfy.sd.CLIP(
        supported.ClipTarget(tokenizer, encoder),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"spiece_model": _spelling()},
        model_options={"dtype": torch.float32, **sizes},
    )
    fill(found.cond_stage_model, seed)
    return found


def _spelling() -> torch.Tensor:
    """A vocabulary of single letters in the form in which checkpoints of UMT5 carry theirs."""
    import sentencepiece

    written = io.BytesIO()
    letters = iter(["the quick brown fox jumps over a lazy dog 0123456789 _:,.()*"])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=letters, model_writer=written, model_type="char", vocab_size=LETTERS, hard_vocab_limit=False,
        character_coverage=1.0, minloglevel=2, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)


def text_width(kind: str) -> int:
    """How wide the text is that a kind of model reads."""
    widths = {REAL: 4096, "ltx2": 2 * TEXT}  # LTX-2: a half for the video, a half for the sound
    return WIDE if kind.startswith("hunyuan") else widths.get(kind, TEXT)


def prompt(kind: str, seed: int = 1, tokens: int = 6) -> Any:
    """A conditioning as a text encoder of this kind of model gives it."""
    generator = torch.Generator().manual_seed(seed)
    width = text_width(kind)
    text = torch.randn(1, tokens, width, generator=generator)
    pooled = {"pooled_output": torch.randn(1, WIDE, generator=generator)} if kind.startswith("hunyuan") else {}
    mask = {"attention_mask": torch.ones(1, tokens, dtype=torch.long)} if kind == "ltxv" else {}
    return [[text, pooled | mask]]


def empty(kind: str, latent_frames: int = 5, height: int = 4, width: int = 4, sound: int = 9) -> dict[str, Any]:
    """An empty LATENT of this kind, video and sound in one for those of ``WITH_SOUND``; all sizes are the latent's."""
    import comfy.nested_tensor

    channels = {"wan21": 16, "wan22_5b": 48, "ltxv": 128, "hunyuan": 16, "ltx2": 128, "h3": 24}[kind]
    video = torch.zeros(1, channels, latent_frames, height, width)
    if kind not in WITH_SOUND:
        return {"samples": video}
    heard = torch.zeros(1, 8, sound, 16) if kind == "ltx2" else torch.zeros(1, 32, 2, sound)
    return {"samples": comfy.nested_tensor.NestedTensor([video, heard])}


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


class Groups(torch.nn.Module):
    """An autoencoder whose latent frames are 1, 4, 4, 4, 4, 1, ... frames, each in one of four places of its channels.

    A cell of 16x16 pixels is kept as the mean colours of ``rows`` x ``columns`` parts of it.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, 17k + 5, H, W] to [B, 3 * 4 * rows * columns, 5k + 2, H / 16, W / 16]; one frame to one."""
        b, _, f, h, w = pixels.shape
        count = f if f == 1 else (f - 5) // 17 * 5 + 2
        sizes = [1 if i % 5 == 0 else 4 for i in range(count)]
        groups = pixels[:, :, : sum(sizes)].split(sizes, 2)
        held = torch.cat([group.expand(-1, -1, 4, -1, -1) for group in groups], 2)
        rows, columns = self.rows, self.columns
        cells = held.reshape(b, 3, count, 4, h // 16, rows, 16 // rows, w // 16, columns, 16 // columns).mean((6, 9))
        return cells.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, -1, count, h // 16, w // 16)

    def decode(self, latents: torch.Tensor, **_: Any) -> torch.Tensor:
        rows, columns = self.rows, self.columns
        b, f, h, w = latents.shape[0], *latents.shape[2:]
        cells = latents.reshape(b, 3, 4, rows, columns, f, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        frames = cells.reshape(b, 3, f, 4, h * rows, w * columns)
        large = frames.repeat_interleave(16 // rows, -2).repeat_interleave(16 // columns, -1)
        return torch.cat([large[:, :, i, : 1 if i % 5 == 0 else 4] for i in range(f)], 2)


SHAPES = {
    "wan21": (4, 8),
    "wan22_5b": (4, 16),
    "ltxv": (8, 32),
    "ltx2": (8, 32),
    "hunyuan": (4, 8),
    "h3": (4, 16),
}  # frames and pixels of a latent cell


def base(kind: str) -> str:
    """The kind whose VAE another kind uses."""
    return next((one for one in KINDS if kind.startswith(one)), kind)


def vae(kind: str, seed: int = 0, lossless: bool = False) -> Any:
    """A tiny VAE for a kind of model, in the host's object; ``lossless``: one that gives back what it was given.

    A lossless one has more channels than the kind's own.
    """
    kind = base(kind)
    times, cell = SHAPES[kind]
    if kind == "h3":
        rows, columns = (16, 16) if lossless else (2, 1)
        found = _around(Groups(rows, columns), 3 * 4 * rows * columns, times, cell)
        found.upscale_ratio = (lambda n: max(1, (n - 2) // 5 * 17 + 5), cell, cell)
        found.downscale_ratio = (lambda n: max(1, (n - 5) // 17 * 5 + 2) if n > 1 else 1, cell, cell)
        return found
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
    if kind in ("ltxv", "ltx2"):
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
