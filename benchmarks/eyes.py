"""Whether both eyes of a close-up are there: a generated person who lost one still looks like a face to a detector.

The face detector says where eyes belong; an eye is there when that place is not plain skin.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from vcd_core.face import detect as yunet
from vcd_core.tiny import world

CONTRAST = 0.12  # the least standard deviation of the light in an eye's place; skin has less, drawn eyes more
FACE = 0.3  # the least score of a face whose eyes are looked for


def shown(clip: world.Take) -> bool:
    """Whether a clip's eyes are large enough to be judged, and not behind dark glass."""
    return clip.framing == "close-up" and clip.people[0].glasses != "sunglasses"


def both(images: torch.Tensor) -> list[bool]:
    """For each frame of an IMAGE [F, H, W, 3]: a face is found, and both of its eyes."""
    light = images[..., :3].mean(-1)
    found = yunet.detect(images, FACE)
    return [bool(faces) and _least(frame, faces[0]) >= CONTRAST for frame, faces in zip(light, found, strict=True)]


def _least(light: torch.Tensor, face: yunet.Face) -> float:
    """The lesser contrast of the places of a face's two eyes in a frame's light [H, W]."""
    wide, high = 0.15 * face.box[2], 0.13 * face.box[2]  # a little more than a drawn eye
    places = (
        light[max(0, round(y - high)) : round(y + high) + 1, max(0, round(x - wide)) : round(x + wide) + 1]
        for x, y in face.landmarks[:2]
    )
    return min(float(place.std(correction=0)) if place.numel() else 0.0 for place in places)


@torch.no_grad()
def accuracy(vae: Any, count: int = 200) -> float:
    """The share of true close-ups of held-out people, as the autoencoder gives them back, in which both eyes are
    found."""
    rng, people = random.Random(99), world.identities(12, seed=3)
    frames: list[np.ndarray] = []
    while len(frames) < count:
        clip = world.random_take(rng, rng.choice(people), framing="close-up")
        if shown(clip):
            frames.append(world.render(clip, rng.randrange(world.FRAMES)).image)
    images = torch.from_numpy(np.stack(frames)).float() / 255
    again = torch.cat([vae.decode(vae.encode(part)).clamp(0, 1).cpu() for part in images.split(50)])
    return sum(both(again)) / count
