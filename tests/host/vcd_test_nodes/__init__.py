"""Nodes that only the tests use: a tiny random SD 1.5, and saving a latent or pictures exactly."""

import importlib.util
import logging
import sys
from pathlib import Path

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io

_source = Path(__file__).resolve().parents[3] / "dev" / "random_models.py"
_spec = importlib.util.spec_from_file_location("vcd_random_models", _source)
random_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(random_models)


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
                io.MultiType.Input("value", types=[io.Latent, io.Image, io.Mask, io.Conditioning]),
            ],
        )

    @classmethod
    def execute(cls, name, value):
        folder = Path(folder_paths.get_output_directory()) / "vcd_tests"
        folder.mkdir(exist_ok=True)
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
        host = next(m for name, m in sys.modules.items() if name.endswith("video_custom_diffusion.nodes.host"))
        at_once = _originals.setdefault("at_once", host._tiles_at_once)
        host._tiles_at_once = (lambda base, x, grid, conds: len(grid.tiles)) if most else at_once

        def call(apply, arguments):
            if most and len(arguments["input"]) > most:
                logging.warning("refused a batch of %d", len(arguments["input"]))
                raise comfy.model_management.OOM_EXCEPTION("the test's")
            return apply(arguments["input"], arguments["timestep"], **arguments["c"])

        model = model.clone()
        model.set_model_unet_function_wrapper(call)
        return io.NodeOutput(model)


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


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [TinySD, SaveTensor, BatchIndex, ManyTiles, Rows]


async def comfy_entrypoint():
    return Extension()
