"""Models of random weights in the real classes and the real key layouts, for tests where no real weights are.

    python -m dev.random_models sd15 OUT.safetensors        a full-size SD 1.5 checkpoint, 2 GiB
    python -m dev.random_models motion OUT.safetensors      a full-size AnimateDiff motion module (v2), 0.9 GiB

``tiny_sd15`` builds a small MODEL, CLIP and VAE inside a running ComfyUI.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]  # not from .host: test nodes load this file alone

# the last layer of a residual branch is damped, so that depth does not blow the activations up
_BRANCH_END = re.compile(r"(out_layers\.3|proj_out|to_out\.0|ff\.net\.2|conv2|out_proj|fc2)\.weight$")
TINY_CHANNELS = 32  # GroupNorm has 32 groups
TINY_MULTIPLIERS = (1, 2, 4, 4)
TINY_TEXT = 64
TINY_TEXT_OPTIONS: dict[str, Any] = {
    "dtype": torch.float32,
    "clip_l_model_config": {
        "hidden_size": TINY_TEXT,
        "intermediate_size": 4 * TINY_TEXT,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": TINY_TEXT,
    },
}


def random_weight(name: str, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A plausible random weight: zero biases, unit norms, fan-in scaled matrices, embeddings of CLIP's size."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) <= 1:
        return torch.ones(shape)
    if "embedding" in name:
        return torch.randn(shape, generator=generator) * (0.013 if "token" in name else 0.005)
    scale = (0.3 if _BRANCH_END.search(name) else 1.0) / math.sqrt(math.prod(shape[1:]))
    return torch.randn(shape, generator=generator) * scale


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every parameter of ``module`` a random weight, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict(keep_vars=True).items():
            if value.is_floating_point() and value.ndim:
                value.copy_(random_weight(name, value.shape, generator))
    return module


def unet_config(channels: int, multipliers: tuple[int, ...], context: int, heads: int) -> dict[str, Any]:
    """SD 1.5's UNet, as the host's ``UNetModel`` takes it."""
    return {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels,
        "num_res_blocks": [2, 2, 2, 2], "channel_mult": multipliers, "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1, "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True,
        "context_dim": context, "num_heads": heads, "use_linear_in_transformer": False,
        "use_temporal_attention": False, "use_checkpoint": False, "legacy": False,
    }  # fmt: skip


def tiny_sd15(
    seed: int = 0,
    embeddings: list[str] | None = None,
    dtype: torch.dtype = torch.float32,
    compute: torch.dtype | None = None,
) -> tuple[Any, Any, Any]:
    """A MODEL, CLIP and VAE in SD 1.5's classes, small enough for 16 frames and 4 steps in seconds on a CPU.

    ``dtype`` is that of the UNet's weights, ``compute`` what it computes in where that is another.
    """
    import comfy.sd
    import comfy.supported_models

    unet = unet_config(TINY_CHANNELS, TINY_MULTIPLIERS, TINY_TEXT, heads=4)
    detected = {**unet, "adm_in_channels": None, "dtype": dtype}
    detected.pop("num_heads")
    config = comfy.supported_models.SD15(detected)
    config.unet_config["num_heads"] = 4
    config.set_inference_dtype(dtype, compute)
    base = config.get_model({}, "", device="cpu")
    fill(base.diffusion_model, seed)
    model = _patcher(base)
    target = config.clip_target({})
    target.params = {}
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=TINY_TEXT_OPTIONS)
    fill(clip.cond_stage_model, seed + 1)
    return model, clip, _tiny_vae(seed + 2)


def tiny_sdxl(seed: int = 0, embeddings: list[str] | None = None) -> tuple[Any, Any, Any]:
    """A MODEL, CLIP and VAE in SDXL's classes, as small as :func:`tiny_sd15`."""
    text = {**TINY_TEXT_OPTIONS["clip_l_model_config"], "num_hidden_layers": 3}  # SDXL reads the last but one
    options = {"clip_l_model_config": text, "clip_g_model_config": {**text, "hidden_act": "gelu"}}
    unet = {
        **unet_config(TINY_CHANNELS, (1, 2, 4), 2 * TINY_TEXT, heads=4), "transformer_depth": [0, 0, 1, 1, 1, 1],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1], "adm_in_channels": 6 * 256 + TINY_TEXT,
    }  # fmt: skip
    return _sdxl(unet, options, (torch.float32, None), seed, embeddings)


def sdxl(dtype: torch.dtype, compute: torch.dtype | None, whole: bool = True) -> tuple[Any, Any, Any]:
    """A MODEL, CLIP and small VAE in SDXL's classes at SDXL's size; ``whole``: the text encoders with all their layers.

    ``dtype`` is that of the UNet's weights, ``compute`` what it computes in where that is another.
    """
    unet = {
        **unet_config(320, (1, 2, 4), 2048, heads=-1), "num_head_channels": 64, "transformer_depth_middle": 10,
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "adm_in_channels": 6 * 256 + 1280,
    }  # fmt: skip
    few = {"num_hidden_layers": 3}
    large: dict[str, dict[str, Any]] = {
        "clip_l_model_config": few,
        "clip_g_model_config": {**few, "hidden_size": 1280, "num_attention_heads": 20},
    }
    large["clip_g_model_config"] |= {"intermediate_size": 5120, "projection_dim": 1280, "hidden_act": "gelu"}
    return _sdxl(unet, {} if whole else large, (dtype, compute), 0, None)


def _sdxl(
    unet: dict[str, Any],
    text: dict[str, Any],
    dtypes: tuple[torch.dtype, torch.dtype | None],
    seed: int,
    embeddings: list[str] | None,
) -> tuple[Any, Any, Any]:
    import comfy.sd
    import comfy.supported_models

    more: dict[str, Any] = {"num_res_blocks": [2, 2, 2], "use_linear_in_transformer": True, "num_classes": "sequential"}
    detected = {**unet, **more, "dtype": dtypes[0]}
    heads = detected.pop("num_heads")
    config = comfy.supported_models.SDXL(detected)
    config.unet_config["num_heads"] = heads
    config.set_inference_dtype(*dtypes)
    base = config.get_model({}, "", device="cpu")
    fill(base.diffusion_model, seed)
    target = config.clip_target({})
    target.params = {}
    options = {"dtype": torch.float32, **text}
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=options)
    fill(clip.cond_stage_model, seed + 1)
    return _patcher(base), clip, _tiny_vae(seed + 2)


def tiny_flux(seed: int = 0, embeddings: list[str] | None = None) -> tuple[Any, Any, Any]:
    """A MODEL, CLIP and VAE in Flux's classes: a flow transformer of pictures, told by T5 and CLIP-L."""
    import comfy.sd
    import comfy.supported_models
    import comfy.supported_models_base
    import comfy.text_encoders.flux

    width = 32  # of T5's
    config = comfy.supported_models.Flux({
        "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": TINY_TEXT,
        "context_in_dim": width, "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
        "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
        "txt_ids_dims": [],
        "dtype": torch.float32,
    })  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, "", device="cpu")
    fill(base.diffusion_model, seed)
    t5 = {"d_model": width, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    parts = comfy.text_encoders.flux.FluxTokenizer, comfy.text_encoders.flux.flux_clip()
    target = comfy.supported_models_base.ClipTarget(*parts)
    options = {**TINY_TEXT_OPTIONS, "t5xxl_model_config": t5}
    clip = comfy.sd.CLIP(target, embedding_directory=embeddings, model_options=options)
    fill(clip.cond_stage_model, seed + 1)
    return _patcher(base), clip, _tiny_vae(seed + 2, 16)


def _patcher(base: Any) -> Any:
    """The host's MODEL around a diffusion model."""
    import comfy.model_management as memory
    import comfy.model_patcher

    devices = {"load_device": memory.get_torch_device(), "offload_device": memory.unet_offload_device()}
    return comfy.model_patcher.ModelPatcher(base, **devices)


def _tiny_vae(seed: int, channels: int = 4) -> Any:
    """A small VAE of pictures in the host's object."""
    import comfy.sd
    from comfy.ldm.models.autoencoder import AutoencoderKL

    picture: dict[str, Any] = {
        "double_z": True, "z_channels": channels, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
        "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    parameters = {"ddconfig": picture, "embed_dim": channels}
    weights = fill(AutoencoderKL(**parameters), seed).state_dict()
    found = comfy.sd.VAE(sd=weights, config={"params": parameters}, dtype=torch.float32)
    found.latent_channels = channels
    return found


def tiny_controlnet(seed: int = 5) -> Any:
    """A ControlNet for the tiny SD 1.5, in the host's class."""
    import comfy.cldm.cldm
    import comfy.controlnet
    import comfy.model_management
    import comfy.ops

    config = unet_config(TINY_CHANNELS, TINY_MULTIPLIERS, TINY_TEXT, heads=4)
    config.pop("out_channels")
    config.pop("transformer_depth_output")
    config["num_res_blocks"] = [2] * 4
    net = comfy.cldm.cldm.ControlNet(
        **config, hint_channels=3, dtype=torch.float32, device="cpu", operations=comfy.ops.disable_weight_init
    )
    return comfy.controlnet.ControlNet(fill(net, seed), load_device=comfy.model_management.get_torch_device())


def sd15_state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """A full-size SD 1.5 checkpoint (1131 tensors, fp16) under the names that CheckpointLoaderSimple recognises.

    The host must be importable (``enter_host``): names and shapes are read off its own modules, built without memory.
    """
    import comfy.ops
    import comfy.sd1_clip
    import comfy.supported_models
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    generator = torch.Generator().manual_seed(seed)

    def weights(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        return {
            prefix + name: random_weight(name, value.shape, generator).half()
            for name, value in module.state_dict().items()
            if value.is_floating_point() and value.ndim
        }

    config = unet_config(320, (1, 2, 4, 4), 768, heads=8)
    unet = UNetModel(**config, device="meta", dtype=torch.float16, operations=comfy.ops.disable_weight_init)
    picture: dict[str, Any] = {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
    }
    picture |= {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    with torch.device("meta"):
        vae = AutoencoderKL(ddconfig=picture, embed_dim=4)
        text = comfy.sd1_clip.SD1ClipModel(device="meta", dtype=torch.float16)
    state = weights(unet, "model.diffusion_model.") | weights(vae, "first_stage_model.")
    saved = comfy.supported_models.SD15.process_clip_state_dict_for_saving(None, weights(text, ""))
    state |= {name: value for name, value in saved.items() if name.startswith("cond_stage_model.")}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    state["alphas_cumprod"] = torch.cumprod(1 - betas, 0).float()
    return state


def motion_state_dict(
    version: str = "v2", channels: tuple[int, ...] = (320, 640, 1280, 1280), seed: int = 0
) -> dict[str, torch.Tensor]:
    """An AnimateDiff motion module (v1, v2 or v3) under the names of the original files (v2: 588 tensors, 454 M)."""
    positions = {"v1": 24, "v2": 32, "v3": 32}[version]
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int) -> None:
        state[name] = random_weight(name, shape, generator).half()

    def linear(name: str, out: int, into: int, bias: bool = True) -> None:
        put(f"{name}.weight", out, into)
        if bias:
            put(f"{name}.bias", out)

    def norm(name: str, width: int) -> None:
        put(f"{name}.weight", width)
        put(f"{name}.bias", width)

    def module(name: str, width: int) -> None:
        name += ".temporal_transformer"
        norm(f"{name}.norm", width)
        linear(f"{name}.proj_in", width, width)
        linear(f"{name}.proj_out", width, width)
        block = f"{name}.transformer_blocks.0"
        for i in range(2):
            for part in ("to_q", "to_k", "to_v"):
                linear(f"{block}.attention_blocks.{i}.{part}", width, width, bias=False)
            linear(f"{block}.attention_blocks.{i}.to_out.0", width, width)
            state[f"{block}.attention_blocks.{i}.pos_encoder.pe"] = sinusoid(positions, width).half()[None]
            norm(f"{block}.norms.{i}", width)
        linear(f"{block}.ff.net.0.proj", 8 * width, width)
        linear(f"{block}.ff.net.2", width, 4 * width)
        norm(f"{block}.ff_norm", width)

    for i, width in enumerate(channels):
        for j in range(2):
            module(f"down_blocks.{i}.motion_modules.{j}", width)
        for j in range(3):
            module(f"up_blocks.{i}.motion_modules.{j}", channels[-1 - i])
    if version == "v2":
        module("mid_block.motion_modules.0", channels[-1])
    return state


def motion_lora_state_dict(motion: dict[str, torch.Tensor], rank: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """A motion LoRA for a motion module's tensors, under the names of the v2_lora_* files."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for key, value in motion.items():
        if ".attention_blocks." in key and key.endswith(".weight"):
            head, part = key.removesuffix(".weight").replace("to_out.0", "to_out").rsplit(".", 1)
            name = f"{head}.processor.{part}_lora"
            lora[f"{name}.down.weight"] = torch.randn(rank, value.shape[1], generator=generator) / value.shape[1] ** 0.5
            lora[f"{name}.up.weight"] = torch.randn(value.shape[0], rank, generator=generator)
    return lora


def sinusoid(positions: int, width: int) -> torch.Tensor:
    """The position encoding [positions, width] of "Attention Is All You Need", as AnimateDiff's files hold it."""
    at = torch.arange(positions)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    table = torch.zeros(positions, width)
    table[:, 0::2], table[:, 1::2] = at.sin(), at.cos()
    return table


def enter_host(folder: Path) -> None:
    """Make the host's modules importable in this process, on the CPU unless ``VCD_DEVICE`` names another."""
    sys.path.insert(0, str(folder))
    sys.argv = [sys.argv[0], *(["--cpu"] if os.environ.get("VCD_DEVICE", "cpu") in ("", "cpu") else [])]
    import comfy.options

    comfy.options.enable_args_parsing()


def write_once(path: Path, kind: str, **arguments: Any) -> Path:
    """Write a random model file unless it is there; whole or not at all."""
    import safetensors.torch

    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        make = sd15_state_dict if kind == "sd15" else motion_state_dict
        state = make(**arguments)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        safetensors.torch.save_file(state, partial, metadata={"title": f"random {kind}, for tests"})
        partial.rename(path)
    return path


def full_size(models: Path) -> dict[str, str]:
    """The names of a random SD 1.5 checkpoint and motion module of full size, made once for all folders of models,
    each by a process of its own."""
    files = {"sd15": models / "checkpoints" / "random_sd15.safetensors"}
    files["motion"] = models / "animatediff_models" / "random_mm_v2.safetensors"
    for kind, path in files.items():
        kept = ROOT / ".host" / "random_models" / path.name
        if path.is_file():
            continue
        if not kept.is_file():
            subprocess.run([sys.executable, "-m", "dev.random_models", kind, str(kept)], check=True, cwd=ROOT)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(kept, path)
        except OSError:  # another disk
            shutil.copy(kept, path)
    return {kind: path.name for kind, path in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["sd15", "motion"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.kind == "sd15":
        from .host import prepare

        enter_host(Path(os.environ.get("VCD_COMFY") or prepare(None).comfy))
    write_once(arguments.out, arguments.kind, seed=arguments.seed)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
