"""The extension: which nodes there are, and which nodes of other packs they can stand in for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import cast, evaluate, face, identity, motion, noise, pictures, segmentation, tiled, tiny, training
from .host.ui import register_replacement

NODES: list[type[io.ComfyNode]] = [
    *noise.NODES,
    *motion.NODES,
    *identity.NODES,
    *cast.NODES,
    *pictures.NODES,
    *training.NODES,
    *segmentation.NODES,
    *face.NODES,
    *tiled.NODES,
    *tiny.NODES,
    *evaluate.NODES,
]


class VideoCustomDiffusion(ComfyExtension):
    async def on_load(self) -> None:
        for replacement in noise.REPLACEMENTS:
            await register_replacement(replacement)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> VideoCustomDiffusion:
    return VideoCustomDiffusion()
