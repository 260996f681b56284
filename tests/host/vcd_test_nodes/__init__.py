"""Nodes that only the tests use: a tiny random SD 1.5, and saving a latent or pictures exactly."""

import importlib.util
from pathlib import Path

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


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [TinySD, SaveTensor, BatchIndex]


async def comfy_entrypoint():
    return Extension()
