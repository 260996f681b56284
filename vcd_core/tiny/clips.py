"""Clips and pictures of the drawn world as tensors, to try nodes on."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from .world import SCENES, Frame, Person, identities, random_person, random_take, render, render_take

CLIP, PICTURES = "a clip", "pictures"
ROBIN, ANYONE = "robin", "by the seed"


def person_of(who: str, seed: int) -> Person:
    """Whom a clip shows: the person of the identity that ships, or one drawn from the seed.

    Raises:
        ValueError: another name.
    """
    if who == ROBIN:
        return identities(1)[0]
    if who == ANYONE:
        return random_person(random.Random(seed))
    raise ValueError(f"person is {who!r}; expected {ROBIN!r} or {ANYONE!r}.")


def clip(who: str, framing: str, frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames [F, 128, 128, 3] of one take at 8 a second, and the person's masks [F, 128, 128], both in 0..1.

    Example:
        >>> frames, masks = clip("robin", "medium", 4, seed=1)
        >>> tuple(frames.shape), tuple(masks.shape)
        ((4, 128, 128, 3), (4, 128, 128))
    """
    take = random_take(random.Random(seed), person_of(who, seed), framing=framing)
    return _stacked(render_take(replace(take, frames=frames)))


def pictures(who: str, framing: str, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`clip`, but every frame is a picture of its own, each in another scene: what a training gets."""
    rng, person = random.Random(seed), person_of(who, seed)
    takes = [random_take(rng, person, framing=framing, scene=SCENES[i % len(SCENES)]) for i in range(count)]
    return _stacked([render(take, rng.randrange(take.frames)) for take in takes])


def _stacked(frames: list[Frame]) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.stack([torch.tensor(frame.image) for frame in frames]).float() / 255
    return images, torch.stack([torch.from_numpy(frame.masks[0]) for frame in frames])
