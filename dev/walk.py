"""Every node once, and the video models through the stages, on the pretend device: what fails, as JSON.

python -m dev.walk [float16 | bfloat16]
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from vcd_core.tiny import world

from . import pretend, video_models
from .host import PACK
from .server import host_from_environment

SAMPLERS = ("euler_ancestral", "dpmpp_2m_sde", "uni_pc")


class Walk:
    """Steps in turn, their results, and what failed."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.nodes: dict[str, Any] = {}

    def step(self, name: str, does: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """Run a step; a failure is noted, with the last lines of ours that led there."""
        try:
            return does(*args, **named)
        except Exception as error:
            where = [f"{f.filename.split(PACK)[-1]}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[-8:]]
            self.failed[name] = f"{type(error).__name__}: {error} ({' > '.join(where)})"
            print(f"FAILED {name}: {self.failed[name]}", flush=True)
            return None

    def call(self, node_id: str, **inputs: Any) -> Any:
        """A node's outputs; inputs that are not given have their defaults."""
        node = self.nodes[node_id]
        schema = node.define_schema()
        values = {one.id: _default(one) for one in schema.inputs if _default(one) is not None} | inputs
        if schema.is_input_list:
            values = {name: [value] for name, value in values.items()}
        return node.PREPARE_CLASS_CLONE(None).execute(**values).args


def _default(one: Any) -> Any:
    found = getattr(one, "default", None)
    options = getattr(one, "options", None)
    return options[0] if found is None and options and not one.optional else found


def clip(count: int = 6, side: int = 128) -> torch.Tensor:
    take = world.random_take(random.Random(5), framing="medium")
    frames = [torch.tensor(world.render(take, i).image)[:side, :side] for i in range(count)]
    return torch.stack(frames).float() / 255


def picture_models(walk: Walk) -> None:
    """The tiny SD 1.5 through every node."""
    import comfy.samplers

    import nodes

    host: Any = nodes

    model, text, vae, *_ = walk.call("VCD_TinyModel")
    positive, negative = (
        text.encode_from_tokens_scheduled(text.tokenize(one)) for one in ("a close-up of a man on the beach", "")
    )
    moving, *_ = walk.step("motion module", walk.call, "VCD_MotionModule", model=model)
    applied, *_ = walk.step("apply", walk.call, "VCD_ApplyNoisePrior", model=moving, gamma=0.2)
    empty = {"samples": torch.zeros(4, 4, 16, 16)}

    def sampled(model: Any, sampler: str = "euler", start: Any = None, prompt: Any = positive) -> torch.Tensor:
        latent, off = start or empty, start is not None
        return host.common_ksampler(model, 3, 2, 2, sampler, "normal", prompt, negative, latent, disable_noise=off)[0]

    def with_node(node_id: str, model: Any, prompt: Any = positive, **inputs: Any) -> torch.Tensor:
        return sampled(walk.call(node_id, model=model, **inputs)[0], prompt=prompt)

    for sampler in SAMPLERS:
        walk.step(f"prior, {sampler}", sampled, applied, sampler)
    for name, more in (("schedule", {"gamma_schedule": "0: 0.1, 3: 0.4"}), ("loop", {"closed_loop": True})):
        walk.step(name, with_node, "VCD_ApplyNoisePrior", moving, gamma=0.2, **more)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    size = {"width": 128, "height": 128, "frames": 4}
    latent = walk.step("noise latent", walk.call, "VCD_NoisePriorLatent", **size, model=model, sigmas=sigmas)
    if latent:
        walk.step("from the noise latent", sampled, moving, start=latent[0])
    walk.step("noise", lambda: walk.call("VCD_NoisePrior", gamma=0.2)[0].generate_noise(empty))
    walk.step("preview", walk.call, "VCD_NoisePriorPreview", frames=4)
    tiles = {"tile_size": 96, "overlap": 32}
    for grid in ("fixed", "moving"):
        walk.step(f"tiles, {grid}", with_node, "VCD_TiledPatch", applied, **tiles, grid=grid)
    half = torch.zeros(1, 128, 128)
    half[:, :64] = 1
    limits = {"mask": half, "mask_strength": 1.0, "set_area_to_bounds": False}
    limited = [[tensor, {**options, **limits}] for tensor, options in positive]
    walk.step("tiles, masked prompt", with_node, "VCD_TiledPatch", applied, limited, **tiles)
    stages(walk, "", moving, vae, positive, negative)
    of_the_rest(walk, model, text, vae)


def stages(walk: Walk, kind: str, model: Any, vae: Any, positive: Any, negative: Any) -> None:
    """Face VCD in one node and in three, and Tiled VCD."""
    images = clip()
    drawn = {"model": model, "vae": vae, "positive": positive, "negative": negative, "cfg": 2.0, "steps": 1}
    tiles = {"scale": 1.0, "tile_size": 96, "overlap": 32}
    faces, *_ = walk.call("VCD_FaceTrack", images=images, min_length=1, threshold=0.3)
    for where, frames in (("", images), (" from the device", images.to(pretend.DEVICE))):
        inputs = {**drawn, "images": frames, "denoise": 0.5}
        walk.step(f"{kind} faces{where}", walk.call, "VCD_FaceRefine", **inputs, faces=faces, refine_size=64)
        walk.step(f"{kind} tiled{where}", walk.call, "VCD_TiledDenoise", **inputs, **tiles)
    cut = walk.step(f"{kind} crop", walk.call, "VCD_FaceCrop", images=images, faces=faces, vae=vae)
    if cut:
        refined = cut[0].to(pretend.DEVICE)
        walk.step(f"{kind} paste", walk.call, "VCD_FacePaste", images=images, crop=cut[1], refined=refined)


def of_the_rest(walk: Walk, model: Any, text: Any, vae: Any) -> None:
    """Identities, pictures, training, measuring."""
    images = clip()
    walk.step("track from the device", walk.call, "VCD_FaceTrack", images=images.to(pretend.DEVICE))
    masks = torch.ones(images.shape[:3])
    trained = {"model": model, "clip": text, "vae": vae, "steps": 3, "batch": 2, "size": 64, "name": "walk_on_device"}
    found = walk.step("train", walk.call, "VCD_IdTrainer", **trained, images=images, masks=masks, resume=False)
    if found:
        walk.step("id text encode", walk.call, "VCD_IdTextEncode", clip=text, text="V* on the beach", id=found[0])
    walk.step("evaluate", walk.call, "VCD_Evaluate", images=images.to(pretend.DEVICE))


def video(walk: Walk, kinds: Sequence[str]) -> None:
    """The host's video models, tiny: noise, tiles, faces."""
    import comfy.sample

    for kind in kinds:
        model, vae = video_models.model(kind), video_models.vae(kind)
        positive, negative = video_models.prompt(kind, 1), video_models.prompt(kind, 2)
        latent = video_models.empty(kind, 2, 4, 4)["samples"]
        noise = comfy.sample.prepare_noise(latent, 1)

        def sampled(node_id: str, latent: Any, noise: Any, prompts: Any, **inputs: Any) -> Any:
            patched = walk.call(node_id, **inputs)[0]
            return comfy.sample.sample(
                patched, noise, 2, 2.0, "euler_ancestral", "simple", *prompts, latent, seed=1, disable_pbar=True
            )

        given = latent, noise, (positive, negative)
        cell = 2 * video_models.SHAPES[kind][1]
        walk.step(f"{kind} prior", sampled, "VCD_ApplyNoisePrior", *given, model=model, gamma=0.2)
        walk.step(f"{kind} tiles", sampled, "VCD_TiledPatch", *given, model=model, tile_size=cell, overlap=0)
        stages(walk, kind, model, vae, positive, negative)


def main() -> int:
    precision, *kinds = [*sys.argv[1:]] or ["float32"]
    half = None if precision == "float32" else getattr(torch, precision)
    torch.set_num_threads(1)
    host = host_from_environment()
    pretend.host_on_it(host.comfy, half)
    sys.path.insert(0, str(host.base / "custom_nodes"))
    walk = Walk()
    pack = __import__(f"{PACK}.nodes", fromlist=["nodes"])
    walk.nodes = {node.define_schema().node_id: node for node in pack.NODES}
    with torch.inference_mode(), pretend.OnTheDevice():
        picture_models(walk)
        video(walk, kinds or [*video_models.KINDS, *video_models.WITH_SOUND])
    print(json.dumps(walk.failed))
    return 1 if walk.failed else 0


if __name__ == "__main__":
    sys.exit(main())
