"""Writes the bundled graphs: ``python -m dev.make_workflows`` with a host set up (``python run.py demo``).

The graphs are drawn here rather than by hand so that widgets, sockets and layout follow the nodes as they are.
"""

from __future__ import annotations

from collections.abc import Callable

from .graph import Graph, Out
from .host import ROOT, prepare
from .server import Server

WORKFLOWS = ROOT / "workflows"


def noise_prior(graph: Graph) -> None:
    graph.column("1. What gamma does", 380)
    graph.note(
        "**3D noise prior.** The initial noise of a clip is correlated along time: `gamma` is how much each frame's "
        "noise keeps of the one before. 0 is ComfyUI's own noise, 0.1 the paper's value, 1 a single noise for all.\n\n"
        "This graph needs no model. Change gamma, queue again, and watch the clip: the noise drifts instead of "
        "flickering."
    )
    preview = graph.add("VCD_NoisePriorPreview", frames=16, gamma=0.8, seed=1, height=420)
    graph.column("2. Keep it", 380)
    graph.add("SaveImage", images=preview, filename_prefix="vcd/noise_prior", height=330)
    video = graph.add("CreateVideo", images=Out(preview.node, 1), fps=8.0)
    graph.add("SaveVideo", video=video, filename_prefix="vcd/noise_prior", height=420)


TINY_PROMPT = "a close-up of a V*, waving on the beach"
TINY_MOTION = "vcd_tiny_motion.safetensors"


def tiny_column(graph: Graph, prompt: str = TINY_PROMPT) -> tuple[Out, Out, Out, Out]:
    """The embedded model with its motion and identity: model, VAE, positive and negative."""
    graph.column("1. Model, identity, prompt", 340)
    graph.note(
        "The tiny model ships with the pack: cartoon people at 128x128, no download. `V*` in the prompt is the identity: four "
        "learned tokens of a person that the model has never seen. The help page of VCD Tiny Model lists its words."
    )
    checkpoint = graph.add("VCD_TinyModel")
    model = graph.add("VCD_MotionModule", model=checkpoint, motion_module=TINY_MOTION, height=250)
    model = graph.add("VCD_ApplyNoisePrior", model=model, gamma=0.1)
    clip, vae = Out(checkpoint.node, 1), Out(checkpoint.node, 2)
    identity = graph.add("VCD_IdLoader", file="vcd_tiny_robin.safetensors", class_word="man", height=170)
    positive = graph.add("VCD_IdTextEncode", clip=clip, prompt=prompt, height=200, **{"ids.id0": identity})
    negative = graph.add("CLIPTextEncode", clip=clip, text="", title="Negative prompt", height=120)
    return model, vae, positive, negative


def quickstart(graph: Graph) -> None:
    model, vae, positive, negative = tiny_column(graph)
    graph.column("2. T2V VCD", 340)
    graph.note("Sixteen frames whose initial noise is correlated with gamma 0.1 (the 3D Gaussian noise prior).")
    latent = graph.add("EmptyLatentImage", width=128, height=128, batch_size=16)
    sampled = graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=5, steps=20, cfg=4.0,
        sampler_name="euler", scheduler="normal", height=270,
    )  # fmt: skip
    frames = graph.add("VAEDecode", samples=sampled, vae=vae)
    graph.add("PreviewImage", images=frames, title="Frames", height=300)
    graph.column("3. Face VCD", 340)
    graph.note("The face is found, tracked, cut out, drawn anew at its own 128x128, and put back.")
    faces = graph.add("VCD_FaceTrack", images=frames, small_faces=True, height=420)
    refined = graph.add(
        "VCD_FaceRefine", images=frames, model=model, vae=vae, positive=positive, negative=negative, faces=faces, seed=5,
        steps=20, cfg=4.0, denoise=0.4, refine_size=128,
    )  # fmt: skip
    graph.column("4. Tiled VCD", 340)
    graph.note("Enlarged to 256x256; the last 20 % is drawn anew in overlapping tiles.")
    tiled = graph.add(
        "VCD_TiledDenoise", images=refined, model=model, vae=vae, positive=positive, negative=negative, seed=5, steps=20,
        cfg=4.0, denoise=0.2, tile_size=128, overlap=32,
    )  # fmt: skip
    save_column(graph, tiled, "quickstart")
    graph.column("The three stages side by side", 420)
    small = graph.add("ImageStitch", image1=frames, image2=refined, direction="right")
    both = graph.add("ImageScaleBy", image=small, upscale_method="nearest-exact", scale_by=2.0)
    stages = graph.add("ImageStitch", image1=both, image2=tiled, direction="right")
    video = graph.add("CreateVideo", images=stages, fps=8.0)
    graph.add("SaveVideo", video=video, filename_prefix="vcd/quickstart_stages", height=300)


SD15 = (
    "v1-5-pruned-emaonly-fp16.safetensors",
    "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
    "checkpoints",
)
MOTION = (
    "mm_sd_v15_v2.ckpt",
    "https://huggingface.co/guoyww/animatediff/resolve/main/mm_sd_v15_v2.ckpt",
    "animatediff_models",
)
NEGATIVE = "blurry, deformed, watermark, text"


def model_column(graph: Graph, prompt: str, gamma: bool = True) -> tuple[Out, Out, Out, Out]:
    """Checkpoint, motion and prompts: model, VAE, positive and negative."""
    graph.column("1. Model and prompt", 340)
    graph.note(
        "SD 1.5 or a finetune of it in `models/checkpoints`, an AnimateDiff motion module in "
        "`models/animatediff_models`. Whatever identity is in the prompt is kept through all stages."
    )
    checkpoint = graph.add("CheckpointLoaderSimple", ckpt_name=SD15[0])
    graph.models(checkpoint, SD15)
    model = graph.add("VCD_MotionModule", model=checkpoint, motion_module=MOTION[0], height=250)
    graph.models(model, MOTION)
    if gamma:
        model = graph.add("VCD_ApplyNoisePrior", model=model, gamma=0.1)
    clip = Out(checkpoint.node, 1)
    positive = graph.add("CLIPTextEncode", clip=clip, text=prompt, title="Prompt")
    negative = graph.add("CLIPTextEncode", clip=clip, text=NEGATIVE, title="Negative prompt")
    return model, Out(checkpoint.node, 2), positive, negative


def save_column(graph: Graph, images: Out, name: str, fps: float = 8.0) -> None:
    graph.column("Save", 380)
    video = graph.add("CreateVideo", images=images, fps=fps)
    graph.add("SaveVideo", video=video, filename_prefix=f"vcd/{name}", height=420)


def load_column(graph: Graph) -> Out:
    graph.column("0. The clip", 320)
    graph.note(
        "Any clip, whatever model made it. Sixteen frames at a time; longer clips need Context Windows (Manual)."
    )
    video = graph.add("LoadVideo", height=300)
    return graph.add("GetVideoComponents", video=video)


def t2v_builtin_motion(graph: Graph) -> None:
    model, vae, positive, negative = model_column(graph, "photo of a man walking on the beach, smiling")
    graph.column("2. Sixteen frames", 340)
    graph.note("The paper's settings: 16 frames of 512x512, dpmpp_2m / karras, 20 steps, cfg 8, gamma 0.1.")
    latent = graph.add("EmptyLatentImage", width=512, height=512, batch_size=16)
    frames = graph.add(
        "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=1, steps=20, cfg=8.0,
        sampler_name="dpmpp_2m", scheduler="karras", height=270,
    )  # fmt: skip
    images = graph.add("VAEDecode", samples=frames, vae=vae)
    save_column(graph, images, "t2v")


HUB = "https://huggingface.co"


def prompt_to_segmentation(graph: Graph) -> None:
    graph.column("0. Pictures", 320)
    graph.note("The pictures of one subject, or a clip. Each is looked at on its own.")
    images = graph.add("LoadImage", height=330)
    graph.column("1. Grounding DINO and SAM", 380)
    graph.note(
        "Put the folders `grounding-dino-tiny` into `models/grounding-dino/` and `sam-vit-base` into `models/sams/` "
        "(transformers format), or an original `sam_vit_b_01ec64.pth` into `models/sams/`."
    )
    found = graph.add(
        "VCD_PromptToSegmentation", images=images, prompt="a man", detector="grounding-dino-tiny",
        segmenter="sam-vit-base", height=420,
    )  # fmt: skip
    graph.models(
        found,
        ("model.safetensors", f"{HUB}/IDEA-Research/grounding-dino-tiny/resolve/main/model.safetensors",
         "grounding-dino/grounding-dino-tiny"),
        ("model.safetensors", f"{HUB}/facebook/sam-vit-base/resolve/main/model.safetensors", "sams/sam-vit-base"),
        ("sam_vit_b_01ec64.pth", "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth", "sams"),
    )  # fmt: skip
    graph.add("MaskPreview", mask=found, height=260)
    graph.add("PreviewImage", images=Out(found.node, 2), title="Overlay", height=260)
    graph.column("2. Or ComfyUI's own SAM 3", 380)
    graph.note("SAM 3 finds and cuts in one model. Any MASK serves: nothing of this pack is needed for it.")
    sam = graph.add("CheckpointLoaderSimple", ckpt_name="sam3.1_multiplex_fp16.safetensors")
    name = "sam3.1_multiplex_fp16.safetensors"
    graph.models(sam, (name, f"{HUB}/Comfy-Org/sam3.1/resolve/main/checkpoints/{name}", "checkpoints"))
    words = graph.add("CLIPTextEncode", clip=Out(sam.node, 1), text="a man")
    cut = graph.add("SAM3_Detect", model=sam, image=images, conditioning=words, height=260)
    graph.add("MaskPreview", mask=cut, height=260)


def face_refine(graph: Graph) -> None:
    images = load_column(graph)
    model, vae, positive, negative = model_column(graph, "photo of a man, face, detailed", gamma=False)
    graph.column("2. Faces", 360)
    graph.note("Check the numbered boxes before refining. Each face is drawn anew at 512x512 and put back.")
    faces = graph.add("VCD_FaceTrack", images=images, height=420)
    graph.column("3. Refine", 360)
    refined = graph.add(
        "VCD_FaceRefine", images=images, model=model, vae=vae, positive=positive, negative=negative, faces=faces, seed=1
    )
    graph.add("PreviewImage", images=Out(refined.node, 1), title="Before and after", height=300)
    save_column(graph, refined, "face")


def tiled_upscale(graph: Graph) -> None:
    images = load_column(graph)
    model, vae, positive, negative = model_column(graph, "photo of a man walking on the beach, detailed", gamma=False)
    graph.column("2. Enlarge and refine", 360)
    graph.note(
        "Enlarged twice with Lanczos; connect an ESRGAN model to `upscale_model` for sharper edges. Then the last 20 % is "
        "denoised tile by tile."
    )
    large = graph.add(
        "VCD_TiledDenoise", images=images, model=model, vae=vae, positive=positive, negative=negative, seed=1
    )
    save_column(graph, large, "tiled")


GRAPHS: dict[str, Callable[[Graph], None]] = {
    "00_noise_prior": noise_prior,
    "01_quickstart": quickstart,
    "02_t2v_builtin_motion": t2v_builtin_motion,
    "04_prompt_to_segmentation": prompt_to_segmentation,
    "05_face_refine": face_refine,
    "06_tiled_upscale": tiled_upscale,
}


def main() -> None:
    WORKFLOWS.mkdir(exist_ok=True)
    with Server(prepare(None), arguments=("--disable-api-nodes",)) as server:
        info = server.get("/object_info")
        for name, draw in GRAPHS.items():
            graph = Graph(info)
            draw(graph)
            graph.save(WORKFLOWS / f"{name}.json")
            print(f"wrote workflows/{name}.json: {len(graph.nodes)} nodes")


if __name__ == "__main__":
    main()
