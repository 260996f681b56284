"""Latents of several parts, video and sound: taken apart, put together, and the sound of some frames of a clip.

The host samples them packed, [B, 1, N], and tells the model their shapes in the conditionings (``latent_shapes``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.conds
import comfy.nested_tensor
import comfy.utils
import torch

from .model import Model, draws_sound, kind_of

PAYLOAD = "minimax_payload"  # what MiniMax H3 draws from, in one input
SHIFT_OF_SOUND = 0.01  # see :func:`with_clean_sound`


@dataclass(frozen=True)
class Parts:
    """The parts of a packed latent, of which the first is the video; a latent of one part is not packed."""

    shapes: Sequence[Sequence[int]]

    @classmethod
    def of(cls, conds: list[Any], x: torch.Tensor) -> Parts:
        """Those of a latent as the sampler holds it, told by its conditionings."""
        for entry in (entry for cond in conds for entry in cond or ()):
            shapes = entry.get("model_conds", {}).get("latent_shapes")
            if shapes is not None and len(shapes.cond) > 1:
                return cls(shapes.cond)
        return cls([x.shape])

    def apart(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The parts of ``x`` [B, 1, N], as views; what is not packed is one part."""
        if len(self.shapes) == 1 or x.ndim != 3:
            return [x]
        return comfy.utils.unpack_latents(x, self.shapes)

    def together(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """What :meth:`apart` took apart."""
        return parts[0] if len(parts) == 1 else comfy.utils.pack_latents(parts)[0]

    def with_sides(self, height: int, width: int) -> Parts:
        """The same with a video of another height and width; what a tile of it is."""
        return Parts([[*self.shapes[0][:-2], height, width], *self.shapes[1:]])

    @property
    def packed(self) -> list[int]:
        """The shape of the whole as the sampler holds it."""
        if len(self.shapes) == 1:
            return list(self.shapes[0])
        return [self.shapes[0][0], 1, sum(math.prod(shape[1:]) for shape in self.shapes)]

    def told(
        self, entries: list[dict[str, Any]] | None, cut: Callable[[torch.Tensor, str], torch.Tensor]
    ) -> list[dict[str, Any]] | None:
        """A conditioning as the sampler holds it that tells the model these shapes.

        Args:
            cut: ``cut(latent, name)`` gives a latent of the whole picture within these shapes.
        """
        if entries is None or len(self.shapes) == 1:
            return entries
        shapes = comfy.conds.CONDConstant([torch.Size(shape) for shape in self.shapes])
        return [{**entry, "model_conds": _told(entry["model_conds"], shapes, cut)} for entry in entries]


def _told(inputs: dict[str, Any], shapes: Any, cut: Callable[[torch.Tensor, str], torch.Tensor]) -> dict[str, Any]:
    inputs = {**inputs, "latent_shapes": shapes}
    if PAYLOAD in inputs and inputs[PAYLOAD].cond.get("keyframes"):
        # they lie on the grid of the video; its plan of the sequence the model makes anew for another size
        payload = inputs[PAYLOAD].cond
        keyframes = [{**frame, "latent": cut(frame["latent"], "minimax_keyframes")} for frame in payload["keyframes"]]
        latents = {"cond_video_latents": [frame["latent"] for frame in keyframes]} if not payload.get("refs") else {}
        inputs[PAYLOAD] = comfy.conds.CONDConstant({**payload, "keyframes": keyframes, **latents})
    return inputs


def with_sound(video: torch.Tensor, sound: torch.Tensor) -> tuple[Any, Any]:
    """A latent of both parts and the host's noise mask for it: the video is drawn, the sound stays as it is."""
    both = comfy.nested_tensor.NestedTensor([video, sound.to(video)])
    masks = [torch.ones_like(video[:, :1]), torch.zeros_like(both.tensors[1][:, :1])]
    return both, comfy.nested_tensor.NestedTensor(masks)


def video_of(latent: Any) -> torch.Tensor:
    """The video of a latent, or the latent that is one part."""
    return latent.unbind()[0] if latent.is_nested else latent


def with_clean_sound(model: Model) -> Model:
    """A clone that takes the sound it is shown for clean.

    LTX-2 is told so by the noise mask.  MiniMax H3 has no such input, but derives the sound's timestep from the video's
    with a shift that a node of the host's sets: the smaller it is, the less noise there is in the sound.  At 0.01 it is
    4 % at the first step of a denoise of 0.8 (and all of it at the first step of a denoise of 1); what the model
    predicts for the sound, which the mask throws away, then stays small enough for half precision.
    """
    if not hasattr(model.model.diffusion_model, "sigma_shift_audio"):
        return model
    model = model.clone()
    options = model.model_options.get("transformer_options", {})
    model.model_options["transformer_options"] = {**options, "minimax_h3_sigma_shift_audio": SHIFT_OF_SOUND}
    return model


def empty_sound(model: Model, frames: int, frame_rate: float = 25.0) -> torch.Tensor:
    """The host's empty sound for so many frames of video: [1, 8, T, 16] of LTX-2, [1, 32, 2, T] of MiniMax H3.

    LTX-2 counts as the host's empty latent does, which asks the audio VAE; the model knows the same numbers.

    Raises:
        ValueError: another model that draws sound.
    """
    unet = model.model.diffusion_model
    if hasattr(unet, "a_patchifier"):
        times = unet.a_patchifier
        a_second = times.sample_rate / times.hop_length / times.audio_latent_downsample_factor
        count = math.ceil(frames / frame_rate * a_second)
        return torch.zeros(1, unet.num_audio_channels, count, unet.audio_frequency_bins)
    if hasattr(unet, "audio_latents_dim"):
        from comfy_extras.nodes_minimax_h3 import EmptyMiniMaxH3LatentAV

        return EmptyMiniMaxH3LatentAV.execute(32, 32, frames).args[0]["samples"].unbind()[-1].cpu()
    raise ValueError(
        f"This model ({kind_of(model)}) draws sound in a latent that this stage does not know. Use LTX-2, MiniMax H3 "
        "or a model of video alone."
    )


def sound_axis(model: Model) -> int:
    """The axis of time of a model's sound."""
    return 2 if hasattr(model.model.diffusion_model, "a_patchifier") else 3


def check_sound(model: Model, sound: Any, frames: int, frame_rate: float = 25.0) -> None:
    """Raise ``ValueError`` for a LATENT that is not the sound of this model; None stands for none.

    One of another length than the clip's is told of in the log.
    """
    if not draws_sound(model):
        if sound is not None:
            raise ValueError(f"sound is connected, but this model ({kind_of(model)}) has none. Leave it unconnected.")
        return
    expected = list(empty_sound(model, frames, frame_rate).shape)
    if sound is None:
        return
    found, axis = list(samples_of(sound).shape), sound_axis(model)
    wanted = [*expected[:axis], found[axis] if len(found) == 4 else 0, *expected[axis + 1 :]]
    if found[1:] != wanted[1:]:
        raise ValueError(
            f"sound is a latent of shape {found}; this model ({kind_of(model)}) takes {expected}. Encode the clip's "
            "sound with the model's own audio VAE."
        )
    if abs(found[axis] - expected[axis]) > max(2, expected[axis] // 10):
        logging.warning(
            "The sound has %d latent frames, %d frames of video have about %d. It is taken for the whole clip's.",
            found[axis], frames, expected[axis],
        )  # fmt: skip


def samples_of(sound: Any) -> torch.Tensor:
    """The sound of a LATENT: its last part where it has several."""
    samples = sound["samples"]
    return samples.unbind()[-1] if samples.is_nested else samples


def sound_of(model: Model, sound: Any, first: int, after: int, frames: int, frame_rate: float = 25.0) -> torch.Tensor:
    """The sound of a clip's frames from ``first`` to the one before ``after``, of ``frames`` in all; silence for None.

    It is cut in proportion, outward where a frame's sound does not begin with a latent frame of its own.

    Example: of a clip of 10 frames with 25 latent frames of sound, frames 3 to 5 have latent frames 7 to 14.
    """
    if sound is None:
        return empty_sound(model, after - first, frame_rate)
    samples, axis = samples_of(sound)[:1], sound_axis(model)
    begin, end = (first * samples.shape[axis]) // frames, -(-after * samples.shape[axis] // frames)
    return samples.narrow(axis, begin, end - begin)


def frame_rate_of(conditioning: Any) -> float:
    """The frames a second that a conditioning names; 25, as LTX-2 takes it, where it names none."""
    return float(next((options["frame_rate"] for _, options in conditioning if "frame_rate" in options), 25.0))


def check_everywhere(conditioning: Any, name: str) -> None:
    """Raise ``ValueError`` for a prompt that holds in a part of the picture: the host knows no places in a packed
    latent."""
    for _, options in conditioning:
        if any(options.get(limit) is not None for limit in ("mask", "area")):
            raise ValueError(
                f"{name} holds in a part of the picture alone (a mask or an area), which a model that draws video and "
                "sound cannot take. Use a prompt for the whole picture."
            )
