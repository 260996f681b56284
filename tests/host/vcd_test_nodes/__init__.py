"""Nodes that only the tests use: a tiny random SD 1.5, and saving a latent or pictures exactly."""

import copy
import importlib.util
import itertools
import json
import logging
import os
import random
import signal
import sys
import types
from pathlib import Path

import comfy.clip_vision
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, io

ROOT = Path(__file__).resolve().parents[3]


def _load(name, file):
    """A module of the repository, whatever the server's own path."""
    name = f"vcd_test_{name}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / file)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


random_models = _load("random_models", "dev/random_models.py")
video_models = _load("video_models", "dev/video_models.py")


class TinySD(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_TinySD",
            category="tests",
            inputs=[io.Int.Input("weights", default=0)],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, weights):
        return io.NodeOutput(*random_models.tiny_sd15(weights, folder_paths.get_folder_paths("embeddings")))


class SaveTensor(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Save",
            category="tests",
            is_output_node=True,
            inputs=[
                io.String.Input("name"),
                io.MultiType.Input(
                    "value",
                    types=[
                        io.Latent,
                        io.Model,
                        io.Image,
                        io.Mask,
                        io.Conditioning,
                        io.String,
                        io.Custom("VCD_ID"),
                        io.Custom("LOSS_MAP"),
                        io.Float,
                        io.Custom("BOUNDING_BOX"),
                        io.Sigmas,
                    ],
                ),
            ],
        )

    @classmethod
    def execute(cls, name, value):
        folder = Path(folder_paths.get_output_directory()) / "vcd_tests"
        folder.mkdir(exist_ok=True)
        value = value.tokens.vectors if hasattr(value, "tokens") else value
        torch.save(value, folder / f"{name}.pt")
        return io.NodeOutput(ui={"tensor": [name]})


class BatchIndex(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_BatchIndex",
            category="tests",
            inputs=[io.Latent.Input("samples"), io.String.Input("index")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples, index):
        return io.NodeOutput({**samples, "batch_index": [int(i) for i in index.split(",")]})


class NoiseSampler(io.ComfyNode):
    """A SAMPLER whose samples are the noise that it is given to start from, or with ``step`` to add at a step."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_NoiseSampler",
            category="tests",
            inputs=[io.Boolean.Input("step", default=False, optional=True)],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, step=False):
        def added(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
            return noise_sampler(sigmas[0], sigmas[1])

        class Start(comfy.samplers.Sampler):
            def sample(self, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
                return noise

        return io.NodeOutput(comfy.samplers.KSAMPLER(added) if step else Start())


_originals = {}


class ManyTiles(io.ComfyNode):
    """Makes the pack batch all tiles of a step, and lets a prediction fail as if memory ran out above ``most`` frames.

    With ``most`` 0 all is as before.
    """

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_ManyTiles",
            category="tests",
            inputs=[io.Model.Input("model"), io.Int.Input("most")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, most):
        host = next(m for name, m in sys.modules.items() if name.endswith("video_custom_diffusion.nodes.host.tiles"))
        at_once = _originals.setdefault("at_once", host._tiles_at_once)
        host._tiles_at_once = (lambda base, x, grid, *_: len(grid.tiles)) if most else at_once

        def call(apply, arguments):
            if most and len(arguments["input"]) > most:
                logging.warning("refused a batch of %d", len(arguments["input"]))
                raise comfy.model_management.OOM_EXCEPTION("the test's")
            return apply(arguments["input"], arguments["timestep"], **arguments["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(call)
        return io.NodeOutput(model)


class SamplingAttention(io.ComfyNode):
    """Makes ComfyUI's attention one that gives no gradients, as those made for sampling do; ``on`` false: as before."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_SamplingAttention",
            category="tests",
            inputs=[io.Model.Input("model"), io.Boolean.Input("on")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, on):
        attention = comfy.ldm.modules.attention
        usual = _originals.setdefault("attention", attention.optimized_attention)

        @attention.wrap_attn
        def without_gradients(*arguments, **named):
            return attention.attention_basic(*arguments, **named).detach()

        attention.optimized_attention = without_gradients if on else usual
        return io.NodeOutput(model)


class Told(io.ComfyNode):
    """Logs the shape for which the host makes room before it samples, and each that the model is shown."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Told",
            category="tests",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model):
        def prepare(executor, patcher, shape, *args, **kwargs):
            logging.info("prepares %s", list(shape))
            return executor(patcher, shape, *args, **kwargs)

        def predict(executor, x, *args, **kwargs):
            logging.info("predicts %s", list(x.shape))
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, prepare)
        model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, predict)
        return io.NodeOutput(model)


class KnownAnswer(io.ComfyNode):
    """A model whose answer is known: that of each cell follows from the cell alone, or (``places``) is its place in the
    picture seen."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_KnownAnswer",
            category="tests",
            inputs=[io.Model.Input("model"), io.Boolean.Input("places")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, places):
        def answer(apply, arguments):
            x, sigma = arguments["input"], arguments["timestep"].view(-1, 1, 1, 1)
            if not places:
                return torch.tanh(2 * x / (1 + sigma))
            return torch.arange(x[0, 0].numel()).view(x.shape[-2:]).to(x).expand_as(x) / x[0, 0].numel()

        model = model.clone()
        model.set_model_unet_function_wrapper(answer)
        return io.NodeOutput(model)


class PooledNorms(io.ComfyNode):
    """The names of the UNet's group norms that are not as the host made them while the model samples, as text."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_PooledNorms",
            category="tests",
            inputs=[io.Model.Input("model")],
            outputs=[io.String.Output()],
        )

    @classmethod
    def execute(cls, model):
        named = list(model.model.diffusion_model.named_modules())
        model.pre_run()
        changed = [name for name, part in named if "forward" in vars(part)]
        model.cleanup()
        left = [name for name, part in named if "forward" in vars(part)]
        return io.NodeOutput(" ".join([*changed, "|", *left]))


class VideoVae(io.ComfyNode):
    """A VAE that says it is a video model's."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_VideoVae", category="tests", inputs=[io.Vae.Input("vae")], outputs=[io.Vae.Output()]
        )

    @classmethod
    def execute(cls, vae):
        vae = copy.copy(vae)
        vae.latent_dim = 3
        return io.NodeOutput(vae)


class Rows(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Rows",
            category="tests",
            inputs=[io.Conditioning.Input("conditioning"), io.Int.Input("rows")],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning, rows):
        return io.NodeOutput([[tensor.expand(rows, -1, -1), options] for tensor, options in conditioning])


class World(io.ComfyNode):
    """A clip of the drawn world."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_World",
            category="tests",
            inputs=[
                io.String.Input("framing"),
                io.String.Input("action"),
                io.Int.Input("people"),
                io.Int.Input("seed"),
                io.Int.Input("frames"),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, framing, action, people, seed, frames):
        world = _load("world", "vcd_core/tiny/world.py")
        rng = random.Random(seed)
        crowd = tuple(world.random_person(rng) for _ in range(people))
        clip = world.Take(crowd, "snow", action, framing, seed, frames)
        pictures = [frame.image for frame in world.render_take(clip)]
        return io.NodeOutput(torch.from_numpy(np.stack(pictures)).float() / 255)


class Boxes(io.ComfyNode):
    """Boxes as another detector gives them: for each frame a list of x, y, width, height, in JSON."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Boxes",
            category="tests",
            inputs=[io.String.Input("boxes")],
            outputs=[io.Custom("BOUNDING_BOX").Output()],
        )

    @classmethod
    def execute(cls, boxes):
        names = ("x", "y", "width", "height")
        return io.NodeOutput([[dict(zip(names, box, strict=True)) for box in frame] for frame in json.loads(boxes)])


class Broken(io.ComfyNode):
    """A model that predicts NaN, or whose clip comes back black."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Broken",
            category="tests",
            inputs=[io.Model.Input("model")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model):
        model = model.clone()
        model.set_model_unet_function_wrapper(lambda apply, arguments: arguments["input"] * float("nan"))
        return io.NodeOutput(model)


class NoNumbers(io.ComfyNode):
    """Pictures with NaN in the last one."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_NoNumbers",
            category="tests",
            inputs=[io.Image.Input("images")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, images):
        images = images.clone()
        images[-1, 0, 0] = float("nan")
        return io.NodeOutput(images)


class Looks(io.ComfyNode):
    """Stands for a CLIP vision model: its embedding of a picture is the picture's mean colour, without its
    brightness."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="VCDTest_Looks", category="tests", inputs=[], outputs=[io.ClipVision.Output()])

    @classmethod
    def execute(cls):
        def encode_image(images):
            colour = images.mean((1, 2))
            return {"image_embeds": colour - colour.mean(1, keepdim=True)}

        return io.NodeOutput(types.SimpleNamespace(encode_image=encode_image))


class Vision(io.ComfyNode):
    """The host's own CLIP vision and DINOv2 classes, small and with random weights; ``cancel``: the user does, at the
    first pictures."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Vision",
            category="tests",
            inputs=[
                io.String.Input("kind"),
                io.Int.Input("width", default=64),
                io.Boolean.Input("cancel", default=False, optional=True),
            ],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, kind, width, cancel=False):
        config = {
            "hidden_size": width, "projection_dim": width, "intermediate_size": 2 * width, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 28, "patch_size": 14, "num_channels": 3, "hidden_act": "gelu",
            "layer_norm_eps": 1e-6, "use_swiglu_ffn": False, "mlp_ratio": 4, "layerscale_value": 1.0, "qkv_bias": True,
            "model_type": {"clip": "clip_vision_model", "dino": "dinov2"}[kind],
        }  # fmt: skip
        path = Path(folder_paths.get_temp_directory()) / f"{kind}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))
        vision = comfy.clip_vision.ClipVisionModel(str(path))
        random_models.fill(vision.model, 1)
        if cancel:
            encode_image = vision.encode_image

            def encode_and_cancel(pictures):
                logging.warning("looking at %d pictures before cancel", len(pictures))
                found = encode_image(pictures)
                comfy.model_management.interrupt_current_processing()
                return found

            vision.encode_image = encode_and_cancel
        return io.NodeOutput(vision)


class Projection(io.ComfyNode):
    """A CLIP whose text projection is multiplied."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Projection",
            category="tests",
            inputs=[io.Clip.Input("clip"), io.String.Input("scale")],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, clip, scale):
        layer = clip.cond_stage_model.clip_l.transformer.text_projection
        before = _originals.setdefault(id(layer), layer.weight.detach().clone())
        layer.weight = torch.nn.Parameter(before * float(scale), requires_grad=False)
        return io.NodeOutput(clip)


class UnweightedClip(io.ComfyNode):
    """A CLIP whose tokenizer takes brackets and weights for text, as those of some models do."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_UnweightedClip",
            category="tests",
            inputs=[io.Clip.Input("clip")],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, clip):
        clip = clip.clone()
        clip.tokenizer = copy.copy(clip.tokenizer)
        clip.tokenizer.clip_l = copy.copy(clip.tokenizer.clip_l)
        clip.tokenizer.clip_l.disable_weights = True
        return io.NodeOutput(clip)


class MaskedText(io.ComfyNode):
    """Stands for a text encoder that masks tokens: one token a word and an end, each with the number of tokens as its
    values."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_MaskedText",
            category="tests",
            inputs=[io.String.Input("extra", default="", optional=True)],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls, extra=""):
        def encode(words):
            count = len(words) + 1
            mask = torch.ones(1, count, dtype=torch.int64)
            more = {extra: torch.ones(count)} if extra else {}
            return [[torch.full((1, count, 8), float(count)), {"pooled_output": None, "attention_mask": mask, **more}]]

        return io.NodeOutput(types.SimpleNamespace(tokenize=str.split, encode_from_tokens_scheduled=encode))


class Upscaler(io.ComfyNode):
    """Stands for an upscale model: every pixel twice; it fails as if memory ran out on tiles above ``most`` pixels."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Upscaler",
            category="tests",
            inputs=[io.Int.Input("most")],
            outputs=[io.UpscaleModel.Output()],
        )

    @classmethod
    def execute(cls, most):
        class Twice(torch.nn.Module):
            scale = 2

            def forward(self, x):
                if x.shape[-1] > most:
                    raise comfy.model_management.OOM_EXCEPTION("the test's")
                return torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest")

        model, cpu = Twice(), torch.device("cpu")
        model.patcher = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), cpu, cpu)
        return io.NodeOutput(model)


class TinyControlNet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="VCDTest_ControlNet", category="tests", inputs=[], outputs=[io.ControlNet.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(random_models.tiny_controlnet())


class VideoModel(io.ComfyNode):
    """A tiny video model of a kind, in place of files that are not to be had."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_VideoModel",
            category="tests",
            inputs=[io.String.Input("kind")],
            outputs=[io.Model.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, kind):
        return io.NodeOutput(video_models.model(kind), video_models.vae(kind))


class Checkpoint(io.ComfyNode):
    """A tiny model of a kind with its text encoder and VAE."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Checkpoint",
            category="tests",
            inputs=[io.String.Input("kind")],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, kind):
        if kind == "sdxl":
            return io.NodeOutput(*random_models.tiny_sdxl(0, folder_paths.get_folder_paths("embeddings")))
        return io.NodeOutput(video_models.model(kind), video_models.text_encoder("umt5xxl"), video_models.vae(kind))


class VideoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_VideoPrompt",
            category="tests",
            inputs=[io.String.Input("kind"), io.Int.Input("seed", default=1)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, kind, seed):
        return io.NodeOutput(video_models.prompt(kind, seed))


class VideoSound(io.ComfyNode):
    """The sound of so many seconds as LTX-2's audio VAE gives it, 25 frames a second."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_VideoSound",
            category="tests",
            inputs=[io.Float.Input("seconds")],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, seconds):
        return io.NodeOutput({"samples": torch.ones(1, 8, round(25 * seconds), 16)})


class Killed(io.ComfyNode):
    """Kills the server at a call of the model, or as a file is half written, the ``at``-th from now on; at 0 never."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="VCDTest_Killed",
            category="tests",
            inputs=[io.Model.Input("model"), io.String.Input("what"), io.Int.Input("at")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model, what, at):
        numbers = itertools.count(1)
        write = _originals.setdefault("write", Path.write_bytes)

        def write_half(path, content):
            if what == "write" and next(numbers) == at:
                with path.open("wb") as file:
                    file.write(content[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, content)

        def call(apply, arguments):
            if what == "model" and next(numbers) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return apply(arguments["input"], arguments["timestep"], **arguments["c"])

        Path.write_bytes = write_half if at else write
        model = model.clone()
        if what == "model":
            model.set_model_unet_function_wrapper(call)
        return io.NodeOutput(model)


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [
            TinySD,
            SaveTensor,
            BatchIndex,
            NoiseSampler,
            ManyTiles,
            SamplingAttention,
            Told,
            KnownAnswer,
            PooledNorms,
            VideoVae,
            Rows,
            World,
            Boxes,
            Broken,
            NoNumbers,
            Looks,
            Vision,
            Projection,
            UnweightedClip,
            MaskedText,
            Upscaler,
            TinyControlNet,
            VideoModel,
            Checkpoint,
            VideoPrompt,
            VideoSound,
            Killed,
        ]


async def comfy_entrypoint():
    return Extension()
