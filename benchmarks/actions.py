"""Reads the action off clips of the tiny model's world: a small classifier, trained on true clips in a few minutes.

Its clips show people that are not held out; its accuracy is stated on true clips of held-out people.
"""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from vcd_core.tiny import world

CLIPS, EPOCHS, BATCH, HALF = 720, 10, 12, 64


class ActionReader(nn.Module):
    """Clips [N, F, 3, 64, 64] in 0..1 to the scores of each action: what stays and what changes, looked at in space and time."""

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


def true_clips(count: int, seed: int, people: list[world.Person] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rendered clips as bytes [count, F, 3, 64, 64], and the numbers of their actions."""
    rng, seen, actions = random.Random(seed), [], []
    for _ in range(count):
        clip = world.random_clip(rng, rng.choice(people) if people else None)
        images = torch.stack([torch.tensor(frame.image) for frame in world.render_clip(clip)])
        seen.append((halved(images / 255) * 255).round().byte())
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


def train(seed: int = 0) -> tuple[ActionReader, float]:
    """A reader of actions, and the share it reads right on true clips of held-out people."""
    generator = torch.Generator().manual_seed(seed)
    clips, actions = true_clips(CLIPS, seed)
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
    clips, actions = true_clips(160, 99, world.identities(12, seed=3))
    with torch.no_grad():
        right = [
            (reader(part.float() / 255).argmax(1) == wanted)
            for part, wanted in zip(clips.split(16), actions.split(16), strict=True)
        ]
    return reader, float(torch.cat(right).float().mean())


def load_or_train(folder: Path) -> tuple[ActionReader, float]:
    """The reader of actions kept in ``folder``, trained once for this world and this file."""
    mark = hashlib.sha256(b"".join(Path(f).read_bytes() for f in (world.__file__, __file__))).hexdigest()[:16]
    path = folder / f"actions_{mark}.pt"
    if not path.is_file():
        reader, accuracy = train()
        torch.save({"weights": reader.state_dict(), "accuracy": accuracy}, path)
    kept = torch.load(path, weights_only=True)
    reader = ActionReader().eval()
    reader.load_state_dict(kept["weights"])
    return reader, kept["accuracy"]
