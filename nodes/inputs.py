"""What the pack's nodes share in their schemas: categories and inputs that mean the same thing everywhere."""

from __future__ import annotations

from comfy_api.latest import io

from .host.sampling import SAMPLER_NAMES, SCHEDULER_NAMES

CATEGORY = "video custom diffusion"

GAMMA_TOOLTIP = (
    "How strongly the noise of neighbouring frames is correlated. 0: independent frames, as without the prior. "
    "0.1: the paper's value. 0.2: almost still. 1: one noise for all frames."
)


IdType = io.Custom("VCD_ID")
FacesType = io.Custom("VCD_FACES")
CropType = io.Custom("VCD_CROP")
BoxesType = io.Custom("BOUNDING_BOX")
InterpolationType = io.Custom("INTERP_MODEL")


def gamma_input(default: float = 0.1, advanced: bool = False) -> io.Float.Input:
    return io.Float.Input(
        "gamma", default=default, min=0.0, max=1.0, step=0.01, tooltip=GAMMA_TOOLTIP, advanced=advanced
    )


def gamma_schedule_input() -> io.String.Input:
    return io.String.Input(
        "gamma_schedule",
        default="",
        optional=True,
        tooltip="Leave empty to use gamma for the whole clip. Otherwise keyframes by frame number, '0: 0.05, 8: 0.3', "
        "or one value for each transition, '0.1, 0.1, 0.3'. Keyframes fit any clip: gamma is linear between them "
        "and held before the first and after the last. One beyond the clip's end counts too. Video models count the "
        "clip's frames too; their latent frames count where no model is connected, or it does not tell how many "
        "frames each holds.",
        advanced=True,
    )


def schedule_model_input() -> io.Model.Input:
    return io.Model.Input(
        "model",
        optional=True,
        tooltip="Connect it for video models, so that a schedule counts frames and not latent frames.",
    )


def closed_loop_input() -> io.Boolean.Input:
    return io.Boolean.Input(
        "closed_loop",
        default=False,
        optional=True,
        tooltip="Correlate the last frame with the first too, for clips that repeat. The latent must "
        "hold the whole clip.",
        advanced=True,
    )


def seed_input(control: bool | io.ControlAfterGenerate = True) -> io.Int.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=control,
        tooltip="The seed of the noise: the same seed gives the same bits.",
    )


def sampling_inputs(steps: int, cfg: float, denoise: float) -> list[io.Input]:
    """A KSampler's widgets with a stage's defaults."""
    return [
        io.Int.Input("steps", default=steps, min=1, max=10000, tooltip="Denoising steps."),
        io.Float.Input(
            "cfg", default=cfg, min=0.0, max=100.0, step=0.1, tooltip="How strictly the prompt is followed."
        ),
        io.Combo.Input(
            "sampler_name", options=SAMPLER_NAMES, default="euler", tooltip="How noise is removed in a step."
        ),
        io.Combo.Input(
            "scheduler", options=SCHEDULER_NAMES, default="normal", tooltip="At which noise levels the steps are taken."
        ),
        io.Float.Input(
            "denoise",
            default=denoise,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="How much is drawn anew: 0 keeps the frames, 1 ignores them.",
        ),
    ]


STEPS, NOISE = "steps", "noise"


def denoise_by_input() -> io.Combo.Input:
    return io.Combo.Input(
        "denoise_by",
        options=[STEPS, NOISE],
        default=STEPS,
        optional=True,
        advanced=True,
        tooltip="What denoise is a share of. steps: as in a KSampler, where video models start from more noise than "
        "SD 1.5. noise: of the noise that is added, the same on every model. The node says where it started.",
    )


def sound_input() -> io.Latent.Input:
    return io.Latent.Input(
        "sound",
        optional=True,
        tooltip="For LTX-2 and MiniMax H3: the clip's sound, encoded by the model's audio VAE; without it the model "
        "hears silence.",
    )
