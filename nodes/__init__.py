"""The extension: which nodes there are, and which nodes of other packs they can stand in for."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import evaluate, face, host, identity, motion, noise, segmentation, tiled, tiny, training

NODES: list[type[io.ComfyNode]] = [
    *noise.NODES,
    *motion.NODES,
    *identity.NODES,
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
            await host.register_replacement(replacement)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> VideoCustomDiffusion:
    return VideoCustomDiffusion()
