"""The noise prior's four nodes: as a LATENT, as NOISE, on a MODEL, and as a picture (maths: vcd_core.noise)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from comfy_api.latest import io

from ..vcd_core import noise as core
from ..vcd_core import plots
from .host.latents import (
    check_latent,
    drawn_by_the_host,
    in_parts,
    latent_frames,
    parts_of,
    pictures_covered,
    shapes_of,
    video_part,
    without_values,
)
from .host.memory import handed_on
from .host.model import Latent, Model, of_video
from .host.noise import latent_that_starts_as, with_noise_prior
from .host.text import with_rows_held
from .host.ui import pictures_below, stop_if_asked
from .inputs import (
    CATEGORY,
    closed_loop_input,
    gamma_input,
    gamma_schedule_input,
    schedule_model_input,
    seed_input,
)

NOISE_CATEGORY = f"{CATEGORY}/noise"
ALIASES = ["3d gaussian noise", "magic me", "video custom diffusion", "vcd", "correlated noise"]


def gamma_of(gamma: float, schedule: str, frames: int, goes_on: bool = False, model: Model | None = None) -> core.Gamma:
    """The gamma of a clip of this many frames, or of so many of a longer one, from the two widgets.

    Args:
        model: the frames are latent frames of this video model, and a schedule counts the pictures that they cover.
    """
    if not schedule.strip():
        return gamma
    return core.parse_schedule(schedule, frames, goes_on, pictures_covered(model, frames) if model else None)


def check_gamma(gamma: float, schedule: str, closed_loop: bool) -> None:
    """Refuse at the node what can be refused before the number of frames is known."""
    core.check_gamma(gamma)
    if schedule.strip():
        if closed_loop:
            raise ValueError("A closed loop takes one gamma: clear gamma_schedule, or switch closed_loop off.")
        core.check_schedule(schedule)


class NoisePriorLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_NoisePriorLatent",
            display_name="3D Noise Prior Latent",
            category=NOISE_CATEGORY,
            description="Noise that drifts from frame to frame where other noise flickers, as a LATENT for "
            "KSamplerAdvanced with add_noise disabled. "
            "Connect the model and its sigmas, and the picture equals that of '3D Noise Prior' with the same seed. "
            "Without a model it is noise for SD 1.5: connect the model of any other kind. Flow models, as most video "
            "models are, start from noise of their own: use '3D Noise Prior' or 'Apply 3D Noise Prior' with them.",
            search_aliases=[*ALIASES, "MagicAlbum3DGaussianNoise"],
            inputs=[
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width of the video in pixels."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height in pixels."),
                io.Int.Input("frames", default=16, min=1, max=4096, tooltip="Number of frames of the clip."),
                gamma_input(),
                # fixed, so that a graph of the release, which takes this node in place of its own, keeps its seed
                seed_input(io.ControlAfterGenerate.fixed),
                io.Combo.Input(
                    "layout",
                    options=list(core.LAYOUTS),
                    default="comfy",
                    tooltip="comfy: with gamma 0 the noise that a KSampler draws for this seed. "
                    "magic-me: the noise of the Magic-Me release's node for this seed.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The noise takes the shape of this model's latents. With sigmas it is scaled to what the "
                    "model's sampler starts from.",
                ),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="The schedule that the sampler will use (BasicScheduler)."
                ),
                gamma_schedule_input(),
                closed_loop_input(),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The noise takes this latent's shape in place of width, height and frames. Models that "
                    "draw sound with the video (LTX-2) need it.",
                ),
            ],
            outputs=[io.Latent.Output(tooltip="Noise [frames, 4, height/8, width/8], or of the model's own shape.")],
        )

    @classmethod
    def execute(
        cls,
        width: int,
        height: int,
        frames: int,
        gamma: float,
        seed: int,
        layout: core.Layout,
        model: Model | None = None,
        sigmas: torch.Tensor | None = None,
        gamma_schedule: str = "",
        closed_loop: bool = False,
        latent: Latent | None = None,
    ) -> io.NodeOutput:
        check_gamma(gamma, gamma_schedule, closed_loop)
        if model is None and sigmas is not None:
            raise ValueError(
                "SIGMAS is connected without MODEL. Connect both to scale the noise to the sampler's start, or neither "
                "for noise of unit variance."
            )
        if latent is None:
            latent = {"samples": without_values(shapes_of(model, frames, height, width))}
        elif model is not None:
            check_latent(model, latent["samples"])
        noise = CorrelatedNoise(gamma, seed, layout, gamma_schedule, closed_loop, model).generate_noise(latent)
        parts = parts_of(noise)
        if sigmas is not None:
            parts = [latent_that_starts_as(model, sigmas, part) for part in parts]
        return io.NodeOutput({"samples": in_parts([handed_on(part) for part in parts])})


class CorrelatedNoise:
    """A NOISE object: ComfyUI asks it for the noise of the latent that is about to be sampled."""

    def __init__(
        self,
        gamma: float,
        seed: int,
        layout: core.Layout,
        gamma_schedule: str,
        closed_loop: bool,
        model: Model | None = None,
    ) -> None:
        self.seed = seed
        self.gamma, self.layout, self.gamma_schedule, self.closed_loop = gamma, layout, gamma_schedule, closed_loop
        self.model = model

    def generate_noise(self, input_latent: Latent) -> torch.Tensor:
        samples, batch_index = input_latent["samples"], input_latent.get("batch_index")
        if not samples.is_nested:
            return self._of_one(samples, batch_index)
        parts = parts_of(samples)
        video = video_part([part.shape for part in parts])
        drawn = drawn_by_the_host(parts, self.seed, batch_index)
        if self.layout == "comfy":  # wherever the video stands among the parts
            gamma = self._gamma(parts[video].shape[2])
            drawn[video] = core.correlate(drawn[video], gamma, 2, self.closed_loop)
        else:
            drawn[video] = self._of_one(parts[video], batch_index)
        return in_parts(drawn)

    def _of_one(self, samples: torch.Tensor, batch_index: Sequence[int] | None) -> torch.Tensor:
        """The noise of frames along the batch, or of a video latent."""
        if core.frame_dim(samples.ndim) == 0:
            frames = samples.shape[0] if batch_index is None else max(batch_index) + 1
            gamma = gamma_of(self.gamma, self.gamma_schedule, frames, goes_on=batch_index is not None)
        else:
            gamma = self._gamma(samples.shape[2])
        noise = core.sample(samples.shape, gamma, self.seed, self.layout, self.closed_loop, batch_index)
        return noise.to(samples.dtype)

    def _gamma(self, latent_frames: int) -> core.Gamma:
        """The gamma of a video latent of this many latent frames."""
        return gamma_of(self.gamma, self.gamma_schedule, latent_frames, model=self.model)


class NoisePrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_NoisePrior",
            display_name="3D Noise Prior",
            category=NOISE_CATEGORY,
            description="Noise that drifts from frame to frame where other noise flickers, for "
            "SamplerCustomAdvanced. It takes the place of RandomNoise and fits "
            "whatever latent is sampled, pictures along the batch or video latents; the sound of a video keeps "
            "RandomNoise's noise. FreeNoise of context windows shuffles its frames: with that, use 'Apply 3D Noise "
            "Prior'.",
            search_aliases=[*ALIASES, "random noise"],
            inputs=[
                gamma_input(),
                seed_input(),
                io.Combo.Input(
                    "layout",
                    options=list(core.LAYOUTS),
                    default="comfy",
                    tooltip="comfy: with gamma 0 equal to RandomNoise of this seed. "
                    "magic-me: the noise of the Magic-Me release's node for this seed.",
                ),
                gamma_schedule_input(),
                closed_loop_input(),
                schedule_model_input(),
            ],
            outputs=[io.Noise.Output()],
        )

    @classmethod
    def execute(
        cls,
        gamma: float,
        seed: int,
        layout: core.Layout,
        gamma_schedule: str = "",
        closed_loop: bool = False,
        model: Model | None = None,
    ) -> io.NodeOutput:
        check_gamma(gamma, gamma_schedule, closed_loop)
        return io.NodeOutput(CorrelatedNoise(gamma, seed, layout, gamma_schedule, closed_loop, model))


class ApplyNoisePrior(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_ApplyNoisePrior",
            display_name="Apply 3D Noise Prior",
            category=NOISE_CATEGORY,
            description="Makes clips steadier: any sampler that uses this model starts from correlated noise. It draws "
            "its own noise from "
            "its own seed, and the prior correlates it along time; so it does with what ancestral and SDE samplers "
            "add later. The sound of a video keeps its own. Nothing else in the graph changes. With FreeNoise, let the "
            "context windows share 4 frames or more and keep gamma at 0.5 or below.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with; with AnimateDiff, before or after it."),
                gamma_input(),
                gamma_schedule_input(),
                closed_loop_input(),
                io.Boolean.Input(
                    "each_step",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Ancestral and SDE samplers add new noise at each step: correlate that too. Off, it is "
                    "independent "
                    "between frames, and each step leaves less of the prior.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Model,
        gamma: float,
        gamma_schedule: str = "",
        closed_loop: bool = False,
        each_step: bool = True,
    ) -> io.NodeOutput:
        check_gamma(gamma, gamma_schedule, closed_loop)

        def correlate(noise: torch.Tensor, frames: list[int] | None) -> torch.Tensor:
            dim = core.frame_dim(noise.ndim)
            if frames is None:
                steps = gamma_of(gamma, gamma_schedule, noise.shape[dim], model=model if dim else None)
                return core.correlate(noise, steps, dim, closed_loop)
            if closed_loop:
                raise ValueError(core.PART_OF_A_LOOP)
            return core.correlate_picked(noise, gamma_of(gamma, gamma_schedule, max(frames) + 1, goes_on=True), frames)

        return io.NodeOutput(with_rows_held(with_noise_prior(model, correlate, each_step)))


class NoisePriorPreview(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_NoisePriorPreview",
            display_name="3D Noise Prior Preview",
            category=NOISE_CATEGORY,
            description="Shows what a gamma does: the covariance between frames as asked for and as measured on one "
            "draw, and the noise itself, frame by frame. With a video model connected: between its latent frames, and "
            "which frames each of them holds.",
            search_aliases=ALIASES,
            is_output_node=True,
            inputs=[
                io.Int.Input("frames", default=16, min=1, max=256, tooltip="Number of frames of the clip."),
                gamma_input(),
                seed_input(io.ControlAfterGenerate.fixed),
                gamma_schedule_input(),
                closed_loop_input(),
                schedule_model_input(),
            ],
            outputs=[
                io.Image.Output(display_name="figure", tooltip="Sigma, the measured covariance and a strip of frames."),
                io.Image.Output(display_name="noise", tooltip="The noise of each frame as a picture, for a video."),
            ],
        )

    @classmethod
    def execute(
        cls,
        frames: int,
        gamma: float,
        seed: int,
        gamma_schedule: str = "",
        closed_loop: bool = False,
        model: Model | None = None,
    ) -> io.NodeOutput:
        check_gamma(gamma, gamma_schedule, closed_loop)
        length, spans = f"{frames} frames", []
        if model is not None and not of_video(model):
            model = None
        if model is not None:
            count = latent_frames(model, frames)
            spans = core.picture_spans(pictures_covered(model, count))
            length, frames = f"{frames} frames are {count} latent frames of this model", count
        steps = gamma_of(gamma, gamma_schedule, frames, model=model)
        noise = core.sample((frames, 4, 64, 64), steps, seed, closed_loop=closed_loop)
        stop_if_asked()
        label = f"gamma {gamma:g}" if steps is gamma else f"gamma {gamma_schedule.strip()}"
        sigma, measured = core.covariance(frames, steps, closed_loop), core.measured_covariance(noise)
        figure = plots.noise_prior_figure(sigma, measured, noise, f"{label}, {length}", spans)
        stop_if_asked()
        pictures = handed_on(figure), handed_on(plots.noise_frames(noise, size=256))
        return io.NodeOutput(*pictures, ui=pictures_below(figure, cls))


NODES: list[type[io.ComfyNode]] = [NoisePriorLatent, NoisePrior, ApplyNoisePrior, NoisePriorPreview]

REPLACEMENTS = [
    io.NodeReplace(
        new_node_id="VCD_NoisePriorLatent",
        old_node_id="MagicAlbum3DGaussianNoise",
        # saved graphs hold widget values by position; the page puts its own widget behind every seed
        old_widget_ids=["width", "height", "batch_size", "seed", "control_after_generate", "cov_factor"],
        input_mapping=[
            {"new_id": "width", "old_id": "width"},
            {"new_id": "height", "old_id": "height"},
            {"new_id": "frames", "old_id": "batch_size"},
            {"new_id": "gamma", "old_id": "cov_factor"},
            {"new_id": "seed", "old_id": "seed"},
            {"new_id": "layout", "set_value": "magic-me"},
        ],
        output_mapping=[{"new_idx": 0, "old_idx": 0}],
    )
]
