"""Motion modules in a MODEL's UNet: blocks, norms over all frames, the beta schedule, hints of context windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from einops import rearrange

from .cut import Cut
from .model import Model
from .ui import warn
from .wrappers import frames_of_each, with_wrapper

ByOwner = Callable[[Model], None]
_AROUND_SAMPLING = (
    comfy.patcher_extension.CallbacksMP.ON_PRE_RUN,
    comfy.patcher_extension.CallbacksMP.ON_CLEANUP,
)


def with_beta_schedule(model: Model, key: str, schedule: str | None) -> Model:
    """A clone with one of the host's noise schedules, 0.00085-0.012; "sqrt_linear" is the one linear in beta.

    Each sampling warns if a node behind this one replaced the schedule, or if the model has no betas. None leaves the
    model's own.
    """
    current = model.get_model_object("model_sampling")
    model = model.clone()
    if schedule and isinstance(current, comfy.model_sampling.ModelSamplingDiscrete):
        # of the same kind, so that what a ModelSamplingDiscrete node chose (v prediction, LCM, zsnr) stays
        sampling = type(current)(_settings(schedule), zsnr=getattr(current, "zsnr", None))
        model.add_object_patch("model_sampling", sampling)

    def check(owner: Model) -> None:
        sampling = owner.get_model_object("model_sampling")
        warn(_schedule_is_lost(sampling) if schedule and not _has_betas(sampling, schedule) else None)

    before = comfy.patcher_extension.CallbacksMP.ON_PRE_RUN
    model.remove_callbacks_with_key(before, key)
    model.add_callback_with_key(before, key, check)
    return model


def _settings(schedule: str) -> type:
    class Settings:
        sampling_settings = {"beta_schedule": schedule, "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000}

    return Settings


def _has_betas(sampling: torch.nn.Module, schedule: str) -> bool:
    """Whether all noise levels that a model was told to sample at are among this schedule's (LCM takes every 20th)."""
    zsnr = getattr(sampling, "zsnr", None)
    expected = comfy.model_sampling.ModelSamplingDiscrete(_settings(schedule), zsnr=zsnr).sigmas
    found = getattr(sampling, "sigmas", torch.zeros(1)).cpu()
    return bool(torch.isclose(found[:, None], expected, rtol=1e-4).any(1).all())


def _schedule_is_lost(sampling: torch.nn.Module) -> str:
    kinds = (kind.__name__ for kind in type(sampling).__mro__ if kind.__module__ == comfy.model_sampling.__name__)
    lost = f"{next(kinds, type(sampling).__name__)} replaces the beta_schedule of 'AnimateDiff Motion Module'"
    if isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        return f"{lost}. Connect that node before 'AnimateDiff Motion Module' to keep both."
    return f'{lost}: it has no betas. Leave that node out, or choose "the model\'s own" there.'


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
        for block in blocks(owner.model.diffusion_model):
            for at in reversed([i for i, part in enumerate(block) if isinstance(part, kind)]):
                del block[at]

    def patch(layer, x, emb, context, transformer_options, *_):  # type: ignore[no-untyped-def]
        return call(layer, x, frames_of_each(x.shape[0], transformer_options))

    _change_while_sampling(model, key, inject, eject)
    patches = model.model_options["transformer_options"].setdefault("patches", {})
    others = [entry for entry in patches.get("forward_timestep_embed_patch", []) if entry[0] is not kind]
    patches["forward_timestep_embed_patch"] = [*others, (kind, patch)]
    return model


def with_hints_of_windows(model: Model, key: str) -> Model:
    """A clone whose ControlNets see, in each context window, the hints of its frames.

    The host hands every window the hints of the whole clip, of which the nets then take the first.
    """

    def wrapper(executor, base, conds, x, timestep, model_options):  # type: ignore[no-untyped-def]
        window = model_options.get("transformer_options", {}).get("context_window")
        if window is None or window.dim != 0:
            return executor(base, conds, x, timestep, model_options)
        before = getattr(window, "causal_anchor_index", None)  # a frame that newer hosts put before a window
        frames = [before, *window.index_list] if before is not None and before >= 0 else list(window.index_list)
        if len(frames) != x.shape[0]:
            return executor(base, conds, x, timestep, model_options)
        cut = Cut(frames=frames)

        def of_window(entry: dict[str, Any]) -> dict[str, Any]:
            return {**entry, "control": cut.control(entry["control"])} if entry.get("control") is not None else entry

        conds = [cond if cond is None else [of_window(entry) for entry in cond] for cond in conds]
        return executor(base, conds, x, timestep, model_options)

    return with_wrapper(model, comfy.patcher_extension.WrappersMP.CALC_COND_BATCH, key, wrapper)


def with_norms_over_frames(model: Model, key: str, frames: Callable[[], int]) -> Model:
    """A clone whose UNet takes the statistics of its residual blocks' group norms over all frames of a clip together.

    AnimateDiff v1 was trained so: residual blocks and the output see the clip as one volume, attention frame by frame.
    """

    def pooled(norm: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        video = rearrange(x, "(b f) c h w -> b c (f h) w", f=frames())
        return rearrange(type(norm).forward(norm, video), "b c (f h) w -> (b f) c h w", f=frames())

    def norms(owner: Model) -> list[torch.nn.GroupNorm]:
        unet = owner.model.diffusion_model
        blocks = [part for part in unet.modules() if isinstance(part, ResBlock)]
        return [
            part for block in (*blocks, unet.out) for part in block.modules() if isinstance(part, torch.nn.GroupNorm)
        ]

    def inject(owner: Model) -> None:
        for norm in norms(owner):
            norm.forward = MethodType(pooled, norm)  # type: ignore[method-assign]

    def eject(owner: Model) -> None:
        for norm in norms(owner):
            norm.__dict__.pop("forward", None)

    model = model.clone()
    _change_while_sampling(model, key, inject, eject)
    return model


def without_norms_over_frames(model: Model, key: str) -> Model:
    """A clone whose UNet's norms are its own."""
    model = model.clone()
    model.remove_injections(key)
    for when in _AROUND_SAMPLING:
        model.remove_callbacks_with_key(when, key)
    return model


def _change_while_sampling(model: Model, key: str, inject: ByOwner, eject: ByOwner) -> None:
    """Let ``inject`` change the UNet of ``model`` when it begins to sample, and ``eject`` change it back when it ends.

    The host injects as soon as it has tried to load, even where that failed or nothing samples, and then nobody takes
    the modules out. Modules that stay shift the names of the layers behind them, by which other branches of the graph
    patch and save. So outside sampling the entry is empty: it tells that the model is changed, and injects nothing.
    """
    change = comfy.patcher_extension.PatcherInjection(inject, eject)

    def begin(owner: Model) -> None:
        with owner.use_ejected():
            owner.set_injections(key, [change])
        owner.inject_model()

    def end(owner: Model) -> None:
        with owner.use_ejected():
            owner.set_injections(key, [])

    model.set_injections(key, [])
    for when, act in zip(_AROUND_SAMPLING, (begin, end), strict=True):
        model.remove_callbacks_with_key(when, key)
        model.add_callback_with_key(when, key, act)


def blocks(unet: torch.nn.Module) -> list[torch.nn.Sequential]:
    return [*unet.input_blocks, unet.middle_block, *unet.output_blocks]  # type: ignore[list-item,misc]
