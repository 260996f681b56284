"""A study on a local Ray cluster: a worker that is killed costs nothing, and the figures are one machine's."""

import copy
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from dev.farm import run as farm
from dev.farm.study import read
from dev.farm.worker import Worker
from dev.graph import to_api
from dev.server import QueueError, host_from_environment

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

    def start(self, worker, number, prompt):
        self.queue.append((number, prompt))

    def next(self):
        number, prompt = self.queue.pop(0)
        try:
            return 0, number, "done", self.worker.do(prompt)
        except QueueError as error:
            return 0, number, "failed", str(error)


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
    broken = copy.deepcopy(jobs[:2])
    broken[1].prompt["3"]["inputs"]["gamma"] = 7.0
    failed = farm.run(broken, tmp_path, Alone(worker), lambda text: None)
    assert len(failed) == 1
    assert failed[0].startswith("who a man, steps 1, seed 2: VCD_NoisePriorLatent: ")
    assert len(json.loads((tmp_path / "figures.json").read_text())) == 1


def test_a_killed_worker_costs_nothing(alone, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: requirements-farm.txt")
    import ray

    from dev.farm.pool import RayPool

    folder, jobs, worker = alone
    rng, pool, killed = random.Random(os.getpid()), RayPool(2), []
    after = rng.randrange(5)

    def kill(process):
        while len(list((tmp_path / "jobs").glob("[!.]*"))) < after:
            time.sleep(0.02)
        os.kill(process, signal.SIGKILL)
        killed.append(process)

    try:
        processes = ray.get([actor.process.remote() for actor in pool.actors])
        threading.Thread(target=kill, args=[rng.choice(processes)], daemon=True).start()
        assert farm.run(jobs, tmp_path, pool, lambda text: None) == []
    finally:
        pool.close()
    with pytest.raises(ValueError, match="9999 workers are too many"):
        RayPool(9999)
    assert killed
    assert (tmp_path / "figures.json").read_bytes() == (folder / "one" / "figures.json").read_bytes()
    for path in (path for path in (folder / "one").rglob("*") if path.is_file()):
        assert (tmp_path / path.relative_to(folder / "one")).read_bytes() == path.read_bytes()
    ours = str(Path(worker.folder).parent)
    servers = [
        p for p in Path("/proc").glob("[0-9]*/cmdline") if ours in _text(p) and str(worker.folder) not in _text(p)
    ]
    assert servers == []  # each ends with its worker


def _text(path):
    try:
        return path.read_text()
    except OSError:
        return ""
