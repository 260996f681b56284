"""Train an identity from a few pictures (vcd_core.training)."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io

from ..vcd_core import __version__, files
from ..vcd_core import training as core
from ..vcd_core.identity import KINDS, TOKENS, IdTokens
from ..vcd_core.pictures import FITS, prepare
from ..vcd_core.plots import loss_curve
from .host.files import output_folder, refused
from .host.gradients import gradients, recomputed
from .host.learned import ContextModel, TokenModel, backend_of
from .host.memory import handed_on
from .host.model import Model, kind_of
from .host.sampling import sample
from .host.text import text_widths
from .host.ui import Progress, pictures_below, preview_picture, stop_if_asked, ui_text
from .identity import ALIASES, IDENTITY_CATEGORY, Identity, encode_prompt
from .inputs import IdType, seed_input

LossMap = io.Custom("LOSS_MAP")
STATES = "vcd_training"
TRAINER_ALIASES = ["train", "training", "textual inversion", "dreambooth", "train embedding", "train lora"]
KIND = (
    "tokens: the text encoder reads them, as in the paper, and ComfyUI's own embedding:name takes the file. context "
    "vectors: they stand beside what the encoder gives; only VCD ID Text Encode takes them. On the tiny model, with a "
    "learning_rate of 0.02, they carry more of the subject."
)

KNOWN_LEVELS = (
    "The lowest noise level to learn at, of 0 (clean) to 1 (noise). For a model that was trained at some levels alone: "
    "Wan 2.2 14B's low noise 0 to 0.875 (image to video: 0.9), its high noise from there to 1. Others: 0 to 1."
)


def _level(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.005, optional=True, advanced=True, tooltip=tooltip
    )


def _refuse_no_mask(pictures: list[torch.Tensor], areas: list[torch.Tensor] | None) -> None:
    """Raise for the black 64x64 mask that Load Image gives with a picture without transparency."""
    for number, (picture, area) in enumerate(zip(pictures, areas or [], strict=False)):
        if area.shape == (64, 64) != picture.shape[:2] and not area.any():
            raise ValueError(
                f"The mask of picture {number} is the empty one that Load Image gives with a picture without "
                "transparency. Leave masks unconnected, or mask the subject: Prompt to Segmentation, or Load "
                "Image's mask editor."
            )


class IdTrainer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_IdTrainer",
            display_name="VCD ID Trainer",
            category=IDENTITY_CATEGORY,
            description="Learns an identity from a few masked pictures, with the model frozen: tokens of some "
            "kilobytes, or context vectors, that carry the subject into its prompts (Magic-Me's ID module). For models "
            "of pictures and of video: SD 1.5, SDXL, Flux, Wan, LTX, Hunyuan, H3.",
            search_aliases=[*TRAINER_ALIASES, *ALIASES],
            is_input_list=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the identity is for, or its base: SD 1.5, SDXL, Flux, Wan ...; without "
                    "motion module.",
                ),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input(
                    "images", tooltip="Three to ten pictures of the subject; sizes may differ. Or clips: clip_frames."
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="The subject in white, one mask for every picture and frame, so that the background is not "
                    "learned. Without: the pictures' alpha channel, or all of the picture.",
                ),
                io.String.Input(
                    "name",
                    default="my_id",
                    tooltip="The identity's name. The training's state is kept in output/vcd_training under it.",
                ),
                io.String.Input(
                    "class_word", default="man", tooltip="What it is: man, woman, dog, car. Goes behind the tokens."
                ),
                io.Int.Input(
                    "tokens",
                    default=4,
                    min=1,
                    max=core.MOST_TOKENS,
                    tooltip="How many tokens carry the identity. The paper uses 4.",
                    advanced=True,
                ),
                io.Int.Input(
                    "steps",
                    default=200,
                    min=1,
                    max=100000,
                    tooltip="Training steps. The paper uses 200, its release 400.",
                ),
                io.Int.Input("batch", default=4, min=1, max=64, tooltip="Pictures in a step.", advanced=True),
                io.Float.Input(
                    "learning_rate",
                    default=1e-3,
                    min=1e-6,
                    max=1.0,
                    step=1e-6,
                    round=1e-6,
                    tooltip="How far the vectors move in a step. Tokens: 0.001, as in the paper. Context "
                    "vectors: 0.02. Text encoders whose numbers are larger than CLIP's move as much further.",
                    advanced=True,
                ),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=1024,
                    step=8,
                    tooltip="The side of training pictures, what the model draws best: SD 1.5 512, SDXL 1024. Less "
                    "needs less memory.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    tooltip="A square around the mask, or the whole picture at its own aspect.",
                    advanced=True,
                ),
                io.String.Input(
                    "template",
                    default="photo of a V*",
                    tooltip="The caption; V* is the tokens and the class word.",
                    advanced=True,
                ),
                io.Int.Input(
                    "sample_every",
                    default=50,
                    min=0,
                    max=100000,
                    tooltip="Draw a picture with the tokens every so many steps, and at the end. 0: at the end only.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    tooltip="Go on where a training of this name was stopped, or with more steps. Off: begin anew.",
                ),
                seed_input(control=io.ControlAfterGenerate.fixed),
                io.String.Input(
                    "initial_words",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Words, or embedding:name, that the tokens start from. Empty: the class word.",
                ),
                io.Float.Input(
                    "unmasked",
                    default=0.05,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How often the whole picture is learned from, background included. 0: never. 1: always, "
                    "as without masks.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Noise shared by a whole picture: lets brightness be learned.",
                ),
                io.Boolean.Input(
                    "augment",
                    default=True,
                    optional=True,
                    advanced=True,
                    tooltip="Flip, turn and scale pictures (not under 96 pixels), with captions that say so ('far "
                    "away', 'close up').",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Pulls the tokens towards zero at each step. 0: not at all.",
                ),
                io.Boolean.Input(
                    "clamp_norm",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Keep tokens no longer than the vocabulary's mean, so that they do not drown other words.",
                ),
                io.Boolean.Input(
                    "checkpointing",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Compute layers again instead of keeping them: less memory, about a third more time, the "
                    "same result.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default=KINDS[0],
                    optional=True,
                    tooltip=KIND,
                ),
                io.Int.Input(
                    "clip_frames",
                    default=1,
                    min=1,
                    max=257,
                    optional=True,
                    advanced=True,
                    tooltip="Video models: how many frames of a clip a step sees together, such as 9 or 17. An IMAGE "
                    "of fewer frames is pictures. 1: every frame is a picture.",
                ),
                _level("noise_from", 0.0, KNOWN_LEVELS),
                _level("noise_to", 1.0, "The highest noise level to learn at, see noise_from."),
            ],
            outputs=[
                IdType.Output(display_name="id"),
                LossMap.Output(display_name="loss", tooltip="For ComfyUI's Plot Loss Graph."),
                io.Image.Output(display_name="images", tooltip="The samples, the last at the end of the training."),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: Sequence[str | None] = (None,)) -> bool | str:
        return refused(name[0], state_path)

    @classmethod
    def execute(
        cls,
        model: list[Model],
        clip: list[Any],
        vae: list[Any],
        images: list[torch.Tensor],
        name: list[str],
        class_word: list[str],
        tokens: list[int],
        steps: list[int],
        batch: list[int],
        learning_rate: list[float],
        size: list[int],
        fit: list[str],
        template: list[str],
        sample_every: list[int],
        resume: list[bool],
        seed: list[int],
        masks: list[torch.Tensor] | None = None,
        initial_words: Sequence[str] = ("",),
        unmasked: Sequence[float] = (0.05,),
        noise_offset: Sequence[float] = (0.1,),
        augment: Sequence[bool] = (True,),
        weight_decay: Sequence[float] = (0.0,),
        clamp_norm: Sequence[bool] = (False,),
        checkpointing: Sequence[bool] = (False,),
        kind: Sequence[str] = (TOKENS,),
        clip_frames: Sequence[int] = (1,),
        noise_from: Sequence[float] = (0.0,),
        noise_to: Sequence[float] = (1.0,),
    ) -> io.NodeOutput:
        for what, found in (("MODEL", model), ("CLIP", clip), ("VAE", vae)):
            if found[0] is None:
                raise ValueError(f"{what} is missing: the checkpoint holds none. Load it with its own loader.")
        settings = core.Settings(
            class_word=class_word[0], tokens=tokens[0], steps=steps[0], batch=batch[0], learning_rate=learning_rate[0],
            size=size[0], fit=fit[0], template=template[0], initial_words=initial_words[0], unmasked=unmasked[0],
            noise_offset=noise_offset[0], augment=augment[0], weight_decay=weight_decay[0], clamp_norm=clamp_norm[0],
            seed=seed[0], kind=kind[0], frames=clip_frames[0], noise_from=noise_from[0], noise_to=noise_to[0],
        )  # fmt: skip
        settings.check()
        state = state_path(name[0])
        with gradients():
            pictures, areas = ready(images, masks, settings)
            backend = backend_of(settings.kind)(model[0], clip[0], vae[0], settings.class_word)
            show = _Show(backend, settings, sample_every[0])
            with recomputed(backend.model) if checkpointing[0] else contextlib.nullcontext():
                report = core.train(backend, pictures, areas, settings, state, resume[0], on_step=show)
            if show.sampled != settings.steps:
                show.sample(report.vectors, settings.steps)
        about = _provenance(backend, settings, pictures)
        learned = IdTokens(Path(name[0]).name, backend.as_saved(report.vectors), about, settings.kind)
        samples = torch.cat(show.samples)
        shown = {**pictures_below(samples, cls), **ui_text(said(report.losses, learned))}
        identity = Identity(learned, settings.class_word.strip(), picture=samples[-1])
        return io.NodeOutput(identity, {"loss": report.losses}, handed_on(samples), ui=shown)


def state_path(name: str) -> Path:
    """Where the state of a training of this name is kept."""
    return files.free_path(output_folder(STATES), name, overwrite=True)


def ready(
    images: list[torch.Tensor], masks: list[torch.Tensor] | None, settings: core.Settings
) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """The pictures and masks one by one, those of a clip together; unusable ones are refused here, before a model is
    loaded."""
    pictures = [picture.float().cpu().clone() for batch in images for picture in batch]
    areas = None if masks is None else [mask.float().cpu().clone() for batch in masks for mask in batch]
    _refuse_no_mask(pictures, areas)
    if settings.frames > 1:
        lengths = [length for batch in images for length in _lengths(len(batch), settings.frames)]
        if areas is not None and len(areas) == len(pictures):
            areas = _together(areas, lengths)
        pictures = _together(pictures, lengths)
    prepare(pictures, areas, settings.size, settings.fit)
    return pictures, areas


def _lengths(frames: int, together: int) -> list[int]:
    """How many frames of an IMAGE are in each picture or clip of it."""
    return [frames] if frames >= together else [1] * frames


def _together(frames: list[torch.Tensor], lengths: list[int]) -> list[torch.Tensor]:
    """Frames as clips of these lengths; a clip of one is a picture."""
    rest = iter(frames)
    return [next(rest) if length == 1 else torch.stack([next(rest) for _ in range(length)]) for length in lengths]


def said(losses: list[float], tokens: IdTokens) -> str:
    """What the node says after it has run."""
    first, last = _mean(losses[:20]), _mean(losses[-20:])
    return f"{len(losses)} steps, loss {first:.4f} at first, {last:.4f} at the end; {tokens.describe()}"


class _Show:
    """The progress bar and the samples of a training; called after each step."""

    def __init__(self, backend: TokenModel | ContextModel, settings: core.Settings, every: int) -> None:
        self.backend, self.settings, self.every = backend, settings, every
        self.progress = Progress(settings.steps)
        self.samples: list[torch.Tensor] = []
        self.sampled = -1

    def __call__(self, training: core.Training) -> None:
        if self.every and training.step % self.every == 0:
            self.sample(training.vectors.detach(), training.step)
        if self.progress.due:
            sample = self.samples[-1] if self.samples else None
            curve = loss_curve(training.losses, self.settings.steps, sample=sample)
            self.progress.preview = preview_picture(curve)
        self.progress.move_to(training.step)
        self.progress.tell(f"step {training.step} of {self.settings.steps}")

    def sample(self, vectors: torch.Tensor, step: int) -> None:
        """Draw one picture of the identity as its template says; the same noise each time."""
        backend, settings = self.backend, self.settings
        learned = IdTokens("id", backend.as_saved(vectors.clone()), kind=settings.kind)
        identity = Identity(learned, settings.class_word)
        with torch.no_grad():
            positive, negative = (encode_prompt(backend.clip, t, {"id": identity}) for t in (settings.template, ""))
            shape = backend.encode(torch.zeros(1, 3, settings.size, settings.size)).shape
            noise = torch.randn(shape, generator=core.generator(settings.seed, "sample"))
            latent = sample(
                backend.model, noise, positive, negative, torch.zeros(shape), backend.sampling(settings.seed),
                lambda *_: stop_if_asked(), backend.sound(),
            )  # fmt: skip
            self.samples.append(backend.decode(latent))
        backend.load()
        self.sampled = step


def _provenance(
    backend: TokenModel | ContextModel, settings: core.Settings, pictures: list[torch.Tensor]
) -> dict[str, str]:
    clips = [len(picture) for picture in pictures if picture.ndim == 4]
    seen = {"clips": f"{len(clips)}, of {sum(clips)} frames, {settings.frames} together"} if clips else {}
    return {
        "class_word": settings.class_word.strip(),
        "base_model": f"{kind_of(backend.model)} {backend.identity}",
        "text_encoders": ", ".join(text_widths(backend.clip)),
        "steps": str(settings.steps),
        "learning_rate": f"{settings.learning_rate:g}",
        "seed": str(settings.seed),
        "pictures": str(len(pictures) - len(clips)),
        **seen,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "version": f"video custom diffusion {__version__}",
    }


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


NODES: list[type[io.ComfyNode]] = [IdTrainer]
