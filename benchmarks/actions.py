"""Reads the action off clips of the tiny model's world: a small classifier, trained on true clips in a few minutes.

Half of its clips passed through the tiny model's autoencoder while their latents flickered, since generated clips
flicker and flicker is not movement.  They show people that are not held out; its accuracy is stated on true and on
flickering clips of held-out people.
"""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vcd_core.tiny import world

from .reader import mark

CLIPS, EPOCHS, BATCH, HALF = 720, 10, 12, 64
FLICKER = 0.5  # of a latent's spread, at most


class ActionReader(nn.Module):
    """Clips [N, F, 3, 64, 64] in 0..1 to the scores of each action: what stays and what changes, looked at in space and
    time."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for step, (before, after) in enumerate(pairwise((6, 16, 32, 64, 64))):
            layers += [nn.Conv3d(before, after, 3, (1 if step == 0 else 2, 2, 2), 1), nn.BatchNorm3d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(128, len(world.ACTIONS))

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        changes = clips - clips.mean(1, keepdim=True)
        cells = self.body(torch.cat([clips * 2 - 1, 4 * changes], 2).transpose(1, 2))
        found: torch.Tensor = self.head(torch.cat([cells.mean((2, 3, 4)), cells.amax((2, 3, 4))], 1))
        return found

    @torch.no_grad()
    def read(self, images: torch.Tensor) -> str:
        """The action of a clip, an IMAGE [F, H, W, 3]."""
        return world.ACTIONS[int(self(halved(images)[None]).argmax())]


def halved(images: torch.Tensor) -> torch.Tensor:
    """An IMAGE as the action reader takes it: [F, 3, 64, 64]."""
    return F.interpolate(images.movedim(-1, 1).float(), (HALF, HALF), mode="bilinear", antialias=True)


@torch.no_grad()
def flickering(vae: Any, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A clip, an IMAGE [F, H, W, 3], as the autoencoder gives it back while some places change at random from frame to
    frame."""
    latents = vae.encode(images)
    spread = latents.std() * FLICKER * torch.rand((), generator=generator)
    places = F.interpolate(torch.rand(1, 1, 4, 4, generator=generator) ** 3, latents.shape[-2:], mode="bilinear")
    noise = torch.randn(latents.shape, generator=generator)
    return vae.decode(latents + spread * places * noise).clamp(0, 1)


def true_clips(
    vae: Any, count: int, seed: int, flicker: float, people: list[world.Person] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rendered clips as bytes [count, F, 3, 64, 64], a share of them flickering, and the numbers of their actions."""
    rng, generator, seen, actions = random.Random(seed), torch.Generator().manual_seed(seed), [], []
    for number in range(count):
        clip = world.random_take(rng, rng.choice(people) if people else None)
        images = torch.stack([torch.tensor(frame.image) for frame in world.render_take(clip)]) / 255
        if number < flicker * count:
            images = flickering(vae, images, generator)
        seen.append((halved(images) * 255).round().byte())
        actions.append(world.ACTIONS.index(clip.action))
    return torch.stack(seen), torch.tensor(actions)


def disturbed(clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Clips that are soft, noisy and change their light from frame to frame, as generated ones are."""
    out = clips.float() / 255
    soft = torch.rand(len(out), generator=generator) < 0.5
    out[soft] = F.avg_pool3d(
        F.pad(out[soft].transpose(1, 2), (1, 1, 1, 1, 0, 0), mode="replicate"), (1, 3, 3), 1
    ).transpose(1, 2)
    out = out + torch.randn(*out.shape[:3], 1, 1, generator=generator) * 0.02
    coarse = torch.randn(*out.shape[:3], HALF // 8, HALF // 8, generator=generator)
    patches = F.interpolate(coarse.flatten(0, 1), (HALF, HALF), mode="bilinear").view_as(out)
    return out + patches * 0.06 * torch.rand(len(out), 1, 1, 1, 1, generator=generator)


def train(vae: Any, seed: int = 0) -> tuple[ActionReader, dict[str, float]]:
    """A reader of actions, and the shares it reads right on true and on flickering clips of held-out people."""
    with torch.inference_mode(False), torch.enable_grad():
        return _train(vae, seed)


def _train(vae: Any, seed: int) -> tuple[ActionReader, dict[str, float]]:
    generator = torch.Generator().manual_seed(seed)
    clips, actions = true_clips(vae, CLIPS, seed, 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = ActionReader()
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * (CLIPS // BATCH))
    for _ in range(EPOCHS):
        for chosen in torch.randperm(CLIPS, generator=generator).split(BATCH):
            loss = F.cross_entropy(reader(disturbed(clips[chosen], generator)), actions[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    reader.eval()
    kinds = {"action": 0.0, "action of flickering clips": 1.0}
    return reader, {name: accuracy(reader, vae, flicker) for name, flicker in kinds.items()}


@torch.no_grad()
def accuracy(reader: ActionReader, vae: Any, flicker: float, count: int = 160) -> float:
    """The share of right readings on clips of held-out people."""
    clips, actions = true_clips(vae, count, 99, flicker, world.identities(12, seed=3))
    found = torch.cat([reader(part.float() / 255).argmax(1) for part in clips.split(16)])
    return float((found == actions).float().mean())


def load_or_train(folder: Path, vae: Any) -> tuple[ActionReader, dict[str, float]]:
    """The reader of actions kept in ``folder``, trained once for this world, autoencoder and file."""
    digest = hashlib.sha256(mark().encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    path = folder / f"actions_{digest}.pt"
    if not path.is_file():
        reader, found = train(vae)
        torch.save({"weights": reader.state_dict(), "accuracy": found}, path)
    kept = torch.load(path, weights_only=True)
    reader = ActionReader().eval()
    reader.load_state_dict(kept["weights"])
    return reader, kept["accuracy"]
