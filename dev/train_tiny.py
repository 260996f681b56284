"""``python run.py train-tiny``: trains the tiny model from nothing, stage by stage, by one process on each core.

    vae        pictures to latents and back
    frames64   text to picture at 64x64, close-ups and medium shots, full captions
    frames128  the same weights at 128x128, all framings, then captions with parts left out
    motion     AnimateDiff-layout motion modules on the frozen frames

Each stage has a budget of minutes, saves its state every few minutes, and goes on from there when run again; a larger
budget trains a finished stage further.  Logs, states and contact sheets lie in ``--folder`` (default ``.host/tiny``);
``export`` writes the weights that the pack ships.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import os
import pickle
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from vcd_core.motion import MotionInfo, MotionModel, MotionModule, slots
from vcd_core.tiny import model as tiny
from vcd_core.tiny import world

from .host import HOST, PACK
from .random_models import enter_host
from .server import host_from_environment

# minutes of each of two processes that learn as many pictures as the shipped weights saw; one process had 24 minutes of
# frames64, 138 of frames128 and 117 of motion, each for half as many pictures a minute
BUDGETS = {"vae": 15.0, "frames64": 12.0, "frames128": 180.0, "motion": 294.0}
SAVE_EVERY = 180.0  # seconds
NOISY = 600  # from this time on layout and colours are decided, before it eyes and glasses
EARLY = 0.3  # the share of pictures that are learned from NOISY on; 0.7 before the last 96 minutes
MEDIUM = 3  # how often a medium shot is learned beside the others, whose eyes come out; 1 before the last 59 minutes
SETTLED = 750  # below this time one sees where people stand
# shares of clips: how people move is decided early, what heads look like after it
CLIP_TIMES = ((0, 400, 0.2), (400, SETTLED, 0.5), (SETTLED, 1000, 0.3))
STILL = 0.3  # what a clip's mean frame counts from t = 400 on, beside one for what changes from frame to frame
# how much the latents of a clip change over its frames when its people walk or jump; a hand that waves changes a
# quarter
LIVELY = 0.25
LOUDEST = 4.0  # what a clip that changes less counts at most
OFTEN = {"waving": 3, "jumping": 3, "walking": 2, "standing": 2}  # shares of the clips that are learned, by action
STARTS = {"frames128": tiny.MODEL_FILE, "motion": tiny.MOTION_FILE}  # where an earlier training got to


class Peers:
    """Processes that train one stage together, each on clips of its own; by default this one alone.

    Its layers are too small for threads to gain much; the log says how many pictures a second are learned.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    def meet(self, folder: Path) -> None:
        """Find the others, on this machine only."""
        if self.count > 1:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            meeting = f"file://{(folder / 'peers').resolve()}"
            dist.init_process_group("gloo", init_method=meeting, rank=self.rank, world_size=self.count)

    def first(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made by the first process before the others begin: they find it on disk."""
        if self.count == 1:
            return make()
        made = make() if self.rank == 0 else None
        dist.barrier()
        return made if self.rank == 0 else make()

    def share(self, parameters: list[nn.Parameter], spent: float) -> float:
        """Give every process the mean gradients, and the first one's ``spent``."""
        if self.count == 1:
            return spent
        first = torch.tensor([spent if self.rank == 0 else 0.0])
        flat = torch.cat([*(p.grad.flatten() / self.count for p in parameters if p.grad is not None), first])
        dist.all_reduce(flat)
        at = 0
        for p in parameters:
            if p.grad is not None:
                p.grad.copy_(flat[at : at + p.numel()].view_as(p))
                at += p.numel()
        return float(flat[-1])


class Stage:
    """The bookkeeping of one stage: budget, state on disk, log, moving average of the weights."""

    def __init__(
        self,
        name: str,
        folder: Path,
        minutes: float,
        parameters: dict[str, nn.Parameter],
        rate: float,
        peers: Peers | None = None,
    ) -> None:
        self.name, self.folder, self.budget, self.rate = name, folder, minutes * 60, rate
        self.peers = peers or Peers()
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            list(parameters.values()), lr=rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True
        )
        self.average = {key: value.detach().clone() for key, value in parameters.items()}
        self.step, self.spent, self.pictures = 0, 0.0, 0
        self.path = folder / f"{name}.state"
        if self.path.is_file():
            self._resume(torch.load(self.path, weights_only=True))
        elif (folder / "start.txt").is_file() and name in STARTS:
            self._continue_from(STARTS[name])

    def _resume(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for key, value in self.parameters.items():
                value.copy_(state["weights"][key])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.spent, self.pictures = state["step"], state["spent"], state["pictures"]
        self.log(f"resumed at step {self.step}, {self.spent / 60:.1f} of {self.budget / 60:.0f} minutes")

    def _continue_from(self, path: Path) -> None:
        weights = tiny.load_weights(path)
        with torch.no_grad():
            for key, value in self.parameters.items():
                value.copy_(weights[key])
        self.average = {key: value.detach().clone() for key, value in self.parameters.items()}
        self.log(f"goes on from {path.name}")

    def log(self, text: str) -> None:
        if self.peers.rank:
            return
        line = f"{time.strftime('%H:%M:%S')} {self.name} {text}"
        print(line, flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self) -> None:
        state = {
            "weights": {key: value.detach() for key, value in self.parameters.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "spent": self.spent,
            "pictures": self.pictures,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(self.path)

    def run(
        self, loss_of: Callable[[], tuple[torch.Tensor, int]], report: Callable[[], str], every: float = 120
    ) -> None:
        """Train until the budget is spent; ``loss_of`` gives a loss and how many pictures it saw."""
        saved = reported = time.monotonic()
        smooth = None
        start = time.thread_time()  # this thread's own time, so that a paused or crowded training is not cut short
        while self.spent < self.budget:
            done = self.spent / self.budget
            for group in self.optimizer.param_groups:
                group["lr"] = (
                    self.rate * min(1, (self.step + 1) / 100) * (0.05 + 0.475 * (1 + math.cos(math.pi * done)))
                )
            loss, pictures = loss_of()
            self.optimizer.zero_grad()
            loss.backward()
            now = time.thread_time()
            self.spent, start = self.peers.share(list(self.parameters.values()), self.spent + now - start), now
            torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
            self.optimizer.step()
            self.step += 1
            self.pictures += pictures * self.peers.count
            keep = min(0.998, self.step / (self.step + 30))
            with torch.no_grad():
                for key, value in self.parameters.items():
                    self.average[key].lerp_(value, 1 - keep)
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            now = time.monotonic()
            if self.peers.rank:
                continue
            before = time.thread_time()
            if now - reported > every:
                rate = self.pictures / self.spent
                self.log(f"step {self.step} loss {smooth:.4f} {rate:.0f} pictures/s {self.pictures} seen; {report()}")
                reported = time.monotonic()
            if now - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
            start += time.thread_time() - before  # reports are not training
        if self.peers.rank:
            return
        self.save()
        self.log(f"done: {self.step} steps, {self.pictures} pictures, {self.spent / 60:.0f} minutes; {report()}")

    def load_average(self) -> None:
        with torch.no_grad():
            for key, value in self.parameters.items():
                value.copy_(self.average[key])


def later_rate(folder: Path) -> float:
    """The first learning rate of frames at 128 pixels and of motion, lower where they go on from trained weights."""
    return 7e-4 if (folder / "start.txt").is_file() else 1e-3


# ---------------------------------------------------------------------------------------------------------- pictures


def to_tensor(frames: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1


def sheet(pictures: torch.Tensor, columns: int, path: Path, scale: int = 1) -> None:
    frames = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(frames[i : i + columns], 1) for i in range(0, len(frames) // columns * columns, columns)]
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC).save(path)


def train_vae(folder: Path, minutes: float) -> None:
    torch.manual_seed(0)
    vae = tiny.PictureAutoencoder()
    stage = Stage("vae", folder, minutes, dict(vae.named_parameters()), 2e-3)
    rng = random.Random(1 + stage.step)
    pool: list[tuple[torch.Tensor, world.Box]] = []

    def refill(count: int) -> None:
        for _ in range(count):
            clip = world.random_take(rng)
            frame = world.render(clip, rng.randrange(world.FRAMES))
            pool.append((to_tensor([frame.image])[0], frame.faces[0]))
        del pool[: max(0, len(pool) - 3000)]

    def crop() -> tuple[torch.Tensor, torch.Tensor]:
        picture, (x, y, w, h) = rng.choice(pool)
        middle = (x + w / 2, y + h / 2) if rng.random() < 0.6 else (rng.uniform(0, 128), rng.uniform(0, 128))
        left, top = (int(min(64, max(0, m - 32 + rng.uniform(-16, 16)))) for m in middle)
        weight = torch.ones(1, 128, 128)
        weight[:, max(0, int(y)) : int(y + h), max(0, int(x)) : int(x + w)] = 3
        part = picture[:, top : top + 64, left : left + 64], weight[:, top : top + 64, left : left + 64]
        return tuple(p.flip(-1) for p in part) if rng.random() < 0.5 else part  # type: ignore[return-value]

    refill(1000)

    def loss_of() -> tuple[torch.Tensor, int]:
        refill(6)
        pictures, weights = (torch.stack(part) for part in zip(*(crop() for _ in range(24)), strict=True))
        latents = vae.encode(pictures)
        difference = vae.decode(latents + 0.1 * torch.randn_like(latents)) - pictures
        edges = difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        loss = (difference.abs() * weights).sum() / weights.sum() / 3 + 0.5 * edges + difference.pow(2).mean()
        return loss + 1e-3 * latents.pow(2).mean(), 24

    test = [world.render(world.random_take(random.Random(900 + i)), i % 16) for i in range(48)]
    pictures = to_tensor([frame.image for frame in test])

    def report() -> str:
        with torch.no_grad():
            again = vae.decode(vae.encode(pictures))
        faces = []
        for i, frame in enumerate(test):
            x, y, w, h = (int(v) for v in frame.faces[0])
            part = np.s_[i, :, max(0, y) : y + h, max(0, x) : x + w]
            faces.append(float((again[part] - pictures[part]).pow(2).mean()))
        whole = 10 * math.log10(4 / float((again - pictures).pow(2).mean()))
        rows = [torch.cat([pictures[i : i + 8], again[i : i + 8]]) for i in range(0, 32, 8)]
        sheet(torch.cat(rows), 8, folder / "vae.png")
        return f"{whole:.1f} dB, faces {10 * math.log10(4 / np.mean(faces)):.1f} dB"

    stage.run(loss_of, report)
    stage.load_average()
    report()
    vae.whiten(pictures)
    stage.log(f"with averaged weights, whitened: {report()}")
    torch.save(vae.state_dict(), folder / "vae.pt")


# ------------------------------------------------------------------------------------------------- text to picture


class Words:
    """The real CLIP tokenizer, its ids mapped to the rows of a small table of the words this world uses."""

    def __init__(self, clip: Any) -> None:
        self.clip = clip
        words = {w: self._ids(w) for w in world.vocabulary()}
        self.ids = sorted({49406, 49407, *(i for ids in words.values() for i in ids)})
        self.rows = {token: row for row, token in enumerate(self.ids)}
        self.cache: dict[str, list[int]] = {}

    def _ids(self, text: str) -> list[int]:
        return [int(pair[0]) for pair in self.clip.tokenize(text)["l"][0] if int(pair[0]) not in (49406, 49407)]

    def __call__(self, text: str) -> list[int]:
        if text not in self.cache:
            tokens = [49406, *self._ids(text)][:76]
            tokens += [49407] * (77 - len(tokens))
            self.cache[text] = [self.rows[token] for token in tokens]
        return self.cache[text]


class Painter:
    """UNet, text encoder and word table, with the noise schedule: what the frame stages train."""

    def __init__(self, folder: Path) -> None:
        host = host_from_environment()
        enter_host(host.comfy)
        sys.argv += ["--use-pytorch-cross-attention"]
        sys.path.insert(0, str(host.base / "custom_nodes"))
        build = __import__(f"{PACK}.nodes.host.tiny", fromlist=["host"]).small_sd15
        model, clip, _ = build(tiny.UNET, tiny.HEADS, tiny.TEXT, tiny.PictureAutoencoder(), [])
        self.unet = model.model.diffusion_model
        self.encoder = clip.cond_stage_model.clip_l.transformer.text_model
        self.sampling = model.model.model_sampling
        for module in (self.unet, self.encoder):
            start_weights(module)
        _out_of_place(self.encoder)
        self.words = Words(clip)
        self.table = nn.Embedding(len(self.words.ids), tiny.TEXT_WIDTH)
        nn.init.normal_(self.table.weight, 0, 0.3)
        self.vae = tiny.PictureAutoencoder().eval().requires_grad_(False)
        self.vae.load_state_dict(torch.load(folder / "vae.pt", weights_only=True))
        betas = torch.linspace(0.00085, 0.012, 1000, dtype=torch.float64)
        self.signal = torch.cumprod(1 - betas, 0).sqrt().float()
        self.noise = (1 - self.signal.double() ** 2).sqrt().float()
        self.options: dict[str, Any] = {}

    @torch.no_grad()
    def latents(self, frames: list[np.ndarray]) -> torch.Tensor:
        """Frames as latents in half precision, scaled as the UNet takes them."""
        return (self.vae.encode(to_tensor(frames)) * tiny.SCALE).half()

    def load_frames(self, folder: Path) -> None:
        """The averaged weights of the frame stages, or those that ship where these were not trained further."""
        path = folder / "frames128.state"
        average = torch.load(path, weights_only=True)["average"] if path.is_file() else tiny.load_weights()
        with torch.no_grad():
            for key, value in self.parameters().items():
                value.copy_(average[key])

    def parameters(self) -> dict[str, nn.Parameter]:
        named = {f"unet.{k}": v for k, v in self.unet.named_parameters()}
        named |= {f"text.{k}": v for k, v in self.encoder.named_parameters() if "token_embedding" not in k}
        named |= {"table": self.table.weight}
        return {key: value.requires_grad_(True) for key, value in named.items()}

    def text(self, captions: list[str]) -> torch.Tensor:
        rows = torch.tensor([self.words(caption) for caption in captions])
        return self.encoder(None, embeds=self.table(rows), num_tokens=[77] * len(captions))[0]

    def noised(
        self, latents: torch.Tensor, times: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The noised latents and the v that the UNet is to predict for them."""
        a, b = (table[times].view(-1, 1, 1, 1) for table in (self.signal, self.noise))
        return a * latents + b * noise, a * noise - b * latents

    @torch.no_grad()
    def draw(self, captions: list[str], side: int, seed: int, steps: int = 20, cfg: float = 4.0) -> torch.Tensor:
        """Pictures by DDIM with classifier-free guidance."""
        context = torch.cat([self.text(captions), self.text([""]).expand(len(captions), -1, -1)])
        x = torch.randn(len(captions), 4, side // 8, side // 8, generator=torch.Generator().manual_seed(seed))
        for now, then in itertools.pairwise(torch.linspace(999, 0, steps + 1).round().long()):
            times = now.expand(2 * len(x)).float()
            v = self.unet(torch.cat([x, x]), times, context, transformer_options=self.options)
            right, none = v.chunk(2)
            v = none + cfg * (right - none)
            clean = self.signal[now] * x - self.noise[now] * v
            noise = self.noise[now] * x + self.signal[now] * v
            x = clean if then == 0 else self.signal[then] * clean + self.noise[then] * noise
        return torch.cat([self.vae.decode(part / tiny.SCALE) for part in x.split(8)])


def start_weights(module: nn.Module) -> None:
    """PyTorch's own initial weights (the host's layers leave theirs unset), residual branches starting at zero."""
    kinds = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Embedding)
    for part in module.modules():
        for kind in kinds:
            if isinstance(part, kind):
                kind.reset_parameters(part)  # type: ignore[arg-type]
                break
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name.endswith(("out_layers.3.weight", "out_layers.3.bias", "proj_out.weight", "proj_out.bias")):
                value.zero_()
            elif "position_embedding" in name:
                value.normal_(0, 0.02)


def _out_of_place(encoder: nn.Module) -> None:
    """The host's CLIP layers add in place, which autograd refuses."""

    def forward(self: Any, x: torch.Tensor, mask: Any = None, optimized_attention: Any = None) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))

    for layer in encoder.modules():
        if type(layer).__name__ == "CLIPLayer":
            layer.forward = MethodType(forward, layer)


def kept(path: Path, make: Callable[[], tuple[dict[str, torch.Tensor], list[world.Take]]]) -> tuple[Any, Any]:
    """What ``make`` gives, latents and the clips they come from, made once and kept at ``path``."""
    if not path.is_file():
        latents, clips = make()
        torch.save({**latents, "clips": pickle.dumps(clips)}, path)
    stored = torch.load(path, weights_only=False)
    return stored, pickle.loads(stored.pop("clips"))  # noqa: S301  (our own file)


def pair(rng: random.Random) -> world.Take:
    """A clip of two people, large enough to be told apart."""
    first, second = world.random_take(rng), world.random_take(rng)
    return replace(first, people=first.people + second.people, framing=rng.choice(world.FRAMINGS[:2]))


def emphasis(frame: world.Frame) -> torch.Tensor:
    """How much each latent cell [16, 16] of a frame counts: people twice, heads five times.

    Most of what tells people apart - hair, glasses, hat, skin - lies in few cells of the head; what is behind them
    fills the picture.  Only for times below ``SETTLED``: earlier, where the place is open, cells that count more make a
    person likely wherever one may stand, and one becomes two.
    """
    weights = torch.ones(world.SIZE, world.SIZE)
    for mask, (x, y, w, h) in zip(frame.masks, frame.faces, strict=True):
        weights += torch.from_numpy(mask)
        top, left = max(0, int(y - 0.6 * h)), max(0, int(x - 0.25 * w))
        weights[top : max(0, int(y + h)), left : max(0, int(x + 1.25 * w))] += 3
    return F.avg_pool2d(weights[None], 8)[0].half()


def weighted_error(found: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The squared error of latents [N, C, h, w], each cell counted as ``weights`` [N, h, w] say."""
    return ((found - wanted).pow(2).mean(1) * weights).sum() / weights.sum()


class Album:
    """Latents of rendered frames with their weights and the clips they come from; the first eighth are pairs."""

    def __init__(self, folder: Path, painter: Painter, count: int) -> None:
        self.pairs = range(count // 8)

        def make() -> tuple[dict[str, torch.Tensor], list[world.Take]]:
            rng = random.Random(5)
            stored: dict[str, list[torch.Tensor]] = {"small": [], "large": [], "weights": []}
            clips = [(pair if i in self.pairs else world.random_take)(rng) for i in range(count)]
            for start in range(0, count, 50):
                part = clips[start : start + 50]
                frames = [world.render(clip, rng.randrange(world.FRAMES)) for clip in part]
                images = [frame.image for frame in frames]
                half = [np.asarray(Image.fromarray(f).resize((64, 64), Image.Resampling.LANCZOS)) for f in images]
                stored["large"].append(painter.latents(images))
                stored["small"].append(painter.latents(half))
                stored["weights"].append(torch.stack([emphasis(frame) for frame in frames]))
            return {name: torch.cat(parts) for name, parts in stored.items()}, clips

        stored, self.clips = kept(folder / f"album-{count}.pt", make)
        self.latents = {128: stored["large"], 64: stored["small"]}
        self.weights = {128: stored["weights"], 64: F.avg_pool2d(stored["weights"].float(), 2).half()}


def part_of(clip: world.Take, rng: random.Random, indices: range) -> list[np.ndarray]:
    """A part of a clip's frames, enlarged up to three times: what a tile or a face crop shows; half of them at the
    face."""
    side = rng.randrange(world.SIZE * 5 // 4, world.SIZE * world.SAMPLES)
    first = world.render(clip, indices[0])
    x, y, w, h = (value * side / world.SIZE for value in first.faces[0])
    free = side - world.SIZE
    if rng.random() < 0.5:
        left, top = (
            int(min(free, max(0, middle - world.SIZE / 2 + rng.uniform(-24, 24)))) for middle in (x + w / 2, y + h / 2)
        )
    else:
        left, top = rng.randrange(free), rng.randrange(free)
    frames = (world.render(clip, i, side=side).image for i in indices)
    return [frame[top : top + world.SIZE, left : left + world.SIZE] for frame in frames]


class Parts:
    """Latents [clips, frames, 4, 16, 16] of enlarged parts of frames with their clips.

    Motion learns them at the less noisy times, those of tiles and of the later steps of faces. (Frames that learned
    them there for 25,000 pictures drew tiles little better and eyes worse.)
    """

    LATEST = 400

    def __init__(self, folder: Path, painter: Painter, count: int, frames: int) -> None:
        def make() -> tuple[dict[str, torch.Tensor], list[world.Take]]:
            rng, latents = random.Random(6), []
            clips = [world.random_take(rng) for _ in range(count)]
            for clip in clips:
                first = rng.randrange(world.FRAMES - frames + 1)
                latents.append(painter.latents(part_of(clip, rng, range(first, first + frames))))
            return {"latents": torch.stack(latents)}, clips

        stored, self.clips = kept(folder / f"parts-{count}x{frames}.pt", make)
        self.latents: torch.Tensor = stored["latents"]

    def pick(self, rng: random.Random) -> tuple[torch.Tensor, world.Take]:
        i = rng.randrange(len(self.clips))
        return self.latents[i].float(), self.clips[i]


SHEET = [
    "a close-up of a pale man with short red hair, green shirt, standing on the beach",
    "a close-up of a dark woman with long black hair, glasses, red shirt, standing in the forest",
    "a close-up of a brown man with spiky blue hair, sunglasses, white shirt, waving at night",
    "a close-up of a pale woman with long blond hair, yellow cap, blue shirt, walking in the snow",
    "a photo of a dark man with no hair, yellow shirt, waving on the beach",
    "a photo of a pale woman with long red hair, blue shirt, walking in the city",
    "a photo of a brown man with short black hair, top hat, green shirt, jumping in the snow",
    "a photo of a dark woman with spiky blond hair, white shirt, standing in the forest",
]
FAR = [
    "a far away photo of a pale man with short black hair, red shirt, walking on the beach",
    "a far away photo of a dark woman with long blue hair, yellow shirt, waving at night",
]


def train_frames(folder: Path, minutes: float, side: int, before: str | None, peers: Peers) -> None:
    torch.manual_seed(side + 1000 * peers.rank)
    painter = Painter(folder)
    rate = 1.5e-3 if before is None else later_rate(folder)
    stage = Stage(f"frames{side}", folder, minutes, painter.parameters(), rate, peers)
    if before and stage.step == 0 and (folder / f"{before}.state").is_file():
        start = torch.load(folder / f"{before}.state", weights_only=True)["average"]
        with torch.no_grad():
            for key, value in stage.parameters.items():
                value.copy_(start[key])
        stage.average = {key: value.detach().clone() for key, value in stage.parameters.items()}
    album = peers.first(lambda: Album(folder, painter, int(os.environ.get("VCD_ALBUM", "24000"))))
    latents = album.latents[side]
    rng = random.Random(stage.step + side + 1000003 * peers.rank)
    held = 256
    usable = [
        i
        for i, c in enumerate(album.clips[:-held])
        if side == 128 or (c.framing != "far away" and i not in album.pairs)
    ]
    likelihood = [MEDIUM if side == 128 and album.clips[i].framing == "medium" else 1 for i in usable]
    batch = 48 if side == 64 else 16
    # at 128 pixels four times as many cells share a colour, so the same noise hides less of it: more of the noisiest
    # times
    early = (500, 0.7) if side == 64 else (NOISY, EARLY)

    def loss_of() -> tuple[torch.Tensor, int]:
        chosen = rng.choices(usable, likelihood, k=batch)
        keep = 1.0 if side == 64 or stage.spent < 0.75 * stage.budget else rng.choice((1.0, 0.75))
        noisy = torch.rand(batch) < early[1]
        times = torch.where(noisy, torch.randint(early[0], 1000, (batch,)), torch.randint(0, early[0], (batch,)))
        clean, weights = (table[side][chosen].float() for table in (album.latents, album.weights))
        captions = ["" if rng.random() < 0.1 else world.caption(album.clips[i], keep, rng) for i in chosen]
        weights[times >= SETTLED] = 1
        x, target = painter.noised(clean, times, torch.randn_like(clean))
        return weighted_error(painter.unet(x, times.float(), painter.text(captions)), target, weights), batch

    def report() -> str:
        live = copy.deepcopy({key: value.detach() for key, value in stage.parameters.items()})
        stage.load_average()
        text = gaps(painter, latents[-held:].float(), album.clips[-held:], side)
        captions = [c for c in SHEET for _ in range(2)] + ([c for c in FAR for _ in range(4)] if side == 128 else [])
        sheet(painter.draw(captions, side, 1), 8, folder / f"frames{side}.png", 128 // side)
        with torch.no_grad():
            for key, value in stage.parameters.items():
                value.copy_(live[key])
        return text

    stage.run(loss_of, report, every=300)


@torch.no_grad()
def gaps(painter: Painter, latents: torch.Tensor, clips: list[world.Take], side: int) -> str:
    """How much worse the noise at t = 700 is predicted when one attribute of the caption is wrong: what words do."""
    chosen = [i for i, c in enumerate(clips) if side == 128 or c.framing != "far away"][:128]
    rng = random.Random(5)
    values: dict[str, tuple[str, ...]] = {
        "shirt": tuple(world.SHIRTS), "hair_colour": tuple(world.HAIR_COLOURS), "skin": tuple(world.SKINS),
        "hat": tuple(world.HATS), "glasses": world.GLASSES, "scene": world.SCENES,
    }  # fmt: skip

    def error(wrong: str | None) -> float:
        captions = []
        for i in chosen:
            clip = clips[i]
            if wrong == "scene":
                clip = replace(clip, scene=rng.choice([s for s in world.SCENES if s != clip.scene]))
            elif wrong:
                person = clip.people[0]
                other = rng.choice([v for v in values[wrong] if v != getattr(person, wrong)])
                clip = replace(clip, people=(replace(person, **{wrong: other}),))
            captions.append(world.caption(clip))
        times = torch.full((len(chosen),), 700)
        noise = torch.randn(latents[chosen].shape, generator=torch.Generator().manual_seed(1))
        x, _ = painter.noised(latents[chosen], times, noise)
        v = painter.unet(x, times.float(), painter.text(captions))
        return float((painter.noise[700] * x + painter.signal[700] * v - noise).pow(2).mean())

    right = error(None)
    return f"eps error {right:.4f}, with a wrong " + ", ".join(f"{w} +{error(w) - right:.4f}" for w in values)


# ------------------------------------------------------------------------------------------------------------ motion


class ClipAlbum:
    """Latents of whole clips [clips, frames, 4, 16, 16] with their weights and what they show; the first eighth are
    pairs."""

    def __init__(self, folder: Path, painter: Painter, count: int) -> None:
        self.pairs = range(count // 8)

        def make() -> tuple[dict[str, torch.Tensor], list[world.Take]]:
            rng = random.Random(8)
            stored: dict[str, list[torch.Tensor]] = {"latents": [], "weights": []}
            clips = [(pair if i in self.pairs else world.random_take)(rng) for i in range(count)]
            for clip in clips:
                frames = world.render_take(clip)
                stored["latents"].append(painter.latents([frame.image for frame in frames]))
                stored["weights"].append(torch.stack([emphasis(frame) for frame in frames]))
            return {name: torch.stack(parts) for name, parts in stored.items()}, clips

        stored, self.clips = kept(folder / f"clips-{count}.pt", make)
        self.latents: torch.Tensor = stored["latents"]
        self.weights: torch.Tensor = stored["weights"]


def clip_error(found: torch.Tensor, wanted: torch.Tensor, clean: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The squared error of one clip's v [frames, C, h, w]: its mean frame counts ``STILL``, what changes 1, or more in
    a calm clip.

    Each cell counts as ``weights`` [frames, h, w] say.  At noisy times most of the error is what the scene looks like,
    which all frames share; how they differ, the movement, is lost in it, and a small movement in the larger ones of
    other clips.
    """
    error = found - wanted
    still, liveliness = error.mean(0), float(clean.var(0, correction=0).mean())
    loudness = LIVELY / min(LIVELY, max(LIVELY / LOUDEST, liveliness))
    cells = loudness * (error - still).pow(2).mean(1) + STILL * still.pow(2).mean(0)
    return (cells * weights).sum() / weights.sum()


def train_motion(folder: Path, minutes: float, peers: Peers) -> None:
    torch.manual_seed(16 + peers.rank)
    painter = Painter(folder)
    painter.load_frames(folder)
    widths = tuple(tiny.CHANNELS * m for m in tiny.MULTIPLIERS)
    motion = MotionModel(MotionInfo("v2", widths, 32))
    motion.start(seed=16)
    for module in (painter.unet, painter.encoder, painter.table):
        module.requires_grad_(False)
    for block, at, module in list(slots(painter.unet, motion)):
        block.insert(at, module)
    named = dict(motion.named_parameters())
    stage = Stage("motion", folder, minutes, named, later_rate(folder), peers)
    album = peers.first(lambda: ClipAlbum(folder, painter, int(os.environ.get("VCD_CLIPS", "2400"))))
    parts = peers.first(lambda: Parts(folder, painter, int(os.environ.get("VCD_CLIP_PARTS", "300")), world.FRAMES))
    rng = random.Random(stage.step + 1000003 * peers.rank)
    batch, frames, held = 2, world.FRAMES, 48
    shown = album.clips[:-held]
    likelihood = [OFTEN[clip.action] for clip in shown]
    handler = lambda module, x, *_: module(x, frames)  # noqa: E731
    painter.options = {"patches": {"forward_timestep_embed_patch": [(MotionModule, handler)]}}

    def predict(
        clean: torch.Tensor, times: torch.Tensor, captions: list[str], noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clips [N, frames, C, h, w] noised, the v found in them and the true one."""
        with torch.no_grad():
            context = painter.text(captions).repeat_interleave(frames, 0)
        times = times.repeat_interleave(frames)
        x, wanted = painter.noised(clean.flatten(0, 1), times, noise.flatten(0, 1))
        return x, painter.unet(x, times.float(), context, transformer_options=painter.options), wanted

    def loss_of() -> tuple[torch.Tensor, int]:
        chosen = rng.choices(range(len(shown)), likelihood, k=batch)
        latents, weights = album.latents[chosen].float(), album.weights[chosen].float()
        clips = [album.clips[i] for i in chosen]
        ranges = rng.choices(CLIP_TIMES, [share for _, _, share in CLIP_TIMES], k=batch)
        times = [rng.randrange(low, high) for low, high, _ in ranges]
        for i, t in enumerate(times):
            enlarged = t < parts.LATEST and rng.random() < 0.5
            if enlarged:
                latents[i], clips[i] = parts.pick(rng)
            if enlarged or t >= SETTLED:
                weights[i] = 1
        keep = rng.choice((1.0, 0.75))
        captions = [world.caption(clip, keep, rng) if rng.random() > 0.1 else "" for clip in clips]
        _, found, wanted = predict(latents, torch.tensor(times), captions, torch.randn_like(latents))
        losses = [
            clip_error(one, true, clean, weight) if t >= parts.LATEST else weighted_error(one, true, weight)
            for one, true, clean, weight, t in zip(
                found.split(frames), wanted.split(frames), latents, weights, times, strict=True
            )
        ]
        return torch.stack(losses).mean(), batch * frames

    @torch.no_grad()
    def movement(action: str, t: int) -> float:
        """The share of the held-out clips' changes from frame to frame that is found at time ``t``; below 0 it is
        flicker."""
        chosen = [i for i in range(len(shown), len(album.clips)) if album.clips[i].action == action][:6]
        missed = total = 0.0
        for i in chosen:
            clean = album.latents[i : i + 1].float()
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(i))
            x, v, _ = predict(clean, torch.tensor([t]), [world.caption(album.clips[i])], noise)
            found = painter.signal[t] * x - painter.noise[t] * v
            changes, true = found - found.mean(0), clean[0] - clean[0].mean(0)
            missed, total = missed + float((changes - true).pow(2).sum()), total + float(true.pow(2).sum())
        return 1 - missed / total

    def report() -> str:
        live = {key: value.detach().clone() for key, value in named.items()}
        stage.load_average()
        rows = [painter.draw([caption] * frames, 128, 3)[::2] for caption in (SHEET[5], SHEET[6])]
        sheet(torch.cat(rows), frames // 2, folder / "motion.png")
        found = [f"{action} " + " ".join(f"{movement(action, t):.2f}" for t in (900, 700)) for action in world.ACTIONS]
        with torch.no_grad():
            for key, value in named.items():
                value.copy_(live[key])
        return "movement found at t = 900 and 700: " + ", ".join(found)

    stage.run(loss_of, report, every=600)


# ------------------------------------------------------------------------------------------------------------ export


def begin(folder: Path) -> None:
    """Let a new folder begin where an earlier training got to: its autoencoder; its frames and its motion as starts."""
    torch.save(tiny.weights_of(tiny.load_weights(), "vae"), folder / "vae.pt")
    shutil.copyfile(tiny.MODEL_FILE, folder / "start.safetensors")
    (folder / "start.txt").write_text(f"from {tiny.MODEL_FILE.name}\n")


def halfway(start: dict[str, torch.Tensor], end: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mean of two states of the same weights, in half precision.

    Frames that went on alone draw better heads, but the motion module, trained on the former ones, no longer moves some
    far walkers; halfway it does, and the heads are nearly as good.
    """
    return {key: ((start[key].float() + value.float()) / 2).half() for key, value in end.items()}


def export(folder: Path) -> None:
    """Write the averaged weights of the stages that were trained here, in half precision, where the pack finds them.

    Frames that went on from trained weights without their motion are written :func:`halfway` back.
    """
    from safetensors.torch import save_file

    found = [name for name in ("frames128", "frames64") if (folder / f"{name}.state").is_file()]
    begun = (folder / "start.txt").is_file()
    if found and not (begun and found[0] == "frames64"):
        state = torch.load(folder / f"{found[0]}.state", weights_only=True)
        weights = {key: value.half().contiguous() for key, value in state["average"].items()}
        if begun and not (folder / "motion.state").is_file():
            weights = halfway(tiny.load_weights(folder / "start.safetensors"), weights)
        weights |= {f"vae.{k}": v.half() for k, v in torch.load(folder / "vae.pt", weights_only=True).items()}
        weights["words"] = torch.tensor(Painter(folder).words.ids)
        tiny.MODEL_FILE.parent.mkdir(exist_ok=True)
        about = f"{found[0]}, {state['pictures']} pictures, {state['spent'] / 60:.0f} minutes"
        # one entry, since the library writes several in any order and equal weights should be equal files
        save_file(weights, tiny.MODEL_FILE, metadata={"training": about})
        print(f"{tiny.MODEL_FILE}: {tiny.MODEL_FILE.stat().st_size / 1e6:.1f} MB")
    if (folder / "motion.state").is_file():
        motion = MotionModel(MotionInfo("v2", tuple(tiny.CHANNELS * m for m in tiny.MULTIPLIERS), 32))
        whole = motion.state_dict() | torch.load(folder / "motion.state", weights_only=True)["average"]
        tiny.MOTION_FILE.parent.mkdir(exist_ok=True)
        save_file({key: value.half().contiguous() for key, value in whole.items()}, tiny.MOTION_FILE)
        print(f"{tiny.MOTION_FILE}: {tiny.MOTION_FILE.stat().st_size / 1e6:.1f} MB")


# -------------------------------------------------------------------------------------------------------------- main


def train(rank: int, count: int, name: str, folder: Path, minutes: float, threads: int) -> None:
    """Train one stage, as process ``rank`` of ``count``."""
    torch.set_num_threads(threads)
    peers = Peers(rank, count)
    peers.meet(folder)
    if name == "vae":
        train_vae(folder, minutes)
    elif name == "motion":
        train_motion(folder, minutes, peers)
    elif name == "frames64":
        train_frames(folder, minutes, 64, None, peers)
    else:
        train_frames(folder, minutes, 128, "frames64", peers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", nargs="*", help="which stages (all); or export")
    parser.add_argument("--from-nothing", action="store_true", help="do not begin where an earlier training got to")
    parser.add_argument("--folder", type=Path, default=HOST / "tiny")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="that train a stage together (the autoencoder is trained by one)",
    )
    for name, minutes in BUDGETS.items():
        parser.add_argument(f"--{name}", type=float, default=minutes, metavar="MINUTES")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage == ["export"]:
        export(folder)
        return 0
    if tiny.MODEL_FILE.is_file() and not arguments.from_nothing and not any(folder.glob("*.state")):
        begin(folder)
    begun = (folder / "start.txt").is_file()
    for name in BUDGETS:
        if name in arguments.stage or not (arguments.stage or (begun and name in ("vae", "frames64"))):
            count = 1 if name == "vae" else arguments.processes
            (folder / "peers").unlink(missing_ok=True)
            settings = (count, name, folder, getattr(arguments, name), arguments.threads)
            torch.multiprocessing.spawn(train, settings, nprocs=count)
    return 0


if __name__ == "__main__":
    sys.exit(main())
