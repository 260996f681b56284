"""A study on a local Ray cluster: a worker that is killed costs nothing, and the figures are one machine's."""

import json
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from dev.farm import run as farm
from dev.farm.film import ends, open_film
from dev.farm.study import read
from dev.farm.worker import Worker
from dev.graph import to_api
from dev.server import QueueError, host_from_environment
from vcd_core.tiny import world

pytestmark = pytest.mark.slow

GRAPH = {
    "1": {"class_type": "VCD_TinyModel", "inputs": {}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}, "_meta": {"title": "Prompt"}},
    "3": {"class_type": "VCD_NoisePriorLatent", "inputs": {
        "width": 64, "height": 64, "frames": 4, "gamma": 0.1, "seed": 1, "layout": "comfy",
    }},
    "4": {"class_type": "KSampler", "inputs": {
        "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": 1, "steps": 2,
        "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }},
    "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "VCD_Evaluate", "inputs": {"images": ["5", 0]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "farm/still"}},
}  # fmt: skip
STUDY = """graph: graph.json
vary:
  who: {set: Prompt.text, to: [a man, a woman]}
  steps: {set: KSampler.steps, to: [1, 2]}
  seed: {set: KSampler.seed, to: [1, 2]}
"""


class Alone:
    """One machine: a worker in this process."""

    workers = 1

    def __init__(self, worker):
        self.worker, self.queue, self.ready = worker, [], {0}

    def start(self, worker, job):
        self.queue.append(job)

    def next(self):
        job = self.queue.pop(0)
        try:
            files = {name: path.read_bytes for name, path in job.files.items()}
            return 0, job.number, "done", self.worker.do(job.prompt, files)
        except QueueError as error:
            return 0, job.number, "failed", str(error)


FILM = {
    "1": {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}},
    "2": {"class_type": "GetVideoComponents", "inputs": {"video": ["1", 0]}},
    "3": {"class_type": "VCD_TinyModel", "inputs": {}},
    "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["3", 1], "text": "a woman"}},
    "5": {"class_type": "VCD_FaceRefine", "inputs": {
        "images": ["2", 0], "model": ["3", 0], "vae": ["3", 2], "positive": ["4", 0], "negative": ["4", 0], "steps": 2,
        "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.6, "gamma": 0.1, "seed": 1,
        "refine_size": 64, "crop_factor": 1.6, "aspect": 1.0, "feather": 8.0, "paste_factor": 1.2,
        "match_colour": False, "which": "all", "index": 0,
    }},
    "6": {"class_type": "CreateVideo", "inputs": {"images": ["5", 0], "fps": ["2", 2]}},
    "7": {"class_type": "SaveVideo", "inputs": {
        "video": ["6", 0], "filename_prefix": "film", "format": "auto", "codec": "auto",
    }},
}  # fmt: skip


def cartoon(path):
    """A clip of three scenes of six frames: two people, nobody, and one; its pictures."""
    first, second, third = world.identities(3)
    takes = [
        world.Take((first, second), "beach", "waving", "close-up", seed=1, frames=6),
        world.Take((), "forest", "waving", "medium", seed=2, frames=6),
        world.Take((third,), "city", "waving", "close-up", seed=3, frames=6),
    ]
    images = [frame.image.repeat(2, 0).repeat(2, 1) for take in takes for frame in world.render_take(take)]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=8, options={"crf": "4"})
        video.height, video.width = images[0].shape[:2]
        video.pix_fmt = "yuv444p"
        for image in images:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(video.encode(None))
    return images


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The study and its figures by one machine, and that machine."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "graph.json").write_text(json.dumps(GRAPH))
    (folder / "study.yaml").write_text(STUDY)
    worker = Worker(host_from_environment())
    try:
        jobs = read(folder / "study.yaml", to_api, worker.nodes())
        assert farm.run(jobs, folder / "one", Alone(worker), lambda text: None) == []
        yield folder, jobs, worker
    finally:
        worker.stop()
    assert not worker.folder.exists()


def test_the_figures_are_there_and_differ_where_the_graphs_do(alone):
    folder, jobs, _ = alone
    rows = json.loads((folder / "one" / "figures.json").read_text())
    assert [row["values"] for row in rows] == [job.values for job in jobs]
    sharpness = [row["figures"]["6"]["clips"]["this clip"]["figures"]["sharpness"]["mean"]["value"] for row in rows]
    assert len(set(sharpness)) == 8
    pictures = [name for name in rows[0]["files"] if name.startswith("farm/still")]
    assert len(pictures) == 4
    assert (folder / "one" / "jobs" / rows[0]["job"] / pictures[0]).read_bytes().startswith(b"\x89PNG")


def test_a_node_that_fails_is_told_in_its_own_words(alone, tmp_path):
    _, jobs, worker = alone
    broken = [jobs[0], replace(jobs[1], settings={**jobs[1].settings, ("3", "gamma"): 7.0})]
    failed = farm.run(broken, tmp_path, Alone(worker), lambda text: None)
    assert len(failed) == 1
    assert failed[0].startswith("who a man, steps 1, seed 2: VCD_NoisePriorLatent: ")
    assert len(json.loads((tmp_path / "figures.json").read_text())) == 1


@pytest.fixture(scope="module")
def pool():
    """Two workers of a local cluster."""
    pytest.importorskip("ray", reason="Ray is not installed: requirements-farm.txt")
    import ray

    from dev.farm.pool import RayPool

    made = RayPool(2)
    yield made
    if ray.is_initialized():
        made.close()


def test_a_killed_worker_costs_nothing(alone, pool, tmp_path):
    import ray

    folder, jobs, _ = alone
    rng, killed = random.Random(os.getpid()), []
    after = rng.randrange(5)

    def kill(process):
        while len(list((tmp_path / "jobs").glob("[!.]*"))) < after:
            time.sleep(0.02)
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    processes = ray.get([actor.process.remote() for actor in pool.actors])
    threading.Thread(target=kill, args=[rng.choice(processes)], daemon=True).start()
    assert farm.run(jobs, tmp_path, pool, lambda text: None) == []
    assert killed
    assert (tmp_path / "figures.json").read_bytes() == (folder / "one" / "figures.json").read_bytes()
    for path in (path for path in (folder / "one").rglob("*") if path.is_file()):
        assert (tmp_path / path.relative_to(folder / "one")).read_bytes() == path.read_bytes()


def test_a_film_is_the_same_by_one_machine_and_by_two(alone, pool, tmp_path):
    """Three scenes: two faces, none, one; each face is drawn where it is, and by whom makes no difference."""
    worker, before = alone[2], cartoon(tmp_path / "clip.mp4")
    found = ends(FILM, worker.nodes())
    folders = {"one": Alone(worker), "two": pool}
    for name, workers in folders.items():
        film = open_film(tmp_path / "clip.mp4", found, tmp_path / name)
        assert film.run(workers, lambda text: None) == []
    assert [scene.frames for scene in film.reel.scenes] == [range(6), range(6, 12), range(12, 18)]
    rows = json.loads((tmp_path / "one" / "figures.json").read_text())
    assert [(row["values"]["scene"], row["values"].get("face")) for row in rows] == [
        (0, None), (0, 0), (0, 1), (1, None), (2, None),
    ]  # fmt: skip
    one, two = ((tmp_path / name / "film.mp4").read_bytes() for name in folders)
    assert one == two
    with av.open(str(tmp_path / "one" / "film.mp4")) as container:
        after = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    change = [np.abs(a.astype(int) - b).max(2) for a, b in zip(after, before, strict=True)]
    drawn = [[float((part > 40).mean()) for part in np.array_split(image, 2, axis=1)] for image in change]
    assert len(after) == 18
    assert all(min(left, right) > 0.02 for left, right in drawn[:6])
    assert all(max(left, right) < 0.01 for left, right in drawn[6:12])
    assert all(left + right > 0.04 for left, right in drawn[12:])


def test_no_servers_are_left_and_too_many_workers_are_refused(alone, pool):
    pool.close()
    with pytest.raises(ValueError, match="9999 workers are too many"):
        type(pool)(9999)
    folder = alone[2].folder
    ours = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(folder.parent) in _text(path)]
    assert [path for path in ours if str(folder) not in _text(path)] == []  # each ends with its worker


def _text(path):
    try:
        return path.read_text()
    except OSError:
        return ""
