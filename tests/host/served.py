"""A real ComfyUI server with the pack and a few test nodes, shared by all tests that want one: fixtures."""

import importlib
import itertools
import os
import sys
from pathlib import Path

import pytest
import torch

from dev import random_models
from dev.host import HOST, OLDEST, PACK, link, prepare
from dev.server import Server, host_from_environment


class Graph:
    """A graph in API form: ``graph.KSampler(model=..., ...)`` adds a node and returns its first output."""

    def __init__(self):
        self.prompt = {}

    def __getattr__(self, kind):
        def add(**inputs):
            key = str(len(self.prompt) + 1)
            self.prompt[key] = {"class_type": kind, "inputs": inputs}
            return [key, 0]

        return add


def out(node, slot):
    return [node[0], slot]


class Bench:
    """The server, and what tests do with it: run a graph and get tensors back."""

    def __init__(self, server):
        self.server = server
        self.names = (f"{os.getpid()}-{i}" for i in itertools.count())

    def graph(self):
        return Graph()

    def listen(self):
        """Mark the end of the server's log; the function that comes back gives what was written there since."""
        log = self.server.log
        mark = log.stat().st_size
        return lambda: log.read_bytes()[mark:].decode(errors="replace")

    def tensors(self, graph, *nodes, timeout=600):
        """Run ``graph`` and return what each node output holds: latents and conditioning as they are, images as
        tensors."""
        names = [next(self.names) for _ in nodes]
        for name, node in zip(names, nodes, strict=True):
            graph.VCDTest_Save(name=name, value=node)
        self.server.run(graph.prompt, timeout)
        folder = self.server.host.base / "output" / "vcd_tests"
        values = []
        for name in names:
            values.append(torch.load(folder / f"{name}.pt"))
            (folder / f"{name}.pt").unlink()
        return values[0] if len(values) == 1 else values

    def samples(self, graph, *nodes):
        values = self.tensors(graph, *nodes)
        return values["samples"] if isinstance(values, dict) else [v["samples"] for v in values]


TINY_CHANNELS = tuple(random_models.TINY_CHANNELS * m for m in random_models.TINY_MULTIPLIERS)


def _motion_files(models):
    """Small motion files for the tiny model, and files that are something else."""
    from safetensors.torch import save_file

    folder = models / "animatediff_models"
    for version in ("v1", "v2", "v3"):
        path = folder / f"test_tiny_{version}.safetensors"
        random_models.write_once(path, "motion", version=version, channels=TINY_CHANNELS)
    full = random_models.motion_state_dict("v2", TINY_CHANNELS)
    down = {k: v * 0 if k.startswith(("mid", "up")) and ".proj_out." in k else v for k, v in full.items()}
    save_file(down, folder / "test_tiny_down.safetensors")  # only the modules on the way down do anything
    sdxl = {k: v for k, v in full.items() if not k.startswith(("down_blocks.3", "up_blocks.3", "mid_block"))}
    save_file(sdxl, folder / "test_sdxl.safetensors")
    save_file({"lora_unet_x.alpha": torch.ones(1)}, folder / "test_other.safetensors")
    (folder / "test_broken.safetensors").write_bytes(b"not a file of tensors")
    loras = models / "animatediff_motion_lora"
    loras.mkdir(parents=True, exist_ok=True)
    save_file(random_models.motion_lora_state_dict(full), loras / "test_tiny_lora.safetensors")


def _serve(host):
    _motion_files(host.base / "models")
    link(Path(__file__).parent / "vcd_test_nodes", host.base / "custom_nodes" / "vcd_test_nodes")
    ade = os.environ.get("VCD_ADE")
    if ade:
        link(Path(ade).resolve(), host.base / "custom_nodes" / "ComfyUI-AnimateDiff-Evolved")
    with Server(host, arguments=("--disable-api-nodes",)) as server:
        yield Bench(server)


@pytest.fixture(scope="session")
def bench():
    yield from _serve(host_from_environment())


@pytest.fixture(scope="session")
def oldest_bench():
    if not HOST.is_dir():
        pytest.skip("the oldest host is set up by run.py, not with --comfy DIR")
    yield from _serve(prepare(None, OLDEST))


@pytest.fixture(scope="session")
def ade(bench):
    if "ADE_AnimateDiffLoaderGen1" not in bench.server.get("/object_info"):
        pytest.skip("AnimateDiff-Evolved is not there: give its folder with --ade DIR")


@pytest.fixture
def full_size(bench):
    """A random SD 1.5 checkpoint and motion module of full size, made once by a process that has the host's classes."""
    yield random_models.full_size(bench.server.host.base / "models")
    bench.server.free()  # other workers' servers need the memory too


@pytest.fixture(scope="session")
def pack():
    """``pack("nodes.host.cut")``: a module of the pack in this process, with the host's own classes beside it."""
    host = host_from_environment()
    arguments = sys.argv
    random_models.enter_host(host.comfy)
    importlib.import_module("comfy.cli_args")  # reads the command line
    sys.argv = arguments
    sys.path.insert(0, str(host.base / "custom_nodes"))
    return lambda name: importlib.import_module(f"{PACK}.{name}")


@pytest.fixture
def tiny():
    """A graph that holds the tiny model and two prompts: ``graph, model, vae, positive, negative``."""

    def make(prompt="a photo of a man"):
        graph = Graph()
        loader = graph.VCDTest_TinySD(weights=0)
        clip = out(loader, 1)
        positive = graph.CLIPTextEncode(clip=clip, text=prompt)
        negative = graph.CLIPTextEncode(clip=clip, text="")
        return graph, loader, out(loader, 2), positive, negative

    return make
