"""AnimateDiff motion on a MODEL (maths: vcd_core.motion)."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..vcd_core import motion as core
from ..vcd_core.motion import Level, MotionModel, MotionModule
from .host.files import add_model_folder, model_file, model_files, refusal
from .host.model import Model, kind_of, of_video, operations
from .host.motion import (
    with_beta_schedule,
    with_blocks,
    with_hints_of_windows,
    with_norms_over_frames,
    without_norms_over_frames,
)
from .host.text import with_rows_held
from .host.wrappers import WhileSampling, frames_of_each, with_unet_call
from .inputs import CATEGORY

KEY = "vcd_motion"
FILES, LORAS = "animatediff_models", "animatediff_motion_lora"
EXTENSIONS = {".safetensors", ".ckpt", ".pt", ".pth"}
SCHEDULES = {"linear (AnimateDiff)": "sqrt_linear", "the model's own": None}
NO_LORA = "none"
FEWEST = 8

add_model_folder(FILES, "animatediff_models", EXTENSIONS)
add_model_folder(LORAS, "animatediff_motion_lora", EXTENSIONS)


def with_motion(
    model: Model,
    motion: MotionModel,
    strength: float,
    scales: dict[Level, float],
    span: tuple[float, float] = (0.0, 1.0),
) -> Model:
    """``model`` with motion modules in its UNet; each adds its branch with ``strength`` times its level's scale.

    Args:
        span: where in the sampling, from 0 to 1, they begin and end to add it.

    Raises:
        ValueError: a model whose UNet is not SD 1.5-shaped, or a span that ends before it begins.
    """
    if not 0 <= span[0] < span[1] <= 1:
        raise ValueError(
            f"start_percent is {span[0]:g} and end_percent {span[1]:g}; expected 0 <= start_percent < end_percent <= 1."
        )
    list(core.slots(model.model.diffusion_model, motion))
    longest, seen = motion.info.frames, {"frames": 1}
    warned: set[int] = set()
    on = WhileSampling(span)

    def call(module: torch.nn.Module, x: torch.Tensor, frames: int) -> torch.Tensor:
        assert isinstance(module, MotionModule)
        return module(x, frames, strength * scales[module.level]) if on.now else x

    def before(x: torch.Tensor, transformer_options: dict[str, Any]) -> None:
        frames = frames_of_each(x.shape[0], transformer_options)
        seen["frames"] = frames if on.update(transformer_options) else 1
        core.check_frames(x.shape[0], frames, longest)
        if frames < FEWEST and frames not in warned:
            warned.add(frames)
            logging.warning("AnimateDiff moves %d frames; below %d it was not trained and looks poor.", frames, FEWEST)

    model = with_blocks(model, KEY, motion, MotionModule, core.slots, call)
    if motion.info.version == "v1":  # the v1 modules were trained with norms over the whole clip
        model = with_norms_over_frames(model, f"{KEY}_norms", lambda: seen["frames"])
    else:
        model = without_norms_over_frames(model, f"{KEY}_norms")
    model = with_rows_held(with_hints_of_windows(model, KEY))
    return with_unet_call(on.attached(model, f"{KEY}_part"), KEY, before)


class MotionModuleNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def percent(name: str, default: float, tooltip: str) -> io.Float.Input:
            return io.Float.Input(
                name, default=default, min=0.0, max=1.0, step=0.001, optional=True, advanced=True, tooltip=tooltip
            )

        def scale(level: str) -> io.Float.Input:
            return io.Float.Input(
                f"{level}_scale",
                default=1.0,
                min=0.0,
                max=2.0,
                step=0.05,
                optional=True,
                advanced=True,
                tooltip=f"Multiplies the strength of the modules in the UNet's {level} part.",
            )

        return io.Schema(
            node_id="VCD_MotionModule",
            display_name="AnimateDiff Motion Module",
            category=f"{CATEGORY}/motion",
            description="Makes an SD 1.5 model draw the frames of a batch as one moving clip, with an AnimateDiff "
            "motion module (v1, v2, v3). Longer clips go through 'Context Windows (Manual)' behind it.",
            search_aliases=["animatediff", "motion module", "video", "magic me", "vcd", "motion lora"],
            inputs=[
                io.Model.Input("model", tooltip="An SD 1.5 model."),
                io.Combo.Input(
                    "motion_module",
                    options=model_files(FILES),
                    tooltip="A motion module for SD 1.5 in models/animatediff_models (v1, v2 or v3).",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How much the modules add. 1: as trained. 0: no motion, each frame on its own.",
                ),
                io.Combo.Input(
                    "beta_schedule",
                    options=list(SCHEDULES),
                    tooltip="The noise schedule. AnimateDiff was trained with linear betas; the model's own is "
                    "brighter and less steady. A ModelSamplingDiscrete node goes before this one.",
                ),
                io.Combo.Input(
                    "motion_lora",
                    options=[NO_LORA, *model_files(LORAS)],
                    default=NO_LORA,
                    optional=True,
                    tooltip="A camera move (v2_lora_*) in models/animatediff_motion_lora.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-2.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="How much of the motion LoRA is added. Negative values turn the move around.",
                ),
                scale("down"),
                scale("mid"),
                scale("up"),
                percent("start_percent", 0.0, "Where in the sampling the motion begins; 0: with the first step."),
                percent(
                    "end_percent",
                    1.0,
                    "Where in the sampling the motion ends. Below 1 the last steps draw each frame's details on their "
                    "own: sharper where a motion module blurs them, less steady where it does not.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def validate_inputs(cls, motion_module: str | None = None, motion_lora: str | None = None) -> bool | str:
        return refusal({FILES: motion_module, LORAS: motion_lora}, (NO_LORA,))

    @classmethod
    def execute(
        cls,
        model: Model,
        motion_module: str,
        strength: float,
        beta_schedule: str,
        motion_lora: str = NO_LORA,
        lora_strength: float = 1.0,
        down_scale: float = 1.0,
        mid_scale: float = 1.0,
        up_scale: float = 1.0,
        start_percent: float = 0.0,
        end_percent: float = 1.0,
    ) -> io.NodeOutput:
        motion = load(model, motion_module, motion_lora, lora_strength)
        scales: dict[Level, float] = {"down": down_scale, "mid": mid_scale, "up": up_scale}
        model = with_motion(model, motion, strength, scales, (start_percent, end_percent))
        return io.NodeOutput(with_beta_schedule(model, f"{KEY}_betas", SCHEDULES[beta_schedule]))


def load(model: Model, file: str, lora: str = NO_LORA, lora_strength: float = 1.0) -> MotionModel:
    """The motion modules of a chosen file, in the model's dtype, with a motion LoRA merged in."""
    kind = kind_of(model)
    if of_video(model):
        raise ValueError(
            f"AnimateDiff Motion Module makes SD 1.5, a model of still pictures, draw moving clips; this model "
            f"({kind}) is a video model, which moves by itself, and goes past this node."
        )
    if kind != "SD15":
        raise ValueError(f"The model is {kind}; motion modules are for SD 1.5. Load an SD 1.5 checkpoint.")
    state = core.read(model_file(FILES, file))
    core.inspect(state, file)
    if lora != NO_LORA:
        tensors = core.read(model_file(LORAS, lora))
        state = core.merge_lora(state, tensors, lora_strength, lora)
        if core.spatial_part(tensors):
            logging.warning("Of %s the half for motion is used here. Load it with 'Load LoRA' too for the other.", lora)
    ops, dtype = operations(model)
    return core.build(state, file, ops, dtype)


NODES: list[type[io.ComfyNode]] = [MotionModuleNode]
