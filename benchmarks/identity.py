"""Training an identity: where a step's time goes, and what tokens and masks do.

The split is of a full-size SD 1.5 with random weights at 128x128 and 256x256, batch 1; the share of the text falls as
pictures grow, and training is meant for 512x512, which takes too long here.  Losses are of the tiny model and of people
that it never saw: lower is better, on frames that the training did not see.  Targets: at most 3 % of a step outside the
UNet and the text encoder; held-out masked loss falls, and more with four tokens than with one; training without masks
learns the background of its pictures, training with masks does not.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch

from dev import random_models
from dev.studio import RECIPE, SIDE, TEMPLATE, Studio, pictures_of
from vcd_core.tiny import world

from .measure import table

STEPS, DRAWS, PEOPLE = 5, 24, 3
ROOM = "forest"  # where all pictures of the leak measurement are taken


def split(studio: Studio, sizes: tuple[int, ...] = (128, 256)) -> float:
    """Print how a step divides at each size; returns the largest part outside the UNet and the text encoder."""
    import comfy.sd

    gradients, training = studio.module("nodes.host.gradients").gradients, studio.module("vcd_core.training")
    files = random_models.full_size(studio.base / "models")
    model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
        str(studio.base / "models" / "checkpoints" / files["sd15"])
    )
    with gradients():
        backend = studio.module("nodes.host.learned").TokenModel(model, clip, vae, "man")
        shares = {size: _times(training, backend, size) for size in sizes}
    rows = [[name, *(f"{shares[size][name]:.1%}" for size in sizes)] for name in shares[sizes[0]]]
    table(["part of a step", *(f"{size}x{size}" for size in sizes)], rows)
    return max(share["draw"] + share["optimizer"] for share in shares.values())


def _times(training: Any, backend: Any, size: int) -> dict[str, float]:
    """The share of each part of a step, from medians over some steps."""
    spent: dict[str, list[float]] = {}

    def timed(name: str, call: Any) -> Any:
        start = time.perf_counter()
        out = call()
        spent.setdefault(name, []).append(time.perf_counter() - start)
        return out

    images, masks = pictures_of(world.identities(1)[0], 2)
    settings = training.Settings(size=size, batch=1, variants=1)
    work = training.Training(backend, training.prepare(images, masks, settings.size, settings.fit), settings)
    for number in range(2):
        work.album.variant(number, 0)
    for step in range(STEPS + 1):
        batch = timed("draw", lambda step=step: work.album.draw(step))
        with backend.differentiating():
            told = timed("text, forward", lambda batch=batch: backend.text(batch.captions, work.vectors))
            leaves = [rows.detach().requires_grad_() for rows, _ in told]
            entries = [(leaf, options) for leaf, (_, options) in zip(leaves, told, strict=True)]
            noised = training.noised(batch.latents, batch.noise, batch.sigmas, backend.prediction)
            estimate = timed("UNet, forward", lambda n=noised, b=batch, e=entries: backend.denoise(n, b.sigmas, e))
            loss = (estimate - batch.latents).pow(2).mean()
            timed("UNet, backward", loss.backward)
            rows, slopes = [rows for rows, _ in told], [leaf.grad for leaf in leaves]
            timed("text, backward", lambda r=rows, s=slopes: torch.autograd.backward(r, s))
        timed("optimizer", work.optimizer.step)
    medians = {name: statistics.median(times[1:]) for name, times in spent.items()}
    return {name: value / sum(medians.values()) for name, value in medians.items()}


def held_out_loss(
    studio: Studio, person: world.Person, identity: Any, scene: str | None, outside: bool = False
) -> float:
    """The mean masked loss on frames of a person that no training saw; ``outside``: of what is not the person."""
    learned, training = studio.module("nodes.host.learned"), studio.module("vcd_core.training")
    images, masks = pictures_of(person, 8, seed=1000, scene=scene)
    settings = training.Settings(
        person.class_word, size=SIDE, fit=training.FITS[1], template=TEMPLATE, augment=False, unmasked=0.0, batch=8
    )
    with studio.module("nodes.host.gradients").gradients(), torch.no_grad():
        backend = learned.TokenModel(studio.model, studio.clip, studio.vae, person.class_word)
        album = training.Album(training.prepare(images, masks, settings.size, settings.fit), backend, settings)
        vectors = (
            identity.tokens.vectors if identity else training.initial_vectors(backend, replace(settings, tokens=1))
        )
        losses = []
        for step in range(DRAWS):
            batch = album.draw(step)
            if outside:
                batch = replace(batch, masks=1 - batch.masks)
            losses.append(float(training.masked_loss(backend, vectors, batch)))
    return statistics.mean(losses)


def quality(studio: Studio) -> dict[str, float]:
    """Print held-out losses of tokens and masks over several people; returns their means."""
    inside: dict[str, list[float]] = {}
    leak: dict[str, list[float]] = {}
    for person in world.identities(PEOPLE, seed=7):
        cases: dict[str, Any] = {
            "class word": None,
            "1 token": studio.learn(person, tokens=1),
            "4 tokens": studio.learn(person),
        }
        for name, identity in cases.items():
            inside.setdefault(name, []).append(held_out_loss(studio, person, identity, None))
        rooms = {
            "class word": None,
            "with masks": studio.learn(person, scene=ROOM),
            "without masks": studio.learn(person, scene=ROOM, masked=False),
        }
        for name, identity in rooms.items():
            leak.setdefault(name, []).append(held_out_loss(studio, person, identity, ROOM, outside=True))
    rows = [[name, *(f"{v:.4f}" for v in values), f"{statistics.mean(values):.4f}"] for name, values in inside.items()]
    people = [f"person {i + 1}" for i in range(PEOPLE)]
    print(f"\nheld-out loss inside the mask, {RECIPE['steps']} steps")
    table(["", *people, "mean"], rows)
    rows = [[name, *(f"{v:.4f}" for v in values), f"{statistics.mean(values):.4f}"] for name, values in leak.items()]
    print(
        f"\nheld-out loss outside the mask in the room of the training pictures ({ROOM}): low means that the room was "
        f"learned"
    )
    table(["", *people, "mean"], rows)
    outside = {kind: values for kind, values in leak.items() if "mask" in kind} | {"room": leak["class word"]}
    return {kind: statistics.mean(values) for kind, values in (inside | outside).items()}


def main() -> int:
    studio = Studio()
    outside = split(studio)
    found = quality(studio)
    learned = {name: 1 - found[name] / found["class word"] for name in ("1 token", "4 tokens")}
    leaked = {name: 1 - found[name] / found["room"] for name in ("with masks", "without masks")}
    print(f"\noutside the UNet and the text encoder: {outside:.1%} of a step (target at most 3 %)")
    print(f"held-out loss under the class word's: 1 token {learned['1 token']:.1%}, 4 tokens {learned['4 tokens']:.1%}")
    print(
        f"the room's loss under the class word's: with masks {leaked['with masks']:.1%}, without "
        f"{leaked['without masks']:.1%}"
    )
    good = (
        outside <= 0.03
        and 0 < learned["1 token"] < learned["4 tokens"]
        and leaked["with masks"] < leaked["without masks"]
    )
    print("targets held" if good else "TARGETS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
