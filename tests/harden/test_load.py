"""Many prompts in a row, two clients, long clips: nothing grows, nothing changes, nothing is mixed up."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from served import Bench, Graph, link, out
from tally import PROMPTS, WHOLE, count, tries

from dev.graph import api_node
from dev.host import ROOT
from dev.server import Server, host_from_environment

GROWTH = 1.02  # of the server's memory, from the tenth prompt on
TESTS = Path(__file__).resolve().parents[1]


class Filled(Graph):
    """A graph whose widgets stand at their defaults."""

    def __init__(self, info):
        super().__init__()
        self.info = info

    def __getattr__(self, kind):
        def add(**inputs):
            key = str(len(self.prompt) + 1)
            self.prompt[key] = api_node(self.info, kind, **inputs)
            return [key, 0]

        return add


class Everything:
    """A graph with every node of the pack, small; ``kept``: what its outputs are named."""

    def __init__(self, graph, seed):
        self.graph, self.seed, self.kept = graph, seed, []
        tiny = graph.VCD_TinyModel()
        self.model, self.clip, self.vae = (out(tiny, slot) for slot in range(3))
        self.frames = graph.VCD_TinyClip(framing="close-up", frames=4)
        self.id = graph.VCD_IdLoader(file="vcd_tiny_robin.safetensors")
        self.positive = graph.VCD_IdTextEncode(
            clip=self.clip, prompt="a close-up of V*", frames=4, **{"ids.id0": self.id}
        )
        self.negative = graph.CLIPTextEncode(clip=self.clip, text="")
        moving = graph.VCD_MotionModule(model=self.model, motion_module="vcd_tiny_motion.safetensors")
        self.moving = graph.VCD_ApplyNoisePrior(model=moving, gamma=0.2)
        for part in (self.noise, self.stages, self.people, self.learning):
            self.kept += part()

    def drawn(self, model, positive, latent):
        return self.graph.KSampler(
            model=model, positive=positive, negative=self.negative, latent_image=latent, steps=2, cfg=2.0,
            sampler_name="euler_ancestral", seed=self.seed,
        )  # fmt: skip

    def noise(self):
        graph, seed = self.graph, self.seed
        graph.PreviewAny(source=graph.VCD_NoisePrior(gamma=0.3, seed=seed))
        latent = graph.VCD_NoisePriorLatent(width=64, height=64, frames=4, seed=seed)
        tiles = graph.VCD_TiledPatch(model=self.moving, tile_size=64, overlap=16)
        return graph.VCD_NoisePriorPreview(frames=4, seed=seed), self.drawn(tiles, self.positive, latent)

    def stages(self):
        graph = self.graph
        given = {"model": self.moving, "vae": self.vae, "positive": self.positive, "negative": self.negative}
        given |= {"steps": 1, "seed": self.seed}
        faces = graph.VCD_FaceTrack(images=self.frames, threshold=0.3, min_length=1)
        crops = graph.VCD_FaceCrop(images=self.frames, faces=faces, refine_size=64)
        pasted = graph.VCD_FacePaste(images=self.frames, crop=out(crops, 1), refined=crops)
        refined = graph.VCD_FaceRefine(images=pasted, faces=faces, refine_size=64, **given)
        tiled = graph.VCD_TiledDenoise(images=refined, scale=1.5, tile_size=96, **given)
        graph.PreviewAny(source=graph.VCD_Evaluate(images=refined, faces=faces))
        graph.PreviewAny(source=graph.VCD_Compare(**{"clips.clip0": refined, "clips.clip1": self.frames}))
        return pasted, refined, tiled

    def people(self):
        both = {f"people.person{i}": self.graph.CLIPTextEncode(clip=self.clip, text=one)
                for i, one in enumerate(("a man", "a woman"))}  # fmt: skip
        bound = self.graph.VCD_Cast(model=self.model, places="left\nright", frames=4, everybody=self.negative, **both)
        latent = self.graph.EmptyLatentImage(width=64, height=64, batch_size=4)
        return (self.drawn(bound, out(bound, 1), latent),)

    def learning(self):
        graph, name = self.graph, f"load_{self.seed}"
        graph.PreviewImage(images=graph.VCD_Pictures(folder="vcd_load"))
        trained = graph.VCD_IdTrainer(
            model=self.model, clip=self.clip, vae=self.vae, images=self.frames, masks=out(self.frames, 1), name=name,
            steps=3, batch=1, size=64, sample_every=0, resume=False, seed=self.seed,
        )  # fmt: skip
        graph.PreviewAny(source=graph.VCD_IdSave(id=trained, name=name, overwrite=True))
        return (graph.VCD_IdTextEncode(clip=self.clip, prompt="V*", **{"ids.id0": trained}),)


@pytest.fixture(scope="module")
def server():
    """One that keeps nothing between prompts, so that each is worked out anew."""
    host = host_from_environment()
    link(TESTS / "host" / "vcd_test_nodes", host.base / "custom_nodes" / "vcd_test_nodes")
    with Server(host, arguments=("--disable-api-nodes", "--cache-none")) as running:
        yield running


@pytest.fixture(scope="module")
def run(server):
    """``run(seed)``: what came out of every node."""
    from PIL import Image

    bench, info = Bench(server), server.get("/object_info")
    folder = server.host.base / "input" / "vcd_load"
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(folder / "red.png")

    def everything(seed):
        graph = Filled(info)
        found = Everything(graph, seed)
        segmented = {"VCD_PromptToSegmentation"}  # needs a download
        used = {node["class_type"] for node in graph.prompt.values()} | segmented
        assert {name for name in info if name.startswith("VCD_")} - used == set()
        count(PROMPTS)
        return bench.tensors(graph, *found.kept)

    yield everything
    for path in (*folder.iterdir(), *(server.host.base / "models" / "embeddings").glob("load_*.*")):
        path.unlink()
    folder.rmdir()


def same(value, other):
    if isinstance(value, torch.Tensor):
        return torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(same, value, other))
    return value == other


def resident(server):
    status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1])


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_a_server_does_not_grow_and_gives_the_same_each_time(server, run):
    rounds = tries(12, 100)
    first, sizes = run(1), []
    for _ in range(1, rounds):
        assert same(run(1), first)
        server.post("/history", {"clear": True})  # of ten thousand prompts the host keeps graphs and outputs
        sizes.append(resident(server))
    early, late = sizes[8], min(sizes[-3:])
    assert late < early * GROWTH, f"{early} kB after ten prompts, {late} after {rounds}"


def test_two_clients_get_what_each_asked_for(run):
    alone = {seed: run(seed) for seed in (1, 2)}
    assert not same(alone[1], alone[2])
    found = {}

    def client(seed):
        found[seed] = [run(seed) for _ in range(tries(1, 3))]

    clients = [threading.Thread(target=client, args=(seed,)) for seed in alone]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert all(same(one, alone[seed]) for seed in alone for one in found[seed])


@pytest.mark.skipif(not WHOLE, reason="a minute: run.py harden")
@pytest.mark.parametrize("stage", ["track, detecting", "crop", "paste"])
def test_a_clip_of_2000_frames_stays_within_the_memory_that_the_readme_tells(stage):
    script = "import sys, json; from benchmarks.memory import *; print(json.dumps(measured(sys.argv.pop(), SIZES[-1])))"
    done = subprocess.run([sys.executable, "-c", script, stage], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) < 1.3
