"""Writes the bundled graphs: ``python -m dev.make_workflows`` with a host set up (``python run.py demo``).

The graphs are drawn here rather than by hand so that widgets, sockets and layout follow the nodes as they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .graph import Graph, Out
from .host import ROOT, link, prepare
from .server import Server
from .studio import CFG, MOTION_END, SAMPLER

WORKFLOWS = ROOT / "workflows"


def noise_prior(graph: Graph) -> None:
    graph.column("1. What gamma does", 380)
    graph.note(
        "**3D noise prior.** The initial noise of a clip is correlated along time: `gamma` is how much each frame's "
        "noise keeps of the one before. 0 is ComfyUI's own noise, 0.1 the paper's value, 1 a single noise for all.\n\n"
        "This graph needs no model. Change gamma, queue again, and watch the clip: the noise drifts instead of "
        "flickering."
    )
    preview = graph.add("VCD_NoisePriorPreview", frames=16, gamma=0.8, seed=1, tall=420)
    graph.column("2. Keep it", 380)
    graph.add("SaveImage", images=preview, filename_prefix="vcd/noise_prior", tall=330)
    video = graph.add("CreateVideo", images=Out(preview.node, 1), fps=8.0)
    graph.add("SaveVideo", video=video, filename_prefix="vcd/noise_prior", tall=420)


TINY_PROMPT = "a photo of a V*, waving on the beach"
TINY_FACE = "a close-up of a V*, standing on the beach"
TINY_MOTION = "vcd_tiny_motion.safetensors"
TINY_ID = "vcd_tiny_robin.safetensors"
TALL_VIDEO = 480  # room for the clip below the widgets, which the page adds once there is one
TALL_TRACK = 620
TALL_ID = 260
TALL_TRAINER = 820


Stage = tuple[Out, Out, Out, Out]  # model, VAE, positive and negative


def ids(*identities: Out) -> dict[str, Any]:
    """Identities as the sockets of VCD ID Text Encode."""
    return {f"ids.id{i}": identity for i, identity in enumerate(identities)}


def tiny_column(graph: Graph) -> tuple[Stage, Out]:
    """The embedded model with its motion and identity; and the prompt for the face."""
    graph.column("1. Model, identity, prompt", 340)
    graph.note(
        "The tiny model ships with the pack: cartoon people at 128x128, no download. `V*` in the prompt is the "
        "identity: four "
        "learned tokens of a person that the model has never seen. The help page of VCD Tiny Model lists its words."
    )
    checkpoint = graph.add("VCD_TinyModel")
    model = graph.add("VCD_MotionModule", model=checkpoint, motion_module=TINY_MOTION, end_percent=MOTION_END, tall=250)
    model = graph.add("VCD_ApplyNoisePrior", model=model, gamma=0.1)
    clip, vae = Out(checkpoint.node, 1), Out(checkpoint.node, 2)
    identity = graph.add("VCD_IdLoader", file=TINY_ID, class_word="", tall=TALL_ID)
    positive = graph.add("VCD_IdTextEncode", clip=clip, prompt=TINY_PROMPT, title="Prompt", tall=200, **ids(identity))
    face = graph.add("VCD_IdTextEncode", clip=clip, prompt=TINY_FACE, title="Face prompt", tall=200, **ids(identity))
    negative = graph.add("CLIPTextEncode", clip=clip, text="", title="Negative prompt", tall=120)
    return (model, vae, positive, negative), face


def quickstart(graph: Graph) -> tuple[Out, Out, Out, Out]:
    """Returns the prompt, that of the face, the sampler, and the saved video."""
    (model, vae, positive, negative), face = tiny_column(graph)
    checkpoint = vae.node
    graph.column("2. T2V VCD", 340)
    graph.note("Sixteen frames whose initial noise is correlated with gamma 0.1 (the 3D Gaussian noise prior).")
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=16)
    sampled = graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=2, steps=20,
        cfg=CFG, sampler_name=SAMPLER, scheduler="normal", tall=270,
    )  # fmt: skip
    frames = graph.add("VAEDecode", samples=sampled, vae=vae)
    graph.add("PreviewImage", images=frames, title="Frames", tall=300)
    graph.column("3. Face VCD", 340)
    graph.note(
        "The face is found, tracked, cut out, drawn anew at its own 128x128 with a prompt of its own, and put back."
    )
    faces = graph.add("VCD_FaceTrack", images=frames, small_faces=True, tall=TALL_TRACK)
    refined = graph.add(
        "VCD_FaceRefine", images=frames, model=model, vae=vae, positive=face, negative=negative, faces=faces, seed=2,
        steps=20, cfg=2.5, denoise=0.6, refine_size=128, redraw="head", paste_by="change", feather_share=0.15,
    )  # fmt: skip
    graph.column("4. Tiled VCD", 340)
    graph.note(
        "Enlarged to 256x256, refined in overlapping tiles. The tiny model has learned whole pictures only, so here "
        "the last 10 % is "
        "drawn anew, with motion to the end; SD 1.5 takes the paper's 20 % and the motion of the other stages."
    )
    model = graph.add(
        "VCD_MotionModule", model=Out(checkpoint, 0), motion_module=TINY_MOTION, title="Motion for tiles", tall=250
    )
    tiled = graph.add(
        "VCD_TiledDenoise", images=refined, model=model, vae=vae, positive=positive, negative=negative, seed=2,
        steps=20, cfg=1.0, denoise=0.1, tile_size=128, overlap=32,
    )  # fmt: skip
    return positive, face, sampled, save_column(graph, tiled, "quickstart", before=frames)


def quickstart_app(graph: Graph) -> None:
    prompt, face, sampled, saved = quickstart(graph)
    graph.app([(prompt, "prompt"), (face, "prompt"), (sampled, "seed")], saved)


SD15 = (
    "v1-5-pruned-emaonly-fp16.safetensors",
    "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    "checkpoints",
)
SDXL = (
    "sd_xl_base_1.0.safetensors",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/sd_xl_base_1.0.safetensors",
    "checkpoints",
)
MOTION = (
    "mm_sd_v15_v2.ckpt",
    "https://huggingface.co/guoyww/animatediff/resolve/main/mm_sd_v15_v2.ckpt",
    "animatediff_models",
)
NEGATIVE = "blurry, deformed, watermark, text"


ID = "vcd/my_id.safetensors"


def model_column(
    graph: Graph, prompt: str, gamma: bool = True, motion: bool = True, freeu: bool = False, frames: int = 16
) -> Stage:
    """Checkpoint, motion, identity and prompts."""
    graph.column("1. Model, identity, prompt", 340)
    graph.note(
        "SD 1.5 or a finetune of it in `models/checkpoints`, an AnimateDiff motion module in "
        "`models/animatediff_models`. "
        "`V*` in the prompt is the identity: any embedding of SD 1.5 serves; `04_train_identity` makes one of your "
        "pictures."
    )
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=SD15[0])
    graph.models(checkpoint, SD15)
    model = checkpoint
    if motion:
        model = graph.add("VCD_MotionModule", model=model, motion_module=MOTION[0], tall=250)
        graph.models(model, MOTION)
    if gamma:
        model = graph.add("VCD_ApplyNoisePrior", model=model, gamma=0.1)
    if freeu:
        model = graph.add("FreeU_V2", model=model, b1=1.1, b2=1.2, s1=0.9, s2=0.4)
    clip = Out(checkpoint.node, 1)
    identity = graph.add("VCD_IdLoader", file=ID, class_word="", tall=TALL_ID)
    positive = graph.add(
        "VCD_IdTextEncode", clip=clip, prompt=prompt, frames=frames, title="Prompt", tall=220, **ids(identity)
    )
    negative = graph.add("CLIPTextEncode", clip=clip, text=NEGATIVE, title="Negative prompt", tall=140)
    return model, Out(checkpoint.node, 2), positive, negative


def save_column(graph: Graph, images: Out, name: str, loaded: Out | None = None, before: Out | None = None) -> Out:
    """A video of the frames: at 8 a second, or with the speed and the sound of the one that was loaded; beside what it
    was ``before`` or the one that was loaded.  Returns the node that saves it."""
    before = before or loaded
    if before is not None:
        graph.column("Compare", 420)
        graph.note("In Nodes 2.0 move the line with the mouse; the arrows show the next frames.", 90)
        graph.add("ImageCompare", image_a=before, image_b=images, tall=520)
    graph.column("Save", 380)
    like = {"fps": 8.0} if loaded is None else {"audio": Out(loaded.node, 1), "fps": Out(loaded.node, 2)}
    video = graph.add("CreateVideo", images=images, **like)
    return graph.add("SaveVideo", video=video, filename_prefix=f"vcd/{name}", tall=TALL_VIDEO)


def load_column(
    graph: Graph,
    note: str = "Choose your clip in Load Video. Any clip, whatever model made it. Sixteen frames at a time; "
    "longer clips need Context Windows (Manual).",
) -> Out:
    graph.column("0. The clip", 320)
    graph.note(note)
    video = graph.add("LoadVideo", tall=TALL_VIDEO)
    return graph.add("GetVideoComponents", video=video)


def sample_column(graph: Graph, stage: Stage, frames: int = 16) -> Out:
    """The first stage with the paper's settings; returns the frames."""
    model, vae, positive, negative = stage
    latent = graph.add("EmptyLatentImage", width=512, height=512, batch_size=frames)
    sampled = graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=1, steps=20, cfg=8.0,
        sampler_name="dpmpp_2m", scheduler="karras", tall=270,
    )  # fmt: skip
    return graph.add("VAEDecode", samples=sampled, vae=vae)


def t2v_builtin_motion(graph: Graph) -> None:
    stage = model_column(graph, "photo of V*, walking on the beach, smiling")
    graph.column("2. Sixteen frames", 340)
    graph.note("The paper's settings: 16 frames of 512x512, dpmpp_2m / karras, 20 steps, cfg 8, gamma 0.1.")
    save_column(graph, sample_column(graph, stage), "t2v")


def t2v_animatediff_evolved(graph: Graph) -> None:
    model, vae, positive, negative = model_column(
        graph, "photo of V*, walking on the beach, smiling", gamma=False, motion=False
    )
    graph.column("2. AnimateDiff-Evolved", 360)
    graph.note(
        "Needs the pack **ComfyUI-AnimateDiff-Evolved**: its loader and its context options in place of ours. The "
        "noise prior "
        "works behind it just the same."
    )
    context = graph.add("ADE_StandardStaticContextOptions", context_length=16, context_overlap=2)
    model = graph.add(
        "ADE_AnimateDiffLoaderGen1", model=model, context_options=context, model_name=MOTION[0],
        beta_schedule="autoselect", tall=260,
    )  # fmt: skip
    graph.models(model, MOTION)
    model = graph.add("VCD_ApplyNoisePrior", model=model, gamma=0.1)
    graph.column("3. Sixteen frames", 340)
    save_column(graph, sample_column(graph, (model, vae, positive, negative)), "t2v_ade")


HUB = "https://huggingface.co"


SAM3 = "sam3.1_multiplex_fp16.safetensors"


def grounded(graph: Graph, images: Out) -> Out:
    graph.note(
        f"Put the folders [grounding-dino-tiny]({HUB}/IDEA-Research/grounding-dino-tiny) into "
        f"`models/grounding-dino/` and "
        f"[sam-vit-base]({HUB}/facebook/sam-vit-base) into `models/sams/`, each with its config.json."
    )
    found = graph.add(
        "VCD_PromptToSegmentation", images=images, prompt="a man", detector="grounding-dino-tiny",
        segmenter="sam-vit-base", tall=420,
    )  # fmt: skip
    return found


def sam3(graph: Graph, images: Out) -> Out:
    graph.note(
        "SAM 3 finds and cuts in one model. Any MASK serves: nothing of this pack is needed for it. Older ComfyUI "
        "(0.16.3) does "
        "not have it."
    )
    sam = graph.add("CheckpointLoaderSimple", ckpt_name=SAM3)
    graph.models(sam, (SAM3, f"{HUB}/Comfy-Org/sam3.1/resolve/main/checkpoints/{SAM3}", "checkpoints"))
    words = graph.add("CLIPTextEncode", clip=Out(sam.node, 1), text="a man")
    return graph.add("SAM3_Detect", model=sam, image=images, conditioning=words, tall=260)


def prompt_to_segmentation(graph: Graph) -> None:
    graph.column("0. Pictures", 320)
    graph.note(
        "A picture. For those of a folder put VCD Pictures in its place, for a clip Load Video and Get Video "
        "Components: each is looked at on its own."
    )
    images = graph.add("LoadImage", tall=330)
    graph.column("1. Grounding DINO and SAM", 380)
    found = grounded(graph, images)
    graph.add("MaskPreview", mask=found, tall=260)
    graph.add("PreviewImage", images=Out(found.node, 2), title="Overlay", tall=260)
    graph.column("2. Or ComfyUI's own SAM 3", 380)
    graph.add("MaskPreview", mask=sam3(graph, images), tall=260)


Teacher = tuple[Out, Out, Out, dict[str, Any]]  # model, CLIP, VAE, and what the trainer is set to


def sd15_teacher(graph: Graph) -> Teacher:
    graph.note(
        "Plain SD 1.5 teaches best; use the identity in its finetunes. 200 steps are the paper's, 400 the release's."
    )
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=SD15[0])
    graph.models(checkpoint, SD15)
    return checkpoint, Out(checkpoint.node, 1), Out(checkpoint.node, 2), {}


def learned(graph: Graph, segment: Callable[[Graph, Out], Out], teacher: Callable[[Graph], Teacher]) -> tuple[Out, ...]:
    """From pictures to an identity file; returns the identity, and the model, CLIP and VAE that it was learned on."""
    graph.column("0. Pictures", 320)
    graph.note(
        "Three to ten pictures of one person, pet or thing, in a folder of their own under ComfyUI's `input` folder. "
        "Press R, "
        "then choose it. Say what it is (a man, a dog, a cup) in the words for the masks and in `class_word`; VCD ID "
        "Loader finds it in the saved file."
    )
    images = graph.add("VCD_Pictures", folder="my_pictures", tall=120)
    graph.column("1. Masks", 380)
    masks = segment(graph, images)
    graph.add("MaskPreview", mask=masks, tall=260)
    graph.column("2. Train", 360)
    model, clip, vae, settings = teacher(graph)
    trained = graph.add(
        "VCD_IdTrainer", model=model, clip=clip, vae=vae, images=images, masks=masks, tall=TALL_TRAINER,
        **{"name": "my_id", **settings},
    )  # fmt: skip
    graph.column("3. Look and keep", 380)
    graph.add("VCD_IdSave", id=trained, name=f"vcd/{settings.get('name', 'my_id')}", tall=140)
    graph.add("LossGraphNode", loss=Out(trained.node, 1), filename_prefix="vcd/loss", tall=320)
    graph.add("PreviewImage", images=Out(trained.node, 2), title="Samples", tall=320)
    return trained, model, clip, vae


def train_identity(graph: Graph) -> None:
    learned(graph, grounded, sd15_teacher)


def person_to_video_app(graph: Graph) -> None:
    trained, checkpoint, clip, vae = learned(graph, grounded, sd15_teacher)
    graph.column("4. A video of it", 360)
    graph.note("The person of the pictures in a clip of sixteen frames, from correlated noise.")
    model = graph.add("VCD_MotionModule", model=checkpoint, motion_module=MOTION[0], tall=250)
    graph.models(model, MOTION)
    model = graph.add("VCD_ApplyNoisePrior", model=model, gamma=0.1)
    prompt = "photo of V*, walking on the beach, smiling"
    positive = graph.add("VCD_IdTextEncode", clip=clip, prompt=prompt, title="Prompt", tall=220, **ids(trained))
    negative = graph.add("CLIPTextEncode", clip=clip, text=NEGATIVE, title="Negative prompt", tall=140)
    frames = sample_column(graph, (model, vae, positive, negative))
    saved = save_column(graph, frames, "person")
    graph.app([(graph.first("VCD_Pictures"), "folder"), (trained, "class_word"), (positive, "prompt")], saved)


def train_identity_sam3(graph: Graph) -> None:
    learned(graph, sam3, sd15_teacher)


def sdxl_teacher(graph: Graph) -> Teacher:
    graph.note(
        "SDXL has two text encoders; the tokens are learned for both, and any prompt reads the file as `embedding:`. "
        "At 1024 it is slow and large: batch 1 with checkpointing, or 768, where memory is short."
    )
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=SDXL[0])
    graph.models(checkpoint, SDXL)
    settings = {"name": "my_sdxl_id", "size": 1024, "batch": 1, "checkpointing": True}
    return checkpoint, Out(checkpoint.node, 1), Out(checkpoint.node, 2), settings


def train_identity_sdxl(graph: Graph) -> None:
    learned(graph, grounded, sdxl_teacher)


def wan_teacher(graph: Graph) -> Teacher:
    graph.note(
        "A video model learns from single pictures. `context vectors` stand beside the prompt: no gradient runs "
        "through the large text encoder, which is asked once for each caption. The identity serves Wan 2.1 and 2.2 of "
        "this text encoder."
    )
    model, clip, vae = wan_models(graph, "wan2.1_t2v_1.3B_fp16.safetensors", "wan_2.1_vae.safetensors", WAN, WAN)
    settings = {
        "name": "my_wan_id", "kind": "context vectors", "learning_rate": 0.02, "batch": 2, "checkpointing": True,
    }  # fmt: skip
    return model, clip, vae, settings


def train_identity_wan(graph: Graph) -> None:
    trained, model, clip, vae = learned(graph, grounded, wan_teacher)
    graph.column("4. A video of it", 360)
    positive = graph.add(
        "VCD_IdTextEncode", clip=clip, prompt="a video of V*, walking on the beach, smiling", **ids(trained), tall=200
    )
    negative = graph.add("CLIPTextEncode", clip=clip, text=VIDEO_NEGATIVE, title="Negative prompt", tall=120)
    latent = graph.add("EmptyHunyuanLatentVideo", width=832, height=480, length=33, batch_size=1)
    sampled = graph.add(
        "KSampler", model=graph.add("VCD_ApplyNoisePrior", model=model, gamma=0.1), positive=positive,
        negative=negative, latent_image=latent, seed=1, steps=25, cfg=6.0, sampler_name="uni_pc", scheduler="simple",
        tall=270,
    )  # fmt: skip
    images = graph.add("VAEDecode", samples=sampled, vae=vae)
    graph.column("Save", 380)
    video = graph.add("CreateVideo", images=images, fps=16.0)
    graph.add("SaveVideo", video=video, filename_prefix="vcd/wan_id", tall=TALL_VIDEO)


def face_refine(graph: Graph) -> tuple[Out, Out, Out]:
    """Returns the prompt, the refinement, and the saved video."""
    images = load_column(graph)
    model, vae, positive, negative = model_column(graph, "photo of V*, face, detailed", gamma=False)
    graph.column("2. Faces", 360)
    graph.note(
        "Run Face VCD Track alone (its play button) and look at the numbered boxes before you refine. Each face is "
        "drawn anew at 512x512 and put back."
    )
    faces = graph.add("VCD_FaceTrack", images=images, tall=TALL_TRACK)
    graph.column("3. Refine", 360)
    refined = graph.add(
        "VCD_FaceRefine", images=images, model=model, vae=vae, positive=positive, negative=negative, faces=faces, seed=1
    )
    return positive, refined, save_column(graph, refined, "face", images)


def face_refine_app(graph: Graph) -> None:
    prompt, refined, saved = face_refine(graph)
    shown = [
        (graph.first("LoadVideo"), "file"),
        (prompt, "prompt"),
        (refined, "denoise"),
        (refined, "which"),
        (refined, "seed"),
    ]
    graph.app(shown, saved)


def tiled_upscale(graph: Graph) -> None:
    images = load_column(graph)
    model, vae, positive, negative = model_column(graph, "photo of V*, walking on the beach, detailed", gamma=False)
    graph.column("2. Enlarge and refine", 360)
    graph.note(
        "Enlarged twice with Lanczos; connect an ESRGAN model (Load Upscale Model) to `upscale_model` for sharper "
        "edges. Then the last 20 % is "
        "denoised tile by tile."
    )
    large = graph.add(
        "VCD_TiledDenoise", images=images, model=model, vae=vae, positive=positive, negative=negative, seed=1
    )
    save_column(graph, large, "tiled", images)


def tiny_models(graph: Graph, prompt: str, end: float = 1.0) -> Stage:
    """The embedded model with its motion, Robin, and one prompt."""
    graph.column("1. Model, identity, prompt", 340)
    graph.note("The tiny model and its identity ship with the pack: nothing to download, nothing to choose.")
    checkpoint = graph.add("VCD_TinyModel")
    model = graph.add("VCD_MotionModule", model=checkpoint, motion_module=TINY_MOTION, end_percent=end, tall=250)
    clip = Out(checkpoint.node, 1)
    identity = graph.add("VCD_IdLoader", file=TINY_ID, class_word="", tall=TALL_ID)
    positive = graph.add("VCD_IdTextEncode", clip=clip, prompt=prompt, title="Prompt", tall=200, **ids(identity))
    negative = graph.add("CLIPTextEncode", clip=clip, text="", title="Negative prompt", tall=120)
    return model, Out(checkpoint.node, 2), positive, negative


def train_identity_tiny(graph: Graph) -> None:
    graph.column("0. Pictures", 320)
    graph.note(
        "Six pictures of one person with masks, drawn by the pack. For your own use VCD Pictures and masks, as in "
        "`04_train_identity`."
    )
    images = graph.add("VCD_TinyClip", shows="pictures", person="by the seed", framing="close-up", frames=6, seed=7)
    graph.add("PreviewImage", images=images, title="The pictures", tall=300)
    graph.column("1. Train", 360)
    graph.note(
        "Two hundred steps; every fifty a sample shows what it has learned. "
        "`kind` is context vectors, which carry more of the person than tokens do."
    )
    checkpoint = graph.add("VCD_TinyModel")
    trained = graph.add(
        "VCD_IdTrainer", model=checkpoint, clip=Out(checkpoint.node, 1), vae=Out(checkpoint.node, 2), images=images,
        masks=Out(images.node, 1), name="my_tiny_id", class_word="woman", learning_rate=2e-2, size=128,
        fit="whole picture", template="a close-up of a V*", augment=False, kind="context vectors", tall=TALL_TRAINER,
    )  # fmt: skip
    graph.column("2. Look and keep", 380)
    graph.add("VCD_IdSave", id=trained, name="vcd/my_tiny_id", tall=160)
    graph.add("LossGraphNode", loss=Out(trained.node, 1), filename_prefix="vcd/loss", tall=320)
    graph.add("PreviewImage", images=Out(trained.node, 2), title="Samples", tall=320)


def tiny_clip(graph: Graph, instead: str, **choices: Any) -> Out:
    graph.column("0. The clip", 320)
    graph.note(f"A cartoon clip that the pack draws. For your own use Load Video, as in `{instead}`.")
    clip = graph.add("VCD_TinyClip", **choices)
    graph.add("PreviewImage", images=clip, title="The clip", tall=300)
    return clip


def face_refine_tiny(graph: Graph) -> None:
    images = tiny_clip(graph, "05_face_refine", person="by the seed", seed=7)
    prompt = "a close-up of a V*, waving in the forest"
    model, vae, positive, negative = tiny_models(graph, prompt, MOTION_END)
    graph.column("2. Faces", 360)
    graph.note("Run Face VCD Track alone (its play button) and look at the numbered boxes before you refine.")
    faces = graph.add("VCD_FaceTrack", images=images, small_faces=True, tall=TALL_TRACK)
    graph.column("3. Refine", 360)
    graph.note("The face is drawn anew as the person of the prompt: here another one.")
    refined = graph.add(
        "VCD_FaceRefine", images=images, model=model, vae=vae, positive=positive, negative=negative, faces=faces,
        seed=2, cfg=2.5, denoise=0.6, refine_size=128,
    )  # fmt: skip
    save_column(graph, refined, "face_tiny", before=images)


def tiled_upscale_tiny(graph: Graph) -> None:
    images = tiny_clip(graph, "06_tiled_upscale", seed=2)
    model, vae, positive, negative = tiny_models(graph, TINY_PROMPT)
    graph.column("2. Enlarge and refine", 360)
    graph.note("To 256x256. The tiny model has learned whole pictures only, so the last 10 % is drawn anew.")
    large = graph.add(
        "VCD_TiledDenoise", images=images, model=model, vae=vae, positive=positive, negative=negative, seed=2,
        cfg=1.0, denoise=0.1, tile_size=128, overlap=32,
    )  # fmt: skip
    save_column(graph, large, "tiled_tiny", before=images)


def full_pipeline(graph: Graph) -> None:
    stage = model_column(graph, "photo of V*, walking on the beach, smiling", freeu=True)
    model, vae, positive, negative = stage
    graph.column("2. T2V VCD", 340)
    graph.note(
        "The three stages of the paper with its settings, and FreeU as in the release's graph. Look at the frames "
        "before you "
        "let the later stages run: bypass them (Ctrl+B) while you look for a seed."
    )
    frames = sample_column(graph, stage)
    graph.add("PreviewImage", images=frames, title="After T2V", tall=280)
    graph.column("3. Face VCD", 360)
    faces = graph.add("VCD_FaceTrack", images=frames, tall=TALL_TRACK)
    refined = graph.add(
        "VCD_FaceRefine", images=frames, model=model, vae=vae, positive=positive, negative=negative, faces=faces, seed=1
    )
    graph.column("4. Tiled VCD", 360)
    graph.note("Connect an ESRGAN model (Load Upscale Model) to `upscale_model`; without one Lanczos enlarges.")
    tiled = graph.add(
        "VCD_TiledDenoise", images=refined, model=model, vae=vae, positive=positive, negative=negative, seed=1
    )
    save_column(graph, tiled, "full")


def two_people(graph: Graph) -> None:
    graph.column("1. Model", 340)
    graph.note(
        "Two identities in one clip: each drawn in a place of its own, then refined on its own face with its own "
        "prompt."
    )
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=SD15[0])
    graph.models(checkpoint, SD15)
    model = graph.add("VCD_MotionModule", model=checkpoint, motion_module=MOTION[0], tall=250)
    graph.models(model, MOTION)
    model = graph.add("VCD_ApplyNoisePrior", model=model, gamma=0.1)
    clip, vae = Out(checkpoint.node, 1), Out(checkpoint.node, 2)
    graph.column("2. Two identities", 360)
    graph.note(
        "`<name>` in a prompt is the identity of that file name: train and save two, `my_id` and `her_id`, each with "
        "its class word. "
        "Left and right are those of the picture; other places are written in `places`, one line each."
    )
    left = graph.add("VCD_IdLoader", file="vcd/my_id.safetensors", class_word="", title="Left", tall=TALL_ID)
    right = graph.add("VCD_IdLoader", file="vcd/her_id.safetensors", class_word="", title="Right", tall=TALL_ID)
    model = graph.add(
        "VCD_Cast", model=model, clip=clip, prompt="photo of <my_id> and <her_id>, side by side in a cafe", tall=720,
        **ids(left, right),
    )  # fmt: skip
    positive = Out(model.node, 1)
    one = graph.add(
        "VCD_IdTextEncode",
        clip=clip,
        prompt="photo of <my_id>, face",
        title="Left face",
        tall=200,
        **ids(left),
    )
    two = graph.add(
        "VCD_IdTextEncode", clip=clip, prompt="photo of <her_id>, face", title="Right face", tall=200,
        **ids(right),
    )  # fmt: skip
    negative = graph.add("CLIPTextEncode", clip=clip, text=NEGATIVE, title="Negative prompt", tall=140)
    graph.column("3. T2V VCD", 340)
    frames = sample_column(graph, (model, vae, positive, negative))
    graph.column("4. Each face its own identity", 360)
    faces = graph.add("VCD_FaceTrack", images=frames, which="left to right", tall=TALL_TRACK)
    refined = graph.add(
        "VCD_FaceRefine", images=frames, model=model, vae=vae, positive=one, positive_2=two, negative=negative,
        faces=faces, which="left to right", seed=1,
    )  # fmt: skip
    save_column(graph, refined, "two_people")


def long_clip(graph: Graph) -> None:
    model, vae, positive, negative = model_column(
        graph, "photo of V*, walking through the city", gamma=False, frames=64
    )
    graph.column("2. Sixty-four frames", 360)
    graph.note(
        "The motion module sees 16 frames at a time; ComfyUI's context windows let them overlap. The noise prior runs "
        "through the "
        "whole clip: lively at first (0.05), calmer from frame 32 on, until 0.2 at frame 40 (a gamma schedule)."
    )
    model = graph.add(
        "VCD_ApplyNoisePrior", model=model, gamma=0.1, gamma_schedule="0: 0.05, 31: 0.05, 40: 0.2", tall=180
    )
    model = graph.add(
        "ContextWindowsManual", model=model, context_length=16, context_overlap=4, context_schedule="standard_static",
        fuse_method="pyramid", dim=0, tall=330,
    )  # fmt: skip
    graph.column("3. Sample", 340)
    save_column(graph, sample_column(graph, (model, vae, positive, negative), frames=64), "long")


def emotions(graph: Graph) -> None:
    stage = model_column(graph, "0: photo of V*, smiling, happy face | 8: photo of V*, angry face")
    graph.column("2. Sixteen frames", 360)
    graph.note(
        "The prompt is a schedule: frames 0 to 7 smile, from frame 8 on they are angry (the paper's figure 10). "
        "`blend` lets one "
        "go over into the other. Learned emotions work as well: `embedding:angry` in the prompt."
    )
    save_column(graph, sample_column(graph, stage), "emotions")


CLIP_L = ("clip-vit-large-patch14.safetensors", f"{HUB}/openai/clip-vit-large-patch14/resolve/main/model.safetensors")
DINOV2 = ("dinov2-large.safetensors", f"{HUB}/facebook/dinov2-large/resolve/main/model.safetensors")


def evaluate(graph: Graph) -> None:
    images = load_column(graph, "Choose your clip in Load Video, of any length; nothing is drawn here.")
    references = graph.add("LoadImage", title="A picture of the subject", tall=330)
    graph.column("1. What judges", 360)
    graph.note(
        "CLIP's picture half and DINOv2 in `models/clip_vision`, CLIP's text half in `models/text_encoders`: one file "
        "of OpenAI "
        "holds both halves. They come as model.safetensors: save them under the names shown here. Delete the loader "
        "of what you "
        "leave out: the figures that need it are named instead."
    )
    vision = graph.add("CLIPVisionLoader", clip_name=CLIP_L[0])
    graph.models(vision, (*CLIP_L, "clip_vision"))
    dino = graph.add("CLIPVisionLoader", clip_name=DINOV2[0], title="DINOv2")
    graph.models(dino, (*DINOV2, "clip_vision"))
    clip = graph.add("CLIPLoader", clip_name=CLIP_L[0], type="stable_diffusion")
    graph.models(clip, (*CLIP_L, "text_encoders"))
    graph.column("2. Figures", 520)
    faces = graph.add("VCD_FaceTrack", images=images, tall=TALL_TRACK)
    figures = graph.add(
        "VCD_Evaluate", images=images, references=references, clip_vision=vision, dino=dino, clip=clip, faces=faces,
        prompt="a man walking on the beach", tall=620,
    )  # fmt: skip
    graph.add("PreviewAny", source=figures, tall=260)


WAN = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN22 = f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
UMT5 = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
LTX2 = "ltx-2-19b-dev-fp8.safetensors"
GEMMA = "gemma_3_12B_it_fp4_mixed.safetensors"
VIDEO_NEGATIVE = "blurry, static, deformed face, watermark, text"
FACE_PROMPT = "close-up of a woman, detailed face, sharp eyes, natural skin"


def wan_models(graph: Graph, unet: str, vae: str, home: str, vae_home: str) -> tuple[Out, Out, Out]:
    """A Wan model, its text encoder and its VAE."""
    model = graph.add("UNETLoader", unet_name=unet, weight_dtype="default")
    graph.models(model, (unet, f"{home}/diffusion_models/{unet}", "diffusion_models"))
    model = graph.add("ModelSamplingSD3", model=model, shift=8.0)
    clip = graph.add("CLIPLoader", clip_name=UMT5, type="wan", device="default")
    graph.models(clip, (UMT5, f"{WAN}/text_encoders/{UMT5}", "text_encoders"))
    loaded = graph.add("VAELoader", vae_name=vae)
    graph.models(loaded, (vae, f"{vae_home}/vae/{vae}", "vae"))
    return model, clip, loaded


def wan_column(graph: Graph, unet: str, vae: str, home: str, vae_home: str) -> Stage:
    """A Wan model, its text encoder and VAE, and prompts."""
    graph.column("1. Model and prompt", 380)
    graph.note(
        "Any of ComfyUI's own video models goes here. The prompt says what the face is; the noise prior, the tracks "
        "and the tiles need nothing of SD 1.5. A motion module is not needed: these models move by themselves."
    )
    model, clip, loaded = wan_models(graph, unet, vae, home, vae_home)
    positive = graph.add("CLIPTextEncode", clip=clip, text=FACE_PROMPT, title="Prompt", tall=160)
    negative = graph.add("CLIPTextEncode", clip=clip, text=VIDEO_NEGATIVE, title="Negative prompt", tall=120)
    return model, loaded, positive, negative


def refine_and_enlarge(graph: Graph, images: Out, stage: Stage, name: str, tile: int, **more: Any) -> None:
    """Faces, then tiles, with settings for a flow model; saved with the speed and the sound of the clip."""
    model, vae, positive, negative = stage
    settings = {"cfg": 5.0, "sampler_name": "uni_pc", "scheduler": "simple", "seed": 1, "denoise_by": "noise", **more}
    graph.column("2. Faces", 380)
    graph.note(
        "`denoise_by` is *noise*: 0.5 is half noise whatever the model's shift. Under the node stands the sigma that "
        "it started from. Tracks are lengthened by held frames to what the VAE takes, and cut again."
    )
    faces = graph.add("VCD_FaceTrack", images=images, tall=TALL_TRACK)
    refined = graph.add(
        "VCD_FaceRefine", images=images, model=model, vae=vae, positive=positive, negative=negative, faces=faces,
        steps=20, denoise=0.5, **settings,
    )  # fmt: skip
    graph.column("3. Tiles", 380)
    graph.note("Twice the size. Each tile sees all frames, and all tiles one noise.")
    large = graph.add(
        "VCD_TiledDenoise", images=refined, model=model, vae=vae, positive=positive, negative=negative, steps=20,
        denoise=0.2, tile_size=tile, overlap=64, **settings,
    )  # fmt: skip
    save_column(graph, large, name, images)


def wan22_faces(graph: Graph) -> None:
    images = load_column(graph, "Choose your clip in Load Video, whatever model made it; its sound is kept.")
    vae = "wan2.2_vae.safetensors"
    stage = wan_column(graph, "wan2.2_ti2v_5B_fp16.safetensors", vae, WAN22, WAN22)
    refine_and_enlarge(graph, images, stage, "wan22", 704)


def ltx2_sound(graph: Graph) -> None:
    images = load_column(graph, "Choose a clip with its sound. The model hears the sound while it draws, and keeps it.")
    graph.column("1. Model, prompt, sound", 380)
    graph.note(
        "LTX-2 draws video and sound in one latent. Here the clip's own sound is given to it clean: faces are drawn "
        "with the mouth that the sound needs. The saved video has the sound of the loaded one, untouched."
    )
    model = graph.add("CheckpointLoaderSimple", ckpt_name=LTX2)
    graph.models(model, (LTX2, f"{HUB}/Lightricks/LTX-2/resolve/main/{LTX2}", "checkpoints"))
    clip = graph.add("LTXAVTextEncoderLoader", text_encoder=GEMMA, ckpt_name=LTX2)
    home = f"{HUB}/Comfy-Org/ltx-2/resolve/main/split_files/text_encoders"
    graph.models(clip, (GEMMA, f"{home}/{GEMMA}", "text_encoders"))
    hears = graph.add("LTXVAudioVAELoader", ckpt_name=LTX2)
    sound = graph.add("LTXVAudioVAEEncode", audio=Out(images.node, 1), audio_vae=hears)
    positive = graph.add("CLIPTextEncode", clip=clip, text=FACE_PROMPT, title="Prompt", tall=160)
    negative = graph.add("CLIPTextEncode", clip=clip, text=VIDEO_NEGATIVE, title="Negative prompt", tall=120)
    timed = graph.add("LTXVConditioning", positive=positive, negative=negative, frame_rate=Out(images.node, 2))
    stage = model, Out(model.node, 2), timed, Out(timed.node, 1)
    refine_and_enlarge(graph, images, stage, "ltx2", 768, sound=sound, cfg=4.0, sampler_name="euler")


def wan_vace(graph: Graph) -> None:
    images = load_column(
        graph, "Choose a clip of 4n + 1 frames (17, 33, 81). Its edges guide the model, so that more can be drawn anew."
    )
    vae, unet = "wan_2.1_vae.safetensors", "wan2.1_vace_1.3B_fp16.safetensors"
    model, vae_out, positive, negative = wan_column(graph, unet, vae, WAN, WAN)
    graph.column("1b. What VACE is shown", 380)
    graph.note(
        "The control video is made once for the whole clip. Face VCD cuts each face's window out of it, frame by "
        "frame, and Tiled VCD enlarges it and cuts each tile. A picture at the node's `reference_image` is shown to "
        "both."
    )
    edges = graph.add("Canny", image=images, low_threshold=0.2, high_threshold=0.5)
    size = graph.add("GetImageSize", image=images)
    shown = graph.add(
        "WanVaceToVideo", positive=positive, negative=negative, vae=vae_out, control_video=edges, width=size,
        height=Out(size.node, 1), length=Out(size.node, 2), strength=0.8, tall=260,
    )  # fmt: skip
    stage = model, vae_out, shown, Out(shown.node, 1)
    refine_and_enlarge(graph, images, stage, "wan_vace", 512)


GRAPHS: dict[str, Callable[[Graph], object]] = {
    "00_noise_prior": noise_prior,
    "01_quickstart": quickstart,
    "01_quickstart.app": quickstart_app,
    "02_t2v_builtin_motion": t2v_builtin_motion,
    "03_t2v_animatediff_evolved": t2v_animatediff_evolved,
    "04_person_to_video.app": person_to_video_app,
    "04_prompt_to_segmentation": prompt_to_segmentation,
    "04_train_identity": train_identity,
    "04_train_identity_sam3": train_identity_sam3,
    "04_train_identity_sdxl": train_identity_sdxl,
    "04_train_identity_tiny": train_identity_tiny,
    "04_train_identity_wan": train_identity_wan,
    "05_face_refine": face_refine,
    "05_face_refine.app": face_refine_app,
    "05_face_refine_tiny": face_refine_tiny,
    "06_tiled_upscale": tiled_upscale,
    "06_tiled_upscale_tiny": tiled_upscale_tiny,
    "07_full_pipeline": full_pipeline,
    "08_two_people": two_people,
    "09_long_clip": long_clip,
    "10_emotions": emotions,
    "11_evaluate": evaluate,
    "12_wan22_faces_and_tiles": wan22_faces,
    "13_ltx2_with_sound": ltx2_sound,
    "14_wan_vace": wan_vace,
}
NEEDS_PACK = {"03_t2v_animatediff_evolved": "ADE_AnimateDiffLoaderGen1"}


def main() -> None:
    WORKFLOWS.mkdir(exist_ok=True)
    host = prepare(None)
    if os.environ.get("VCD_ADE"):
        link(Path(os.environ["VCD_ADE"]).resolve(), host.base / "custom_nodes" / "ComfyUI-AnimateDiff-Evolved")
    with Server(host, arguments=("--disable-api-nodes",)) as server:
        info = server.get("/object_info")
        for name, draw in GRAPHS.items():
            if name in NEEDS_PACK and NEEDS_PACK[name] not in info:
                print(f"left workflows/{name}.json as it is: its pack is not there (give its folder in VCD_ADE)")
                continue
            graph = Graph(info)
            draw(graph)
            graph.save(WORKFLOWS / f"{name}.json")
            print(f"wrote workflows/{name}.json: {len(graph.nodes)} nodes")


if __name__ == "__main__":
    main()
