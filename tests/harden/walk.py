"""Every node, and the video models through the stages, on the pretend device; what failed and what came out, as JSON.

python walk.py [--precision float16] [--fits half] [--samplers] [--on cpu] [KIND ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dev import pretend, random_models, video_models
from dev.host import PACK
from dev.server import host_from_environment
from vcd_core.identity import KINDS
from vcd_core.tiny import world

HERE = Path(__file__).resolve().parent
FRAMES = 3
FEW = ("euler_ancestral", "dpmpp_2m_sde", "uni_pc")  # one of each way to draw noise


class Walk:
    """Steps in turn, what came out of them, and what failed."""

    def __init__(self, precision: torch.dtype, samplers: Sequence[str]) -> None:
        self.precision, self.samplers = precision, samplers
        self.failed: dict[str, str] = {}
        self.results: dict[str, list[list[float]]] = {}
        self.nodes: dict[str, Any] = {}
        self.called: set[str] = set()

    def step(self, name: str, does: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """Run a step; a failure is noted, with the last lines of ours that led there."""
        try:
            found = does(*args, **named)
            self.results[name] = [_looks(tensor) for tensor in _tensors(found)]
            return found
        except Exception as error:
            ours = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
            where = [f"{f.filename.split(PACK)[-1]}:{f.lineno}" for f in ours[-8:]]
            self.failed[name] = f"{type(error).__name__}: {error} ({' > '.join(where)})"
            print(f"FAILED {name}: {self.failed[name]}", flush=True)
            return None

    def call(self, node_id: str, **inputs: Any) -> Any:
        """A node's outputs; inputs that are not given have their defaults."""
        node = self.nodes[node_id]
        schema = node.define_schema()
        values = {one.id: _default(one) for one in schema.inputs if _default(one) is not None} | inputs
        if schema.is_input_list:
            values = {name: _listed(value) for name, value in values.items()}
        self.called.add(node_id)
        return node.PREPARE_CLASS_CLONE(None).execute(**values).args

    def in_precision(self, model: Any) -> Any:
        """The same MODEL, its weights as the host would load them where it chooses this precision."""
        if self.precision != torch.float32:
            model.model.diffusion_model.to(self.precision)
            model.model.diffusion_model.dtype = self.precision
        return model


def _listed(value: Any) -> Any:
    return {name: [one] for name, one in value.items()} if isinstance(value, dict) else [value]


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in a node's outputs, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if getattr(value, "is_nested", False):
        return _tensors(value.unbind())
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _looks(tensor: torch.Tensor) -> list[float]:
    """Mean, deviation, and a few of the values."""
    flat = tensor.detach().cpu().double().flatten()
    if not flat.numel():
        return []
    few = flat[:: max(1, len(flat) // 16)][:16]
    return [float(flat.mean()), float(flat.std(unbiased=False)), *few.tolist()]


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
    model, text, vae, *_ = walk.call("VCD_TinyModel")
    model = walk.in_precision(model)
    positive, negative = (
        text.encode_from_tokens_scheduled(text.tokenize(one)) for one in ("a close-up of a man on the beach", "")
    )
    moving, *_ = walk.step("motion module", walk.call, "VCD_MotionModule", model=model)
    noise(walk, moving, positive, negative)
    tiles(walk)
    stages(walk, "", moving, vae, positive, negative)
    people(walk, model, text, negative)
    identity(walk, model, text, vae)
    measuring(walk, text)


def sample(
    model: Any, positive: Any, negative: Any, sampler: str = "euler", start: Any = None, steps: int = 2
) -> torch.Tensor:
    """A few frames drawn; ``start``: a latent with noise in it, in place of an empty one."""
    import nodes

    host: Any = nodes
    latent = start or {"samples": torch.zeros(FRAMES, 4, 16, 16)}
    drawn = host.common_ksampler(
        model, 3, steps, 2.0, sampler, "normal", positive, negative, latent, disable_noise=start is not None
    )
    found: torch.Tensor = drawn[0]["samples"]
    return found


def noise(walk: Walk, model: Any, positive: Any, negative: Any) -> None:
    """The 3D noise prior in all of its nodes, and through the samplers."""
    import comfy.samplers

    given = {"model": model, "gamma": 0.2}
    more: dict[str, dict[str, Any]] = {"schedule": {"gamma_schedule": "0: 0.1, 2: 0.4"}, "loop": {"closed_loop": True}}
    for name, changes in more.items():
        patched, *_ = walk.call("VCD_ApplyNoisePrior", **given, **changes)
        walk.step(f"prior, {name}", sample, patched, positive, negative)
    applied, *_ = walk.call("VCD_ApplyNoisePrior", **given)
    for sampler in walk.samplers:
        walk.step(f"prior, {sampler}", sample, applied, positive, negative, sampler)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 3)
    size = {"width": 128, "height": 128, "frames": FRAMES}
    latent = walk.step("noise latent", walk.call, "VCD_NoisePriorLatent", **size, model=model, sigmas=sigmas)
    if latent:
        walk.step("from the noise latent", sample, model, positive, negative, start=latent[0])
    empty = {"samples": torch.zeros(FRAMES, 4, 16, 16)}
    walk.step("noise", lambda: walk.call("VCD_NoisePrior", gamma=0.2)[0].generate_noise(empty))
    walk.step("noise preview", walk.call, "VCD_NoisePriorPreview", frames=FRAMES)


def tiles(walk: Walk) -> None:
    """Tiles under all that a conditioning may be limited to, or be given beside its text."""
    model, text, _ = made(lambda: random_models.tiny_sd15(dtype=walk.precision))
    positive, negative = (text.encode_from_tokens_scheduled(text.tokenize(one)) for one in ("a man", ""))
    half = torch.zeros(1, 128, 128)
    half[:, :64] = 1
    net = made(random_models.tiny_controlnet).copy().set_cond_hint(clip(FRAMES).movedim(-1, 1), 0.7, (0.0, 1.0))
    kinds: dict[str, dict[str, Any]] = {
        "mask": {"mask": half, "mask_strength": 1.0, "set_area_to_bounds": False},
        "mask on the device": {"mask": half.to(where()), "mask_strength": 1.0, "set_area_to_bounds": True},
        "area": {"area": (8, 16, 4, 0), "strength": 0.8},
        "part of the area": {"area": ("percentage", 0.5, 1.0, 0.25, 0.0), "strength": 0.8},
        "control": {"control": net, "control_apply_to_uncond": True},
        "pictures to inpaint": {"concat_latent_image": torch.ones(1, 4, 16, 16), "concat_mask": half[:, None]},
        "times": {"start_percent": 0.0, "end_percent": 0.5},
    }
    for grid in ("fixed", "moving"):
        patched, *_ = walk.call("VCD_TiledPatch", model=model, tile_size=96, overlap=32, grid=grid)
        walk.step(f"tiles, {grid}", sample, patched, positive, negative)
    for kind, limits in kinds.items():
        limited = [[tensor, {**options, **limits}] for tensor, options in positive]
        walk.step(f"tiles, {kind}", sample, patched, limited, negative, steps=1)


def stages(walk: Walk, kind: str, model: Any, vae: Any, positive: Any, negative: Any) -> None:
    """Face VCD in one node and in three, and Tiled VCD."""
    images = clip()
    drawn = {"model": model, "vae": vae, "positive": positive, "negative": negative, "cfg": 2.0, "steps": 1}
    tiles = {"scale": 1.0, "tile_size": 96, "overlap": 32}
    faces, *_ = walk.call("VCD_FaceTrack", images=images, min_length=1, threshold=0.3)
    for place, frames in (("", images), (" from the device", images.to(where()))):
        inputs = {**drawn, "images": frames, "denoise": 0.5}
        walk.step(f"{kind} faces{place}", walk.call, "VCD_FaceRefine", **inputs, faces=faces, refine_size=64)
        walk.step(f"{kind} tiled{place}", walk.call, "VCD_TiledDenoise", **inputs, **tiles)
    cut = walk.step(f"{kind} crop", walk.call, "VCD_FaceCrop", images=images, faces=faces, vae=vae)
    if cut:
        refined = cut[0].to(where())
        walk.step(f"{kind} paste", walk.call, "VCD_FacePaste", images=images, crop=cut[1], refined=refined)


def people(walk: Walk, model: Any, text: Any, negative: Any) -> None:
    """Two people, each bound to a place."""
    both = {f"people{i}": text.encode_from_tokens_scheduled(text.tokenize(one)) for i, one in enumerate("ab")}
    given = {"model": model, "clip": text, "prompt": "", "places": "left\nright", "frames": FRAMES}
    found = walk.step("cast", walk.call, "VCD_Cast", **given, people=both, ids={}, everybody=negative)
    if found:
        walk.step("two people", sample, found[0], found[1], negative)
        patched, *_ = walk.call("VCD_TiledPatch", model=found[0], tile_size=96, overlap=32)
        walk.step("two people in tiles", sample, patched, found[1], negative)


def identity(walk: Walk, model: Any, text: Any, vae: Any) -> None:
    """Pictures, segmentation, learning an identity in both ways, and prompts with it."""
    import folder_paths
    from PIL import Image

    images = clip()
    folder = Path(folder_paths.get_input_directory()) / "walk"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images[:2]):
        Image.fromarray(image.mul(255).byte().cpu().numpy()).save(folder / f"{i}.png")
    walk.step("pictures", walk.call, "VCD_Pictures", folder="walk")
    walk.step("tiny clip", walk.call, "VCD_TinyClip", frames=2)
    segmentation(walk, images)
    trained: dict[str, Any] = {"model": model, "clip": text, "vae": vae, "steps": 3, "batch": 2, "size": 64}
    for kind in KINDS:
        masks = torch.ones(images.shape[:3])
        inputs = {**trained, "images": images, "masks": masks, "name": f"walk_{kind}", "resume": False, "kind": kind}
        found = walk.step(f"train {kind}", walk.call, "VCD_IdTrainer", **inputs)
        if found:
            ids = {"clip": text, "prompt": "V* on the beach", "ids": {"id0": found[0]}}
            walk.step(f"encode {kind}", walk.call, "VCD_IdTextEncode", **ids)
            saved = walk.step(f"save {kind}", walk.call, "VCD_IdSave", id=found[0], name=f"walk_{kind}", overwrite=True)
            walk.step(f"load {kind}", walk.call, "VCD_IdLoader", file=saved[0], strength=0.5)


def segmentation(walk: Walk, images: torch.Tensor) -> None:
    import folder_paths
    import test_segmentation as core

    from dev import clips

    models = Path(folder_paths.models_dir)
    try:
        core.write_dino(models / "grounding-dino" / "walk")
    except clips.Missing:
        walk.called.add("VCD_PromptToSegmentation")
        return
    core.write_sam(models / "sams" / "walk")
    inputs = {"detector": "walk", "segmenter": "walk", "threshold": 0.0, "text_threshold": 0.0, "if_none": "empty mask"}
    for place, frames in (("", images[:2]), (" on the device", images[:2].to(where()))):
        walk.step(f"segmentation{place}", walk.call, "VCD_PromptToSegmentation", images=frames, **inputs)


def measuring(walk: Walk, text: Any) -> None:
    """All figures that need no file of others, of frames that another node left on the device."""
    import vcd_test_nodes

    images = clip().to(where())
    eyes = {
        kind: made(partial(vcd_test_nodes.Vision.execute, kind, width)).args[0]
        for kind, width in (("clip", 64), ("dino", 48))
    }
    seen = {"clip_vision": eyes["clip"], "dino": eyes["dino"], "clip": text, "prompt": "a man walking"}
    seen["clip"] = made(random_models.tiny_sd15)[1]
    faces, *_ = walk.call("VCD_FaceTrack", images=images, min_length=1, threshold=0.3)
    walk.step("evaluate", walk.call, "VCD_Evaluate", images=images, references=images[:2], faces=faces, **seen)
    both = {"clips0": images, "clips1": images.flip(2)}
    walk.step("compare", walk.call, "VCD_Compare", clips=both, references=images[:2], **seen)


def made(make: Callable[[], Any]) -> Any:
    """A model whose random weights are put in here: a host that loads dynamically has none before it reads a file."""
    import comfy.memory_management as memory

    lazily = getattr(memory, "aimdo_enabled", False)
    memory.aimdo_enabled = False
    try:
        return make()
    finally:
        memory.aimdo_enabled = lazily


def where() -> Any:
    """The device on which the host computes."""
    import comfy.model_management

    return comfy.model_management.get_torch_device()


def video(walk: Walk, kinds: Sequence[str]) -> None:
    """The host's video models, tiny: noise, tiles, faces."""
    import comfy.sample

    for kind in kinds:
        model = made(partial(video_models.model, kind, dtypes=(walk.precision, None)))
        vae = made(partial(video_models.vae, kind))
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--fits", default="whole", choices=pretend.MEMORY)
    parser.add_argument("--on", default="pretend", choices=["pretend", "cpu"])
    parser.add_argument("--samplers", action="store_true", help="all that the host has")
    parser.add_argument("kinds", nargs="*", default=[*video_models.KINDS, *video_models.WITH_SOUND])
    return parser.parse_args()


def enter(given: argparse.Namespace) -> Walk:
    """The host and the pack in this process."""
    host = host_from_environment()
    precision = getattr(torch, given.precision)
    if given.on == "cpu":
        random_models.enter_host(host.comfy)
    else:
        pretend.host_on_it(host.comfy, None if precision == torch.float32 else precision, given.fits)
    import comfy.samplers
    import folder_paths

    base = Path(tempfile.mkdtemp())
    folder_paths.set_output_directory(str(base / "output"))
    folder_paths.set_input_directory(str(base / "input"))
    folder_paths.set_temp_directory(str(base / "temp"))
    folder_paths.models_dir = str(base / "models")
    (base / "models" / "embeddings").mkdir(parents=True)
    folder_paths.folder_names_and_paths["embeddings"] = ([str(base / "models" / "embeddings")], {".safetensors"})
    sys.path[:0] = [str(host.base / "custom_nodes"), str(HERE.parent / "core"), str(HERE.parent / "host")]
    walk = Walk(precision, comfy.samplers.KSampler.SAMPLERS if given.samplers else FEW)
    pack = __import__(f"{PACK}.nodes", fromlist=["nodes"])
    walk.nodes = {node.define_schema().node_id: node for node in pack.NODES}
    return walk


def one_noise() -> None:
    """Let samplers add the same noise on every device; the host draws it there, and for a CPU from another seed."""
    from comfy.k_diffusion import sampling

    def drawn(x: torch.Tensor, seed: int | None = None) -> Callable[..., torch.Tensor]:
        generator = torch.Generator().manual_seed(seed or 0)
        return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator).to(x)

    sampling.default_noise_sampler = drawn


def main() -> int:
    given = arguments()
    torch.set_num_threads(1)
    if given.precision == "bfloat16":  # oneDNN's with AMX differ from run to run, NaN among what they give
        torch.backends.mkldnn.enabled = False
    walk = enter(given)
    one_noise()
    with torch.inference_mode(), pretend.OnTheDevice() if given.on == "pretend" else contextlib.nullcontext():
        picture_models(walk)
        video(walk, given.kinds)
    never = sorted(set(walk.nodes) - walk.called)
    print(json.dumps({"failed": walk.failed, "results": walk.results, "never called": never}))
    return 1 if walk.failed or never else 0


if __name__ == "__main__":
    sys.exit(main())
