"""The embedded default: a tiny SD 1.5 and clips of its world, which need no download (vcd_core.tiny)."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..vcd_core.tiny import clips, world
from ..vcd_core.tiny import model as tiny
from .host.files import add_model_folder, embedding_folders
from .host.memory import handed_on
from .host.model import Model
from .host.tiny import Conv2d, small_sd15
from .identity import EMBEDDINGS
from .inputs import CATEGORY, seed_input
from .motion import FILES

# its motion module and its identity are chosen in the lists like any other
add_model_folder(FILES, str(tiny.MOTION_FILE.parent), {".safetensors"})
add_model_folder(EMBEDDINGS, str(tiny.IDENTITY_FILE.parent), {".safetensors"})


def load_tiny() -> tuple[Model, object, object]:
    """MODEL, CLIP and VAE of the tiny model with its weights."""
    weights = tiny.load_weights()
    autoencoder = tiny.PictureAutoencoder(conv=Conv2d)
    autoencoder.load_state_dict(tiny.weights_of(weights, "vae"))
    colours = (tiny.COLOURS, tiny.NO_COLOUR)
    model, clip, vae = small_sd15(tiny.UNET, tiny.HEADS, tiny.TEXT, autoencoder, embedding_folders(), colours)
    model.model.diffusion_model.load_state_dict(tiny.weights_of(weights, "unet"))
    encoder = clip.cond_stage_model.clip_l.transformer
    table = torch.zeros(encoder.get_input_embeddings().weight.shape)  # words it does not know count as nothing
    table[weights["words"]] = weights["table"]
    text = {f"text_model.{key}": value for key, value in tiny.weights_of(weights, "text").items()}
    text["text_model.embeddings.token_embedding.weight"] = table
    # as a state dict: where the host loads weights lazily, there is nothing to copy into
    encoder.load_state_dict({**text, "text_projection.weight": torch.eye(tiny.TEXT_WIDTH)})
    return model, clip, vae


class TinyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_TinyModel",
            display_name="VCD Tiny Model",
            category=CATEGORY,
            description="A tiny SD 1.5 that ships with the pack: it draws cartoon people at 128x128, so that every "
            "node can be tried without a download. See its help page for the words it knows.",
            search_aliases=["vcd", "magic me", "tiny", "demo model", "no download", "checkpoint"],
            inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(*load_tiny())


class TinyClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VCD_TinyClip",
            display_name="VCD Tiny Clip",
            category=CATEGORY,
            description="A cartoon clip of 128x128 with the person's masks, to try any node on without a file of your "
            "own; or pictures of one person in several scenes, to train on.",
            search_aliases=["vcd", "magic me", "tiny", "demo clip", "sample video", "example video", "no download"],
            inputs=[
                io.Combo.Input(
                    "shows",
                    options=[clips.CLIP, clips.PICTURES],
                    default=clips.CLIP,
                    tooltip="A clip: one take at 8 frames a second. Pictures: each frame in another scene.",
                ),
                io.Combo.Input(
                    "person",
                    options=[clips.ROBIN, clips.ANYONE],
                    default=clips.ROBIN,
                    tooltip="robin: the person of the identity that ships (vcd_tiny_robin). by the seed: anyone.",
                ),
                io.Combo.Input(
                    "framing", options=list(world.FRAMINGS), default="medium", tooltip="How large the person is."
                ),
                io.Int.Input("frames", default=16, min=1, max=256, tooltip="How many frames, or pictures."),
                seed_input(control=io.ControlAfterGenerate.fixed),
            ],
            outputs=[
                io.Image.Output(display_name="images"),
                io.Mask.Output(display_name="masks", tooltip="The person in white."),
            ],
        )

    @classmethod
    def execute(cls, shows: str, person: str, framing: str, frames: int, seed: int) -> io.NodeOutput:
        draw = clips.clip if shows == clips.CLIP else clips.pictures
        images, masks = draw(person, framing, frames, seed)
        return io.NodeOutput(handed_on(images), handed_on(masks))


NODES: list[type[io.ComfyNode]] = [TinyModel, TinyClip]
