"""A real ComfyUI server with the pack and a few test nodes, shared by all host tests."""

import itertools
import os
from pathlib import Path

import pytest
import torch

from dev.host import HOST, OLDEST, link, prepare
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

    def tensors(self, graph, *nodes, timeout=600):
        """Run ``graph`` and return what each node output holds: latents and conditioning as they are, images as tensors."""
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


def _serve(host):
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
