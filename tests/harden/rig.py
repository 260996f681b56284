"""The pack's long nodes on tiny models in one process: what the tests of faults run, break, and run again."""

import contextlib
import functools
import random
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from dev import random_models

SAMPLER = {"steps": 2, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "gamma": 0.3, "seed": 5}
FACE = {
    "denoise": 0.7, "refine_size": 64, "crop_factor": 1.6, "aspect": 1.0, "feather": 5.0, "paste_factor": 1.6,
    "match_colour": False, "which": "all", "index": 0,
}  # fmt: skip
TRAINING = {
    "name": "anna", "class_word": "woman", "tokens": 2, "steps": 3, "batch": 1, "learning_rate": 0.01, "size": 64,
    "fit": "whole picture", "template": "photo of a V*", "sample_every": 0, "resume": True, "seed": 3,
}  # fmt: skip
FRAMES = 4


def quick(x, timesteps, context=None, **_):
    """What stands for the UNet where its time is not wanted: it follows from the latent and the prompt."""
    return 0.5 * torch.tanh(x) + 0.1 * context.mean((1, 2)).view(-1, 1, 1, 1)


@contextlib.contextmanager
def short(pack, save_every=2):
    """While this lasts, a training writes its state every ``save_every`` steps and draws its sample in two."""
    core, sampling = pack("vcd_core.training"), pack("nodes.host.sampling").Sampling
    few = lambda _, seed: sampling(2, 4.0, "euler", "normal", 1.0, seed)  # noqa: E731
    with (
        mock.patch.object(core, "train", functools.partial(core.train, save_every=save_every)),
        mock.patch.object(pack("nodes.host.training").TrainingModel, "sampling", few),
    ):
        yield


@contextlib.contextmanager
def folders(base):
    """While this lasts, the host writes below ``base``: output, temp and models/embeddings."""
    import folder_paths

    known = {**folder_paths.folder_names_and_paths, "embeddings": ([str(base / "embeddings")], {".safetensors"})}
    for name in ("output", "temp", "embeddings"):
        (base / name).mkdir(exist_ok=True)
    with (
        mock.patch.object(folder_paths, "output_directory", str(base / "output")),
        mock.patch.object(folder_paths, "temp_directory", str(base / "temp")),
        mock.patch.object(folder_paths, "folder_names_and_paths", known),
    ):
        folder_paths.filename_list_cache.clear()
        yield base
    folder_paths.filename_list_cache.clear()


class Rig:
    """Tiny MODEL, CLIP and VAE, a clip of two people, and the nodes with short settings."""

    def __init__(self, pack):
        import comfy.model_management

        self.pack, self.memory = pack, comfy.model_management
        self.model, self.clip, self.vae = random_models.tiny_sd15(0)
        self.slow = random_models.tiny_sd15(0)[0]  # for gradients
        self.model.model.diffusion_model.forward = quick
        self.patchers = [self.model, self.slow, self.clip.patcher, self.vae.patcher]
        self.weights = [{k: v.clone() for k, v in one.model.state_dict().items()} for one in self.patchers]
        world = pack("vcd_core.tiny.world")
        rng = random.Random(2)
        crowd = tuple(world.random_person(rng) for _ in range(2))
        take = world.Take(crowd, "snow", "walking", "medium", 2, FRAMES)
        self.images = torch.from_numpy(np.stack([frame.image for frame in world.render_take(take)])).float() / 255
        self.faces = pack("nodes.face").track_faces(self.images)
        self.looks = types.SimpleNamespace(encode_image=lambda images: {"image_embeds": images.mean((1, 2))})
        with torch.inference_mode():
            told = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in ("photo of a man", "")]
        self.drawing = {"model": self.model, "vae": self.vae, "positive": told[0], "negative": told[1], **SAMPLER}

    def refine(self, **changes):
        """Face VCD Crop-Refine-Paste's pictures, of two faces."""
        inputs = {"images": self.images, "faces": self.faces, **self.drawing, **FACE, **changes}
        return self.run("face.FaceRefine", inputs)

    def tiles(self, **changes):
        """Tiled VCD Denoise's pictures, of nine tiles."""
        inputs = {"scale": 2.0, "tile_size": 64, "overlap": 16, "denoise": 0.5, **self.drawing}
        return self.run("tiled.TiledDenoise", {"images": self.images[:2, :64, :64], **inputs, **changes})

    def train(self, **changes):
        """VCD ID Trainer's tokens."""
        parts = {"model": self.slow, "clip": self.clip, "vae": self.vae, "images": self.images[:2], **TRAINING}
        return self.run("training.IdTrainer", {name: [value] for name, value in {**parts, **changes}.items()})

    def evaluate(self, **changes):
        """VCD Evaluate's table."""
        inputs = {"images": self.images, "references": self.images[:1], "clip_vision": self.looks, "faces": self.faces}
        return self.run("evaluate.Evaluate", {name: [value] for name, value in {**inputs, **changes}.items()})

    def compare(self, **changes):
        clips = {"clip0": [self.images], "clip1": [self.images.flip(2)]}
        inputs = {"names": ["one, other"], "clips": clips, "clip_vision": [self.looks]}
        return self.run("evaluate.Compare", {**inputs, **changes})

    def encode(self, **changes):
        """VCD ID Text Encode's conditioning, of a prompt that changes."""
        inputs = {"clip": self.clip, "prompt": "0: V* smiles | 2: V* sleeps", "frames": FRAMES, "blend": 1}
        return self.run("identity.IdTextEncode", {**inputs, "ids": {"id0": self.identity()}, **changes})[0][0]

    def identity(self, value=0.01, picture=None):
        width = random_models.TINY_TEXT
        tokens = self.pack("vcd_core.identity").IdTokens("anna", torch.full((2, width), value))
        return self.pack("nodes.identity").Identity(tokens, "woman", picture=picture)

    def save(self, **changes):
        """The name under which VCD ID Save saved an identity."""
        inputs = {"id": self.identity(picture=self.images[0]), "name": "people/anna", "overwrite": True}
        return self.run("identity.IdSave", {**inputs, **changes})

    def run(self, node, inputs):
        module, name = node.split(".")
        with torch.inference_mode():
            output = getattr(self.pack(f"nodes.{module}"), name).execute(**inputs)
        value = output.args[0]
        self.said = " ".join((output.ui or {}).get("text", ()))
        return value.tokens.vectors if hasattr(value, "tokens") else value

    def state(self):
        """All that a node may change of the models and of the host and must put back."""
        import comfy.ldm.modules.attention
        import comfy.quant_ops

        of_models = [_patcher_state(patcher) for patcher in self.patchers]
        weights = [
            set(kept) == set(now) and all(torch.equal(kept[name], now[name]) for name in kept)
            for kept, now in zip(self.weights, (patcher.model.state_dict() for patcher in self.patchers), strict=True)
        ]
        of_host = (
            getattr(self.memory, "in_training", None), torch.backends.cudnn.deterministic, torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(), comfy.ldm.modules.attention.optimized_attention,
            getattr(comfy.quant_ops, "ck", None), torch.get_rng_state().numpy().tobytes(),
        )  # fmt: skip
        return of_models, weights, of_host


def _patcher_state(patcher):
    def layout(options):
        return {
            k: layout(v) if isinstance(v, dict) else len(v) if isinstance(v, list) else v for k, v in options.items()
        }

    parts = [part for part in patcher.model.modules() if "forward" in vars(part) and part.forward is not quick]
    hooked = [part for part in patcher.model.modules() if part._forward_pre_hooks or part._forward_hooks]
    more = (patcher.patches, patcher.object_patches, patcher.object_patches_backup, patcher.injections)
    return [
        *map(sorted, more), patcher.backup, layout(patcher.model_options), layout(patcher.wrappers),
        layout(patcher.callbacks), patcher.is_injected, len(parts), len(hooked),
    ]  # fmt: skip


class Fault:
    """Something goes wrong at a function's ``at``-th call, before it or ``after``; ``times`` counts them."""

    def __init__(self, what=None, at=0, after=False):
        self.what, self.at, self.after, self.times = what, at, after, 0

    def around(self, function):
        def call(*given, **named):
            self.times += 1
            hit = self.times == self.at
            if hit and not self.after:
                self.what(*given)
            result = function(*given, **named)
            if hit and self.after:
                self.what(*given)
            return result

        return call

    @contextlib.contextmanager
    def on(self, owner, name):
        """While this lasts, the function ``owner.name`` has this fault."""
        with mock.patch.object(owner, name, self.around(getattr(owner, name))):
            yield self


def points(rig):
    """Where a fault can come: of each function, who has it, and its name."""
    import comfy.model_base
    import comfy.sd
    import comfy.sd1_clip

    return {
        "load": (rig.memory, "load_models_gpu"),
        "model": (comfy.model_base.BaseModel, "apply_model"),
        "encoder": (type(rig.vae.first_stage_model), "encode"),
        "decoder": (type(rig.vae.first_stage_model), "decode"),
        "text": (comfy.sd1_clip.SDClipModel, "forward"),
        "ask": (rig.memory, "throw_exception_if_processing_interrupted"),
        "step": (rig.pack("vcd_core.training").Training, "advance"),
        "write": (Path, "write_bytes"),
        "rename": (rig.pack("vcd_core.files").os, "replace"),
    }


@contextlib.contextmanager
def counted(rig):
    """While this lasts, how often each of the points is come by: faults that never happen."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Fault().on(*point)) for name, point in points(rig).items()}
