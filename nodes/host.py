"""The one door to ComfyUI: every import of comfy, folder_paths and comfy_execution of this pack stands here.

The rest of ``nodes/`` sees ComfyUI through these functions and through ``comfy_api``, so a change in the host is
mended in one place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import comfy.ldm.models.autoencoder
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models
import folder_paths
import torch
from comfy_api.latest import ComfyAPI, io
from einops import rearrange

Model = Any  # comfy.model_patcher.ModelPatcher
Latent = dict[str, Any]

_SAMPLER_SAMPLE = comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE


async def register_replacement(replacement: io.NodeReplace) -> None:
    """Offer one of our nodes where a graph holds a node that is not installed."""
    await ComfyAPI().node_replacement.register(replacement)


def intermediate_device() -> torch.device:
    """Where ComfyUI keeps latents and pictures between nodes."""
    return comfy.model_management.intermediate_device()


def with_initial_noise(model: Model, key: str, transform: Callable[[torch.Tensor], torch.Tensor]) -> Model:
    """A clone of ``model`` whose samplers start from ``transform(noise)``; a second call with ``key`` replaces the first.

    SAMPLER_SAMPLE wrappers run inside every OUTER_SAMPLE wrapper, so noise that another pack draws there is transformed
    too, whatever the order of the nodes.  Arguments stay positional: some packs read them from the end.
    """

    def wrapper(executor, guider, sigmas, extra_args, callback, noise, *rest):  # type: ignore[no-untyped-def]
        return executor(guider, sigmas, extra_args, callback, transform(noise), *rest)

    model = model.clone()
    model.remove_wrappers_with_key(_SAMPLER_SAMPLE, key)
    model.add_wrapper_with_key(_SAMPLER_SAMPLE, key, wrapper)
    return model


def latent_that_starts_as(model: Model, sigmas: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The LATENT from which a sampler that adds no noise starts exactly as it would from ``noise`` and an empty latent.

    The host multiplies a non-zero latent by the model's scale factor and then asks the model's ``noise_scaling`` for the
    starting point; both are undone here.

    Raises:
        ValueError: no sigmas, or a model (flow matching) whose starting point does not depend on the latent.
    """
    if sigmas.numel() < 2:
        raise ValueError("SIGMAS is empty (denoise 0?); expected the schedule that the sampler will use.")
    sampling = model.get_model_object("model_sampling")
    sigma = sigmas[:1].to(torch.float32)
    from_start = bool(
        torch.isclose(sigma, torch.as_tensor(sampling.sigma_max, dtype=torch.float32), rtol=1e-5, atol=0)
        or sigma > sampling.sigma_max
    )
    zeros = torch.zeros_like(noise)
    start = sampling.noise_scaling(sigma, noise, zeros, from_start)
    weight = float(sampling.noise_scaling(sigma, torch.zeros(1), torch.ones(1), from_start))
    if abs(weight) < 1e-6:
        raise ValueError(
            "This model starts from pure noise and ignores the latent at the first step (flow matching), so the noise "
            "cannot be handed over as a LATENT. Use '3D Noise Prior' with SamplerCustomAdvanced, or "
            "'Apply 3D Noise Prior'."
        )
    return model.model.process_latent_out(start / weight)


def latent_channels(model: Model) -> tuple[int, int]:
    """Channels and dimensions (2 for pictures, 3 for video) of the model's latents."""
    latent_format = model.get_model_object("latent_format")
    return latent_format.latent_channels, latent_format.latent_dimensions


def add_model_folder(name: str, folder: str, extensions: set[str]) -> None:
    """Let files under ``models/<folder>`` be chosen by ``name``; another pack may have registered the same already."""
    path = os.path.join(folder_paths.models_dir, folder)
    known, kinds = folder_paths.folder_names_and_paths.get(name, ([], set()))
    if path not in known:
        known = [*known, path]
    folder_paths.folder_names_and_paths[name] = (known, set(kinds) | extensions)


def model_files(name: str) -> list[str]:
    """The files that can be chosen under a model folder's name."""
    return folder_paths.get_filename_list(name)


def model_file(name: str, file: str) -> str:
    """The path of a chosen file; a name that leaves its folder, or a file that is gone, raises with where it was sought."""
    path = folder_paths.get_full_path(name, file)
    if path is None:
        places = "\n".join(folder_paths.get_folder_paths(name))
        raise ValueError(f"{file} is not there. It was looked for in:\n{places}")
    return path


def operations(model: Model) -> tuple[Any, torch.dtype]:
    """The host's layers for weights beside this model's, which cast and move them as it does, and their dtype."""
    dtype = model.model_dtype()
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):  # 8-bit weights are for the model alone
        dtype = model.model.manual_cast_dtype or torch.float16
    return comfy.ops.pick_operations(dtype, model.model.manual_cast_dtype), dtype


def is_unet(model: Model) -> bool:
    """Whether the model is one of the host's plain UNets (SD 1.5, SD 2, SDXL)."""
    return hasattr(model.model.diffusion_model, "input_blocks")


def with_beta_schedule(model: Model, schedule: str) -> Model:
    """A clone with another noise schedule of the host's, 0.00085-0.012; "sqrt_linear" is the one that is linear in beta."""

    class Settings:
        sampling_settings = {"beta_schedule": schedule, "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000}

    sampling = comfy.model_base.model_sampling(Settings, model.model.model_type)
    model = model.clone()
    model.add_object_patch("model_sampling", sampling)
    return model


def with_blocks(
    model: Model,
    key: str,
    extra: torch.nn.Module,
    kind: type[torch.nn.Module],
    slots: Callable[[torch.nn.Module, torch.nn.Module], Iterable[tuple[Any, int, torch.nn.Module]]],
    call: Callable[[torch.nn.Module, torch.Tensor, int], torch.Tensor],
) -> Model:
    """A clone of ``model`` with the modules of ``extra`` put into its UNet while it is loaded.

    The host loads, offloads and unloads ``extra`` together with the model; nothing of it is kept here.

    Args:
        key: the name of this addition; a second one with the same name replaces the first.
        extra: the module that owns the weights.
        kind: the class of the modules that are put in.
        slots: ``slots(unet, extra)`` gives (block, index, module) for each of them.
        call: ``call(module, features, frames)`` is their forward pass; frames are those of one clip in the batch.
    """
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    model = model.clone()
    patcher = comfy.model_patcher.ModelPatcher(extra, load_device=device, offload_device=offload)
    model.set_additional_models(key, [patcher])

    def inject(owner: Model) -> None:
        module = owner.get_additional_models_with_key(key)[0].model
        for block, at, part in list(slots(owner.model.diffusion_model, module)):
            block.insert(at, part)

    def eject(owner: Model) -> None:
        for block in _blocks(owner.model.diffusion_model):
            for at in reversed([i for i, part in enumerate(block) if isinstance(part, kind)]):
                del block[at]

    def patch(layer, x, emb, context, transformer_options, *_):  # type: ignore[no-untyped-def]
        return call(layer, x, clip_frames(x.shape[0], transformer_options))

    model.set_injections(key, [comfy.patcher_extension.PatcherInjection(inject, eject)])
    patches = model.model_options["transformer_options"].setdefault("patches", {})
    others = [entry for entry in patches.get("forward_timestep_embed_patch", []) if entry[0] is not kind]
    patches["forward_timestep_embed_patch"] = [*others, (kind, patch)]
    return model


def with_norms_over_frames(model: Model, key: str, frames: Callable[[], int]) -> Model:
    """A clone whose UNet takes the statistics of its group norms over all frames of a clip together."""

    def pooled(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        clip = rearrange(x, "(b f) c h w -> b c (f h) w", f=frames())
        return rearrange(type(norm).forward(norm, clip), "b c (f h) w -> (b f) c h w", f=frames())

    def norms(owner: Model) -> list[torch.nn.GroupNorm]:
        unet = owner.model.diffusion_model
        return [part for part in unet.modules() if isinstance(part, torch.nn.GroupNorm)]

    def inject(owner: Model) -> None:
        for norm in norms(owner):
            norm.forward = MethodType(pooled, norm)  # type: ignore[method-assign]

    def eject(owner: Model) -> None:
        for norm in norms(owner):
            norm.__dict__.pop("forward", None)

    model = model.clone()
    model.set_injections(key, [comfy.patcher_extension.PatcherInjection(inject, eject)])
    return model


def with_unet_call(model: Model, key: str, before: Callable[[torch.Tensor, dict[str, Any]], None]) -> Model:
    """A clone that calls ``before(x, transformer_options)`` ahead of every pass through the UNet."""
    wrapper_type = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL

    def wrapper(executor, x, timesteps, context=None, y=None, control=None, transformer_options=None, **kwargs):  # type: ignore[no-untyped-def]
        before(x, transformer_options or {})
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    model = model.clone()
    model.remove_wrappers_with_key(wrapper_type, key)
    model.add_wrapper_with_key(wrapper_type, key, wrapper)
    return model


def clip_frames(batch: int, transformer_options: dict[str, Any]) -> int:
    """The frames of one clip in a UNet batch: the host stacks whole clips, one for each conditioning."""
    clips = len(transformer_options.get("cond_or_uncond", (0,)))
    if batch % clips:
        raise ValueError(f"A batch of {batch} frames cannot be divided among {clips} conditionings.")
    return batch // clips


def _blocks(unet: torch.nn.Module) -> list[torch.nn.Sequential]:
    return [*unet.input_blocks, unet.middle_block, *unet.output_blocks]  # type: ignore[list-item,misc]


def small_sd15(
    unet: dict[str, Any], heads: int, text: dict[str, Any], autoencoder: torch.nn.Module, embeddings: list[str]
) -> tuple[Model, Any, Any]:
    """An SD 1.5 of other sizes in the host's own classes: MODEL, CLIP and VAE, their weights still to be filled in.

    Args:
        unet: the UNet's configuration, as the host's model detection writes it.
        heads: attention heads of the UNet.
        text: CLIP-L's configuration.
        autoencoder: a module with ``encode`` and ``decode`` over pictures in -1..1, 8 times smaller, 4 channels.
        embeddings: folders in which prompts look for ``embedding:name``.

    The model predicts v and has AnimateDiff's noise schedule (linear betas 0.00085-0.012).
    """
    config = comfy.supported_models.SD15({**unet, "dtype": torch.float32})
    config.unet_config["num_heads"] = heads
    config.sampling_settings = {"beta_schedule": "sqrt_linear", "linear_start": 0.00085, "linear_end": 0.012}
    config.set_inference_dtype(torch.float32, None)
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
