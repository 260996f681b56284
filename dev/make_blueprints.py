"""Writes the blocks that ComfyUI's node search offers, each a stage with the few inputs that matter:
``python -m dev.make_blueprints`` with a host set up (``python run.py demo``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .graph import Blueprint, Out
from .host import ROOT, prepare
from .make_workflows import MOTION, NEGATIVE, ids
from .server import Server

BLOCKS = ROOT / "subgraphs"

CAREFUL = {"redraw": "head", "paste_by": "change", "feather_share": 0.15}
FLOW = {"cfg": 5.0, "sampler_name": "uni_pc", "scheduler": "simple", "denoise_by": "noise"}


def _clip_and_model(block: Blueprint) -> dict[str, Any]:
    """The sockets of a stage that draws a clip anew."""
    kinds = {
        "images": "IMAGE",
        "model": "MODEL",
        "vae": "VAE",
        "positive": "CONDITIONING",
        "negative": "CONDITIONING",
    }
    return {name: block.socket(name, kind) for name, kind in kinds.items()}


def _faces(block: Blueprint, denoise: float, size: int, **settings: Any) -> None:
    given = _clip_and_model(block)
    pick = block.socket("pick", "BOUNDING_BOX", optional=True)
    small = block.widget("small_faces", False)
    widgets: dict[str, Any] = {
        "denoise": block.widget("denoise", denoise),
        "refine_size": block.widget("refine_size", size),
        "seed": block.widget("seed", 1),
    }
    faces = block.add("VCD_FaceTrack", images=given["images"], small_faces=small)
    refined = block.add("VCD_FaceRefine", faces=faces, pick=pick, **given, **widgets, **settings)
    block.gives("images", refined)
    block.gives("before and after", Out(refined.node, 1))


def refine_faces(block: Blueprint) -> None:
    _faces(block, 0.5, 512, **CAREFUL)


def refine_faces_of_video_models(block: Blueprint) -> None:
    _faces(block, 0.5, 512, **CAREFUL, **FLOW)


def enlarge_in_tiles(block: Blueprint) -> None:
    given = _clip_and_model(block)
    better = block.socket("upscale_model", "UPSCALE_MODEL", optional=True)
    widgets: dict[str, Any] = {
        name: block.widget(name, value) for name, value in (("scale", 2.0), ("denoise", 0.2), ("seed", 1))
    }
    block.gives("images", block.add("VCD_TiledDenoise", upscale_model=better, **given, **widgets))


def learn_an_identity(block: Blueprint) -> None:
    kinds = {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "images": "IMAGE"}
    given: dict[str, Any] = {name: block.socket(name, kind) for name, kind in kinds.items()}
    masks = block.socket("masks", "MASK", optional=True)
    name = block.widget("name", "my_id")
    widgets: dict[str, Any] = {
        key: block.widget(key, value)
        for key, value in {"class_word": "man", "steps": 200, "size": 512, "kind": "tokens"}.items()
    }
    trained = block.add("VCD_IdTrainer", masks=masks, name=name, **given, **widgets)
    block.add("VCD_IdSave", id=trained, name=name)
    block.gives("id", trained)
    block.gives("samples", Out(trained.node, 2))


def video_of_a_person(block: Blueprint) -> None:
    model, clip, vae, identity = (
        block.socket(name, kind)
        for name, kind in (("model", "MODEL"), ("clip", "CLIP"), ("vae", "VAE"), ("id", "VCD_ID"))
    )
    prompt = block.widget("prompt", "photo of V*, walking on the beach, smiling")
    module, gamma, seed = (
        block.widget(name, value) for name, value in (("motion_module", MOTION[0]), ("gamma", 0.1), ("seed", 1))
    )
    size: dict[str, Any] = {
        name: block.widget(name, value) for name, value in (("width", 512), ("height", 512), ("batch_size", 16))
    }
    moving = block.add("VCD_MotionModule", model=model, motion_module=module)
    moving = block.add("VCD_ApplyNoisePrior", model=moving, gamma=gamma)
    positive = block.add("VCD_IdTextEncode", clip=clip, prompt=prompt, **ids(identity))
    negative = block.add("CLIPTextEncode", clip=clip, text=NEGATIVE)
    latent = block.add("EmptyLatentImage", **size)
    sampled = block.add(
        "KSampler", model=moving, positive=positive, negative=negative, latent_image=latent, seed=seed, steps=20,
        cfg=8.0, sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    block.gives("images", block.add("VAEDecode", samples=sampled, vae=vae))


BLUEPRINTS: dict[str, tuple[str, Callable[[Blueprint], None]]] = {
    "Refine faces": (
        "Face VCD in one block: finds the faces of a clip and draws each anew, like the person of the prompt.",
        refine_faces,
    ),
    "Refine faces (video model)": (
        "Face VCD for Wan, LTX, HunyuanVideo and other flow models, in one block.",
        refine_faces_of_video_models,
    ),
    "Enlarge a clip in tiles (upscale)": (
        "Tiled VCD in one block: enlarges a clip and draws its details anew, tile by tile.",
        enlarge_in_tiles,
    ),
    "Learn an identity (train)": (
        "Learns a person, pet or thing from a few masked pictures and saves it, in one block.",
        learn_an_identity,
    ),
    "Video of a person (text to video)": (
        "SD 1.5 with an AnimateDiff motion module: a clip of the identity, from correlated noise, in one block.",
        video_of_a_person,
    ),
}


def main() -> None:
    BLOCKS.mkdir(exist_ok=True)
    with Server(prepare(None), arguments=("--disable-api-nodes",)) as server:
        info = server.get("/object_info")
    for name, (description, draw) in BLUEPRINTS.items():
        block = Blueprint(info, name, description)
        draw(block)
        block.save(BLOCKS / f"{name}.json")
        print(f"wrote subgraphs/{name}.json: {len(block.nodes)} nodes")


if __name__ == "__main__":
    main()
