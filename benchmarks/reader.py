"""Reads attributes, scene and framing off pictures of the tiny model's world: a small classifier, trained on true
frames in a few minutes.

Its frames come from people that are not held out; its accuracy is stated on true frames of held-out people, as they are
and as the tiny model's autoencoder gives them back.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from vcd_core.tiny import model as tiny
from vcd_core.tiny import world

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "skin": tuple(world.SKINS), "hair": world.HAIRS, "hair_colour": tuple(world.HAIR_COLOURS), "glasses": world.GLASSES,
    "hat": tuple(world.HATS), "shirt": tuple(world.SHIRTS),
}  # fmt: skip
HEADS = ATTRIBUTES | {"scene": world.SCENES, "framing": world.FRAMINGS}
FACE = ("skin", "hair", "hair_colour", "glasses", "hat")  # what a face crop shows
FRAMES, EPOCHS, BATCH = 6000, 6, 50
READER_FILES = (Path(world.__file__), Path(__file__))
NOT_THERE = -100  # what cross_entropy leaves out


class Reader(nn.Module):
    """Pictures [N, 3, 128, 128] in 0..1 to the scores of each head."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 128)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.Conv2d(after, after, 3, 1, 1), nn.BatchNorm2d(after), nn.ReLU()] if before > 16 else []
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * widths[-1], len(values)) for name, values in HEADS.items()})

    def forward(self, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
        cells = self.body(pictures * 2 - 1)
        seen = torch.cat([cells.mean((2, 3)), cells.amax((2, 3))], 1)
        return {name: head(seen) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> list[dict[str, str]]:
        """What each picture of an IMAGE [F, H, W, 3] shows."""
        pictures = images.movedim(-1, 1).float()
        if pictures.shape[-2:] != (world.SIZE, world.SIZE):
            pictures = F.interpolate(pictures, (world.SIZE, world.SIZE), mode="bilinear", antialias=True)
        found = {name: scores.argmax(1).tolist() for name, scores in self(pictures).items()}
        return [{name: HEADS[name][found[name][i]] for name in HEADS} for i in range(len(images))]


def matches(read: dict[str, str], person: world.Person, names: tuple[str, ...] = tuple(ATTRIBUTES)) -> float:
    """The share of a person's attributes that was read; the colour of hair that is not there does not count.

    Example:
        >>> someone = world.identities(1)[0]
        >>> matches(someone.attributes(), someone)
        1.0
    """
    wanted = {name: value for name, value in person.attributes().items() if name in names}
    if person.hair == "no":
        wanted.pop("hair_colour", None)
    return sum(read[name] == value for name, value in wanted.items()) / len(wanted)


def face_square(clip: world.Take, box: world.Box, rng: random.Random) -> tuple[int, int, int]:
    """Left, top and side of a square around a face: what a face crop or one half of a picture shows."""
    x, y, w, h = box
    side = min(world.SIZE, max(24, int(max(w, h) * rng.uniform(1.8, 3.2))))
    place = (x + w / 2 + rng.uniform(-0.2, 0.2) * w, y + h / 2 + rng.uniform(-0.1, 0.3) * h)
    left, top = (int(min(world.SIZE - side, max(0, middle - side / 2))) for middle in place)
    return left, top, side


def _draw(rng: random.Random, person: world.Person | None, crop: bool) -> tuple[np.ndarray, dict[str, int]]:
    clip = world.random_take(rng, person, framing=rng.choices(world.FRAMINGS, (0.45, 0.45, 0.1))[0])
    crop = crop and clip.framing != "far away"
    frame = world.render(clip, rng.randrange(world.FRAMES), side=3 * world.SIZE if crop else world.SIZE)
    picture, shown = frame.image, clip.people[0]
    wanted = {name: values.index(getattr(shown, name)) for name, values in ATTRIBUTES.items()}
    if shown.hair == "no":
        wanted["hair_colour"] = NOT_THERE
    wanted |= {"scene": world.SCENES.index(clip.scene), "framing": world.FRAMINGS.index(clip.framing)}
    if crop:
        left, top, side = (3 * value for value in face_square(clip, frame.faces[0], rng))
        cut = Image.fromarray(picture[top : top + side, left : left + side])
        picture = np.asarray(cut.resize((world.SIZE, world.SIZE), Image.Resampling.BOX))
        wanted |= {"scene": NOT_THERE, "framing": NOT_THERE, "shirt": NOT_THERE}
    return picture, wanted


def _frames(
    vae: Any, count: int, rng: random.Random, people: list[world.Person] | None, crops: float, coded: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Frames as bytes [count, 3, 128, 128], a part of them through the autoencoder, and what they show."""
    drawn = [_draw(rng, rng.choice(people) if people else None, rng.random() < crops) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([picture for picture, _ in drawn])).movedim(-1, 1)
    with torch.no_grad():
        for start in range(0, int(count * coded), 50):
            part = slice(start, min(start + 50, int(count * coded)))
            image = pictures[part].movedim(1, -1).float() / 255
            again = vae.decode(vae.encode(image)).clamp(0, 1)
            pictures[part] = (again * 255).round().byte().movedim(-1, 1).cpu()
    return pictures, {name: torch.tensor([wanted[name] for _, wanted in drawn]) for name in HEADS}


def _blurred(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Some of the pictures softer, some noisier, all shifted in colour a little: generated frames are not true ones."""
    out = pictures.float() / 255
    out = out + torch.randn(len(out), 3, 1, 1, generator=generator) * 0.03
    soft = torch.rand(len(out), generator=generator) < 0.5
    out[soft] = F.avg_pool2d(F.pad(out[soft], (1, 1, 1, 1), mode="replicate"), 3, 1)
    return out + torch.randn(out.shape, generator=generator) * 0.04 * torch.rand(len(out), 1, 1, 1, generator=generator)


def train(vae: Any, seed: int = 0) -> tuple[Reader, dict[str, dict[str, float]]]:
    """A reader, and its accuracy for each head on true frames of held-out people, as they are and through the
    autoencoder."""
    with torch.inference_mode(False), torch.enable_grad():
        return _train(vae, seed)


def _train(vae: Any, seed: int) -> tuple[Reader, dict[str, dict[str, float]]]:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    pictures, wanted = _frames(vae, FRAMES, rng, None, 0.4, 0.6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3, weight_decay=1e-2)
    total = EPOCHS * (FRAMES // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=total)
    reader.train()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(FRAMES, generator=generator).split(BATCH):
            scores = reader(_blurred(pictures[chosen], generator))
            losses = [F.cross_entropy(scores[name], wanted[name][chosen], ignore_index=NOT_THERE) for name in HEADS]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            schedule.step()
    reader.eval()
    return reader, accuracy(reader, vae)


@torch.no_grad()
def accuracy(reader: Reader, vae: Any, count: int = 400) -> dict[str, dict[str, float]]:
    """The share of right readings on close-ups and medium shots of held-out people that no training saw."""
    found: dict[str, dict[str, float]] = {}
    for name, coded, crops in (("true frames", 0.0, 0.0), ("coded frames", 1.0, 0.0), ("coded face crops", 1.0, 1.0)):
        pictures, wanted = _frames(vae, count, random.Random(99), world.identities(12, seed=3), crops, coded)
        scores = reader(pictures.float() / 255)
        near = wanted["framing"] != world.FRAMINGS.index("far away")
        found[name] = {}
        for head in HEADS:
            asked = near & (wanted[head] != NOT_THERE)
            if asked.any():
                found[name][head] = float((scores[head].argmax(1) == wanted[head])[asked].float().mean())
    return found


def mark() -> str:
    """What the reader depends on: the autoencoder, the world, and how it learns."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in READER_FILES))
    for key, value in sorted(tiny.weights_of(tiny.load_weights(), "vae").items()):
        digest.update(key.encode() + value.numpy().tobytes())
    return digest.hexdigest()[:16]


def load_or_train(folder: Path, vae: Any) -> tuple[Reader, dict[str, dict[str, float]]]:
    """The reader kept in ``folder``, trained once, and its accuracy as ``train`` gives it."""
    path = folder / f"reader_{mark()}.pt"
    if path.is_file():
        kept = torch.load(path, weights_only=True)
        reader = Reader().eval()
        reader.load_state_dict(kept["weights"])
        return reader, kept["accuracy"]
    reader, found = train(vae)
    torch.save({"weights": reader.state_dict(), "accuracy": found}, path)
    return reader, found
