"""MODEL, CLIP and VAE as what an identity is trained for: the backends of vcd_core.training over ComfyUI."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import comfy.model_management
import torch

from ...vcd_core import identity
from . import gradients as grads
from .estimate import Entry, estimate
from .latents import pictures_covered
from .model import Model, check_fits, draws_sound, kind_of, latent_cell, patch_of, predicts
from .nested import empty_sound
from .pictures import cell_of, check_vae, frames_taken, latents_of, of_video
from .sampling import Sampling
from .text import text_widths

PREDICTIONS = {"eps": "eps", "v": "v", "CONST": "flow"}  # by the host's names


def check(model: Model, vae: Any) -> None:
    """Raise ``ValueError`` for what no identity can be trained on; the message says what to take."""
    if predicts(model) not in PREDICTIONS:
        raise ValueError(
            f"This model ({kind_of(model)}) predicts {predicts(model)}; identities are trained on models that predict "
            "noise (eps), v or a flow (CONST). Take the model without a node that tells it to sample otherwise."
        )
    if model.injections:
        raise ValueError(
            "Layers were added to this MODEL (a motion module?); an identity is learned from single pictures. "
            "Connect the model as it is before 'AnimateDiff Motion Module'."
        )
    if getattr(model.model, "concat_keys", ()):
        raise ValueError(
            f"This model ({kind_of(model)}) is shown pictures beside what it draws: one for inpainting or the like. "
            "Train on the model that draws from text alone."
        )
    check_vae(vae)
    check_fits(model, vae)


def of_clip_alone(clip: Any) -> bool:
    """Whether all of a CLIP's text encoders are of the CLIP family (SD 1.5, SD 2, SDXL)."""
    return all(name.startswith("clip") for name in text_widths(clip))


class TrainingModel:
    """A frozen MODEL, CLIP and VAE that vectors are trained for; to be made and used inside
    :func:`~.gradients.gradients`.

    Where the vectors stand, the classes say that derive from it.
    """

    MARK = "vcd_id_in_training"

    def __init__(self, model: Model, clip: Any, vae: Any, class_word: str) -> None:
        check(model, vae)
        self.prediction = PREDICTIONS[predicts(model)]
        self.model, self.clip, self.vae = grads.always_loaded(model), grads.clip_always_loaded(clip), vae
        self.patchers = [self.model, self.clip.patcher]  # what gradients flow through
        self.class_word, self.cell = class_word, latent_cell(model)
        self.sides = math.lcm(cell_of(vae), self.cell * patch_of(model))
        self.load()
        self.sigmas = self.model.model.model_sampling.sigmas.detach().clone().cpu()
        self.identity = self._identity()

    def _identity(self) -> str:
        """A digest of a few numbers of every weight, in half precision, so that it does not depend on the dtype."""
        digest = hashlib.sha256(repr((self.clip.layer_idx, self.prediction)).encode())
        digest.update(self.sigmas.numpy().tobytes())
        for part in (self.model.model, self.clip.cond_stage_model, self.vae.first_stage_model):
            for name, value in sorted(part.state_dict().items()):
                flat = value.detach().flatten()
                sample = flat[:: max(1, flat.numel() // 4)][:4].half().cpu().contiguous()
                digest.update(name.encode() + sample.numpy().tobytes())
        for key, patches in sorted(self.model.patches.items(), key=str):  # of weights that are not loaded
            digest.update(repr((key, [patch[0] for patch in patches])).encode())
        return digest.hexdigest()[:16]

    def load(self, latents: Sequence[int] | None = None) -> None:
        """Load what gradients flow through, with room for latents of this shape."""
        room = 0 if latents is None else 3 * self.model.memory_required(list(latents))
        comfy.model_management.load_models_gpu(self.patchers, memory_required=room)
        for patcher in self.patchers:
            grads.allow_gradients(patcher.model)

    @contextlib.contextmanager
    def differentiating(self) -> Iterator[None]:
        through_clip = self.clip.patcher in self.patchers
        with contextlib.ExitStack() as stack, grads.frozen(self.model):
            if grads.changes_in_place(self.model) or (through_clip and not of_clip_alone(self.clip)):
                stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
            elif through_clip:
                stack.enter_context(grads.norms_of_copies(self.clip.cond_stage_model))
            yield

    def written(self, caption: str) -> str:
        """A caption in which the identity in training is named as prompts name embeddings."""
        return identity.insert(caption, {self.MARK: f"embedding:{self.MARK}"}, {self.MARK: self.class_word})

    def entry(self, tokens: Any) -> Entry:
        """What the text encoders give for a prompt."""
        found = dict(self.clip.encode_from_tokens(tokens, return_dict=True))
        return found.pop("cond"), found

    def covered(self, frames: int) -> list[int]:
        if frames > 1 and not of_video(self.vae):
            raise ValueError(
                f"clip_frames is {frames}, and this model ({kind_of(self.model)}) draws pictures. Set it to 1: every "
                "frame of a clip is a picture then. Video models learn from clips."
            )
        if frames_taken(self.vae, frames) != frames:
            below = next(n for n in range(frames - 1, 0, -1) if frames_taken(self.vae, n) == n)
            raise ValueError(
                f"clip_frames is {frames}; this model ({kind_of(self.model)}) takes clips of other lengths, the "
                f"nearest are {below} and {frames_taken(self.vae, frames)}."
            )
        return pictures_covered(self.model, latents_of(self.vae, frames))

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():  # without it the host's fallback to tiles fails
            latent = self.vae.encode(frames.movedim(1, -1))  # a video VAE takes a batch for a clip
            found = self.model.model.process_latent_in(latent).float().cpu()
        return found.clone()  # gradients take no tensor of inference mode

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """A sampler's latents of one picture to IMAGE [1, H, W, 3]."""
        with torch.inference_mode():
            images = self.vae.decode(latents)
        return images.reshape(-1, *images.shape[-3:])[:1].float().cpu().clone()

    def sound(self) -> torch.Tensor | None:
        """The silence that a model which draws sound hears beside one picture."""
        return empty_sound(self.model, 1) if draws_sound(self.model) else None

    def denoise(self, noised: torch.Tensor, sigma: torch.Tensor, told: Sequence[Entry]) -> torch.Tensor:
        self.load(noised.shape)  # encoding text or pictures may have unloaded it
        device = self.model.load_device
        return estimate(self.model, noised.to(device), sigma.to(device), told).cpu()

    def try_out(self) -> None:
        """Raise ``ValueError`` unless the model takes what the text encoders give."""
        with torch.no_grad():
            told = self.entry(self.clip.tokenize(""))
            smallest = self.encode(torch.zeros(1, 3, max(64, self.sides), max(64, self.sides)))
            try:
                self.denoise(smallest, self.sigmas[-1:], [told])
            except comfy.model_management.OOM_EXCEPTION:
                raise
            except (RuntimeError, TypeError, AttributeError, ValueError, LookupError) as error:
                raise ValueError(
                    f"MODEL and CLIP do not fit: this model ({kind_of(self.model)}) cannot be told what this CLIP "
                    f"({', '.join(text_widths(self.clip))}) gives, {told[0].shape[-1]} wide: {error}. Take both from "
                    "one checkpoint, or load the text encoder that the model is made for."
                ) from error

    def sampling(self, seed: int) -> Sampling:
        """How a sample is drawn: SD's usual settings, or those for flows; without guidance where the model has learned
        its own."""
        if self.prediction != "flow":
            return Sampling(20, 7.0, "euler", "normal", 1.0, seed)
        guided = self.model.model.model_config.unet_config.get("guidance_embed")
        return Sampling(20, 1.0 if guided else 5.0, "euler", "simple", 1.0, seed)
