"""A program that is killed at any moment leaves no half file, and what it was at goes on to the same bits."""

import dataclasses
import functools
import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from child import ANSWER
from PIL import Image
from safetensors.torch import load_file
from served import Bench, Graph, out
from tally import FAULTS, WHOLE, count

from dev.host import PACK, link, with_pack
from dev.server import Server, host_from_environment

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="Copies of a process are made with fork.")

KILLED = -9


class Child:
    """A process with the host's classes, of which copies run nodes and may be killed: see child.py."""

    def __init__(self):
        host = host_from_environment()
        script = Path(__file__).with_name("child.py")
        command = [sys.executable, str(script), str(host.comfy), str(host.base / "custom_nodes"), PACK]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._answer() == "ready"

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return line.removeprefix(ANSWER).strip()
        raise RuntimeError("The process ended.")

    def run(self, base, node, **more):
        """What the node gives, with its files below ``base``; None where it was killed."""
        base.mkdir(exist_ok=True)
        self.process.stdin.write(json.dumps({"base": str(base), "node": node, **more}) + "\n")
        self.process.stdin.flush()
        status = int(self._answer())
        assert status in (0, KILLED)
        count(FAULTS, status == KILLED)
        return None if status else torch.load(base / "found.pt")


@pytest.fixture(scope="module")
def child():
    made = Child()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def base(tmp_path):
    """``base()``: a new folder each time."""
    numbers = iter(range(10000))
    return lambda: tmp_path / str(next(numbers))


@pytest.fixture(scope="module")
def undisturbed(child, tmp_path_factory):
    """What a node gives, how often it comes by each point, and the folder of its files."""

    @functools.cache
    def run(node):
        folder = tmp_path_factory.mktemp(node)
        return child.run(folder, node), json.loads((folder / "times").read_text()), folder

    return run


def each(times):
    """All of 1 to ``times``, or where not all is run the last."""
    return range(1, times + 1) if WHOLE else [times]


def left(folder):
    return [path for path in folder.rglob(".*") if path.name.endswith(".partial")]


SAVING = [("write", False), ("rename", False), ("rename", True)]
COMPUTING = ("model", *(("step", "load", "encoder", "decoder", "text", "ask") if WHOLE else ()))


@pytest.mark.parametrize(("point", "after"), [*SAVING, *((point, False) for point in COMPUTING)])
def test_a_training_goes_on_to_the_same_bits(child, base, undisturbed, point, after):
    right, times, folder = undisturbed("train")
    losses = load_file(folder / "output" / "vcd_training" / "anna.safetensors")["losses"]
    numbers = each(times[point])
    for n in numbers[:: max(1, len(numbers) // 10)]:
        here = base()
        state = here / "output" / "vcd_training" / "anna.safetensors"
        assert child.run(here, "train", point=point, at=n, after=after) is None
        if state.is_file():
            assert torch.equal(losses[: len(load_file(state)["losses"])], load_file(state)["losses"])
        assert len(left(here)) == (point == "write" or (point == "rename" and not after))
        assert torch.equal(child.run(here, "train"), right)
        assert torch.equal(load_file(state)["losses"], losses)


def test_more_steps_after_a_kill_are_as_in_one_run(child, base):
    whole, here = base(), base()
    right = child.run(whole, "train", steps=5)
    assert child.run(here, "train", steps=5, point="write", at=2) is None
    assert len(load_file(here / "output" / "vcd_training" / "anna.safetensors")["losses"]) == 2
    assert torch.equal(child.run(here, "train", steps=5), right)


@pytest.mark.parametrize(("point", "after"), SAVING)
def test_an_identity_is_the_older_or_the_newer_one(child, base, point, after):
    for n in (1, 2):
        here = base()
        child.run(here, "save", value=0.5)
        assert child.run(here, "save", value=0.25, point=point, at=n, after=after) is None
        file = here / "embeddings" / "people" / "anna.safetensors"
        values = load_file(file)["emb_params"].unique().tolist()
        newer = [0.25] if n == 2 or after else [0.5]
        assert values == newer
        with Image.open(file.with_suffix(".png")) as picture:
            shade = picture.convert("RGB").getpixel((0, 0))[0]
        assert shade == (64 if n == 2 and after else 128)
        assert child.run(here, "save", value=0.25) == "people/anna.safetensors"
        assert load_file(file)["emb_params"].unique().tolist() == [0.25]
        files = [path.name for path in file.parent.iterdir() if path not in left(here)]
        assert sorted(files) == ["anna.png", "anna.safetensors"]


@pytest.mark.parametrize(("point", "after"), SAVING)
def test_a_report_is_whole_or_not_there(child, base, point, after):
    for n in each(2):
        here = base()
        assert child.run(here, "evaluate", report="r", point=point, at=n, after=after) is None
        pages, data = (list((here / "output").glob(f"*.{kind}")) for kind in ("html", "json"))
        assert len(pages) == (n == 2 or after)
        assert len(data) == (n == 2 and after)
        assert all(path.read_text(encoding="utf-8").endswith("</html>\n") for path in pages)
        assert child.run(here, "evaluate", report="r").startswith("| | this clip |")


@pytest.mark.parametrize("node", ["refine", "tiles"])
def test_what_was_being_drawn_is_drawn_the_same_afterwards(child, base, undisturbed, node):
    right, times, _ = undisturbed(node)
    for point in ("load", "encoder", "model", "decoder") if WHOLE else ("model",):
        here = base()
        for n in each(times[point]):
            assert child.run(here, node, point=point, at=n) is None
            assert torch.equal(child.run(here, node), right)


class Restarted:
    """A server of its own that can be killed and started again on the same folders."""

    def __init__(self, base):
        base.mkdir()
        self.host = with_pack(dataclasses.replace(host_from_environment(), base=base))
        link(Path(__file__).parents[1] / "host" / "vcd_test_nodes", base / "custom_nodes" / "vcd_test_nodes")
        self.start()

    def start(self):
        self.server = Server(self.host, arguments=("--disable-api-nodes",))
        self.server.start()
        self.bench = Bench(self.server)

    def dies(self, graph, node):
        """Run a graph in which the server is killed, and start it again."""
        with pytest.raises((OSError, RuntimeError, http.client.HTTPException)):
            self.bench.tensors(graph, node)
        deadline = time.monotonic() + 30
        while self.server.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.server.process.poll() == KILLED
        count(FAULTS)
        self.start()


@pytest.fixture(scope="module")
def restarted(tmp_path_factory):
    made = Restarted(tmp_path_factory.mktemp("killed") / "base")
    yield made
    made.server.stop()


whole = pytest.mark.skipif(not WHOLE, reason="Servers are killed where all is run: python run.py harden.")


@whole
def test_a_server_killed_as_it_writes_a_training_goes_on_to_the_same_bits(restarted):
    def graph(name, at=0):
        graph = Graph()
        loader = graph.VCDTest_TinySD(weights=0)
        model = graph.VCDTest_Killed(model=loader, what="write", at=at)
        pictures = graph.EmptyImage(width=64, height=64, batch_size=2, color=0xCC8844)
        return graph, graph.VCD_IdTrainer(
            model=model, clip=out(loader, 1), vae=out(loader, 2), images=pictures, name=name, class_word="woman",
            tokens=2, steps=55, batch=1, learning_rate=0.01, size=64, fit="whole picture", template="photo of a V*",
            sample_every=0, resume=True, seed=3,
        )  # fmt: skip

    restarted.dies(*graph("anna", at=2))
    state = restarted.host.base / "output" / "vcd_training" / "anna.safetensors"
    assert len(load_file(state)["losses"]) == 25
    assert len(left(state.parent)) == 1
    bench = restarted.bench
    assert torch.equal(bench.tensors(*graph("anna")), bench.tensors(*graph("whole")))


@whole
def test_a_server_killed_as_it_refines_faces_gives_the_same_afterwards(restarted):
    def graph(at=0):
        graph = Graph()
        loader = graph.VCDTest_TinySD(weights=0)
        model = graph.VCDTest_Killed(model=loader, what="model", at=at)
        clip = graph.VCDTest_World(framing="medium", action="walking", people=2, seed=2, frames=4)
        told = {name: graph.CLIPTextEncode(clip=out(loader, 1), text=name) for name in ("positive", "negative")}
        return graph, graph.VCD_FaceRefine(
            images=clip, model=model, vae=out(loader, 2), **told, steps=2, cfg=4.0, sampler_name="euler",
            scheduler="normal", denoise=0.7, gamma=0.3, seed=5, refine_size=64, crop_factor=1.6, aspect=1.0,
            feather=5.0, paste_factor=1.6, match_colour=False, which="all", index=0,
        )  # fmt: skip

    right = restarted.bench.tensors(*graph())
    restarted.dies(*graph(at=3))
    assert torch.equal(restarted.bench.tensors(*graph()), right)
