"""The tiny model in this process: learn an identity and draw clips with the pack's own nodes, without a server."""

from __future__ import annotations

import importlib
import random
import sys
from functools import cached_property
from typing import Any

import torch

from vcd_core.tiny import model as tiny
from vcd_core.tiny import world
from vcd_core.tiny.world import Person

from .host import PACK
from .random_models import enter_host
from .server import host_from_environment

MOTION_END = 0.85  # where in the sampling the tiny motion ends: the last steps draw details better frame by frame
SAMPLER, CFG = "euler_ancestral", 2.0  # whose fresh noise mends what a step got wrong, such as an eye
TEMPLATE = "a close-up of a V*"
SIDE = 128


def pictures_of(
    person: Person, count: int = 6, seed: int = 0, scene: str | None = None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Close-ups of a person in different scenes (or one), with masks: what a training gets."""
    rng = random.Random(seed)
    images, masks = [], []
    for i in range(count):
        clip = world.random_take(rng, person, framing="close-up", scene=scene or world.SCENES[i % len(world.SCENES)])
        frame = world.render(clip, rng.randrange(world.FRAMES))
        images.append(torch.tensor(frame.image).float() / 255)
        masks.append(torch.from_numpy(frame.masks[0]))
    return images, masks


class Studio:
    """The pack inside this process, with the tiny model loaded."""

    def __init__(self) -> None:
        host = host_from_environment()
        enter_host(host.comfy)
        sys.argv += ["--use-pytorch-cross-attention"]
        sys.path.insert(0, str(host.base / "custom_nodes"))
        self.base = host.base
        self.model, self.clip, self.vae = self.module("nodes.tiny").load_tiny()

    @staticmethod
    def module(name: str) -> Any:
        """A module of the pack, imported as the server does."""
        return importlib.import_module(f"{PACK}.{name}")

    @cached_property
    def moving(self) -> Any:
        """The model with its motion module, for whole pictures."""
        return self.with_motion(MOTION_END)

    @cached_property
    def moving_tiles(self) -> Any:
        """The model with its motion module, for tiles: the frames alone know enlarged pictures too little to end it
        early."""
        return self.with_motion(1.0)

    def with_motion(self, end: float) -> Any:
        """The model with its motion module up to this part of the sampling."""
        motion = self.module("nodes.motion")
        name, schedule = tiny.MOTION_FILE.name, "linear (AnimateDiff)"
        return motion.MotionModuleNode.execute(self.model, name, 1.0, schedule, end_percent=end).args[0]

    def learn(
        self, person: Person, seed: int = 0, masked: bool = True, scene: str | None = None, **changes: Any
    ) -> Any:
        """An identity learned by the pack's own trainer: what goes through the socket VCD_ID."""
        training, learned = self.module("vcd_core.training"), self.module("nodes.host.learned")
        settings = training.Settings(
            **{
                "class_word": person.class_word,
                "template": TEMPLATE,
                "size": SIDE,
                "fit": training.FITS[1],
                "seed": seed,
            }
            | RECIPE
            | changes
        )
        images, masks = pictures_of(person, 6, seed, scene)
        with self.module("nodes.host.gradients").gradients():
            backend = learned.backend_of(settings.kind)(self.model, self.clip, self.vae, person.class_word)
            report = training.train(backend, images, masks if masked else None, settings)
        tokens = self.module("vcd_core.identity").IdTokens("id", report.vectors, kind=settings.kind)
        return self.module("nodes.identity").Identity(tokens, person.class_word)

    def prompt(self, text: str, *identities: Any) -> Any:
        """The conditioning of a prompt; ``V*`` is the first identity."""
        identity = self.module("nodes.identity")
        return identity.encode_prompt(self.clip, text, {f"id{i}": one for i, one in enumerate(identities)})

    @torch.inference_mode()
    def draw(
        self,
        positive: Any,
        seed: int,
        frames: int = world.FRAMES,
        gamma: Any = 0.1,
        steps: int = 12,
        moving: bool = True,
        model: Any = None,
        sampler: str = SAMPLER,
        cfg: float = CFG,
    ) -> torch.Tensor:
        """A clip [F, H, W, 3], or with ``moving`` off as many single pictures; ``model`` in place of the studio's
        own."""
        sampling, prior = self.module("nodes.host.sampling"), self.module("vcd_core.noise")
        door = self.module("nodes.host.noise")
        noise = prior.sample((frames, 4, SIDE // 8, SIDE // 8), 0.0, seed)
        settings = sampling.Sampling(steps, cfg, sampler, "normal", 1.0, seed)
        model = model or (self.moving if moving else self.model)
        model = door.with_noise_prior(model, lambda drawn, picked: prior.correlate(drawn, gamma), each_step=True)
        latent = sampling.sample(
            model, noise, positive, self.prompt(""), torch.zeros_like(noise), settings, lambda *_: None
        )
        return self.vae.decode(latent).float().cpu()


RECIPE: dict[str, Any] = {"steps": 200, "batch": 4, "learning_rate": 2e-2, "augment": False}
