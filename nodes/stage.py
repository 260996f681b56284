"""What Face VCD and Tiled VCD share: drawing the last part of a clip anew from correlated noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..vcd_core import noise as prior
from ..vcd_core.frames import broken_frames, check_finite, named
from .host.model import Model, check_fits, draws_sound, of_video, patch_of
from .host.nested import check_everywhere, check_sound, frame_rate_of, sound_of
from .host.noise import with_noise_prior
from .host.pictures import Codec, check_vae
from .host.references import before_clip
from .host.rules import check_conditioning
from .host.sampling import Sampling, noise_share, sample
from .host.strength import to_cells, with_strength
from .host.ui import Progress


class NotFinite(ValueError):
    """What was drawn is not finite: the message says why, ``frames`` which, and ``drawn`` has the others, if there are
    any."""

    def __init__(self, message: str, drawn: torch.Tensor | None = None, frames: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.drawn, self.frames = drawn, list(frames)

    def over(self, images: torch.Tensor) -> torch.Tensor:
        """The frames that were drawn well, over ``images`` where one was not."""
        if self.drawn is None:
            return images
        self.drawn[self.frames] = images[self.frames].to(self.drawn)
        return self.drawn


@dataclass(frozen=True)
class Stage:
    """How a stage draws: the model with its VAE, a sampler's settings, the gamma of its noise, and for a model that
    draws sound too the LATENT of the clip's (None: silence), which stays as it is."""

    model: Model
    vae: Any
    settings: Sampling
    gamma: float
    sound: Any = None

    def check(self, images: torch.Tensor, **conditionings: Any) -> None:
        """Raise ``ValueError`` for what cannot draw these frames anew; None stands for what is not connected."""
        prior.check_gamma(self.gamma)
        check_vae(self.vae)
        check_fits(self.model, self.vae)
        check_finite(images)
        for name, conditioning in conditionings.items():
            if conditioning is not None:
                check_conditioning(conditioning, len(images), name, of_video(self.model))
                if draws_sound(self.model):
                    check_everywhere(conditioning, name)
        entries = [entry for conditioning in conditionings.values() for entry in conditioning or ()]
        before_clip(self.vae, entries, len(images))
        check_sound(self.model, self.sound, len(images), frame_rate_of(conditionings["positive"]))

    def refine(
        self,
        images: torch.Tensor,
        positive: Any,
        negative: Any,
        progress: Progress,
        patch: Callable[[Model, Callable[[float], None]], Model] = lambda model, on_call: model,
        of: tuple[int, int] | None = None,
        strength: torch.Tensor | None = None,
        unsampled: Callable[[torch.Tensor], object] | None = None,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw the last part of ``images`` [F, H, W, 3] anew; their sides need not be multiples of the VAE's cell.

        The stage's gamma takes the place of a noise prior on the model.

        Args:
            patch: ``patch(model, on_call)`` prepares the model and calls ``on_call`` with the share of a step that is
                done.
            of: which of the clip's frames these are: the first's number, and how many the clip has; None: they are the
                clip.
            strength: [F, H, W] how much of the denoise each place gets, 0 to 1; None: all of it everywhere.
            unsampled: is called with ``images`` through the VAE and back, before anything is drawn.
            wanted: [F] bool, the frames that are decoded, where a VAE decodes each by itself; the others come back as
                they were. None: all.
        """
        if self.settings.denoise == 0:
            return images
        frames, height, width = images.shape[:3]
        codec = Codec(self.vae, frames, height, width, patch_of(self.model))
        latent = codec.encode(images, progress)
        if unsampled is not None:
            unsampled(_decoded(codec, latent, images, wanted, progress))
        before = before_clip(self.vae, [*positive, *negative], frames)
        if before is not None:
            latent = torch.cat([before.to(latent), latent], 2)
        beside = 0 if before is None else before.shape[2]
        cells = None if strength is None else self._cells(strength, latent, beside, codec)
        noise = prior.sample(latent.shape, 0.0, self.settings.seed)
        sound = self._sound(frames, of, positive)
        start, steps_done, steps = progress.done, [0], self.settings.steps

        def on_call(share: float) -> None:
            progress.move_to(start + frames * (steps_done[0] + share))
            progress.tell(f"step {min(steps_done[0] + 1, steps)} of {steps}" + (f" ({share:.0%})" if share else ""))

        def on_step(step: int, preview: Any) -> None:
            steps_done[0], progress.preview = step + 1, preview
            on_call(0.0)

        def correlate(noise: torch.Tensor, picked: list[int] | None) -> torch.Tensor:
            dim = prior.frame_dim(noise.ndim)
            first, clip = noise.split([beside, noise.shape[dim] - beside], dim)
            return torch.cat([first, prior.correlate(clip, self.gamma, dim)], dim)

        on_call(0.0)
        model = self.model if cells is None else with_strength(self.model, cells, self.settings)
        model, source = with_noise_prior(model, correlate, each_step=True), latent
        latent = sample(patch(model, on_call), noise, positive, negative, latent, self.settings, on_step, sound)
        if not torch.isfinite(latent).all():
            raise NotFinite("The sampler returned NaN. Try another sampler, a lower cfg, or --force-fp32.")
        if cells is not None:
            latent = torch.where(cells.to(latent) > 0, latent, source.to(latent))  # to the bit
        drawn = _decoded(codec, latent[:, :, beside:] if beside else latent, images, wanted, progress)
        if broken := broken_frames(drawn):
            raise NotFinite(f"The VAE decoded {named(broken)} to NaN. Start ComfyUI with --fp32-vae.", drawn, broken)
        return drawn

    def _cells(self, strength: torch.Tensor, latent: torch.Tensor, beside: int, codec: Codec) -> torch.Tensor:
        """The strength of a latent's cells; reference pictures, the first ``beside`` latent frames, get all of it."""
        shape = list(latent.shape)
        shape[2] -= beside
        cells = to_cells(self.model, strength, codec.taken[0], shape, codec.cell)
        return torch.cat([cells.new_ones(1, 1, beside, *shape[3:]), cells], 2) if beside else cells

    def begin(self) -> str:
        """What the stage starts from, for the artist; empty where nothing is drawn."""
        if self.settings.denoise == 0:
            return ""
        sigma = float(self.settings.sigmas(self.model)[0])
        return f"Drawn from sigma {sigma:.3g}, {noise_share(self.model, sigma):.0%} noise."

    def _sound(self, frames: int, of: tuple[int, int] | None, positive: Any) -> torch.Tensor | None:
        """The sound of these frames; None for a model that draws none."""
        if not draws_sound(self.model):
            return None
        first, clip = of or (0, frames)
        return sound_of(self.model, self.sound, first, first + frames, clip, frame_rate_of(positive))


def _decoded(
    codec: Codec, latent: torch.Tensor, images: torch.Tensor, wanted: torch.Tensor | None, progress: Progress
) -> torch.Tensor:
    """The frames of a latent; where pictures are decoded one by one, of those that nobody wants ``images``."""
    if wanted is None or wanted.all() or latent.ndim == 5:
        return codec.decode(latent, progress)
    out = images.clone()
    if wanted.any():
        out[wanted] = codec.decode(latent[wanted.to(latent.device)], progress)
    progress.advance(int((~wanted).sum()))
    return out
