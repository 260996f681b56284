"""What a farm costs: the time of a job over queueing it by hand, and how busy a thousand workers are kept.

The same graphs on the tiny model go through one worker of a local Ray cluster and, by hand, through the queue of one
server; times are from the first job's begin to the last one's end, the servers' start not counted.  The simulation has
workers that are none: job lengths are drawn (log-normal), loading another model takes half a job, and some workers are
lost.  Targets: under 3 % of a job; 95 % busy; the schedule's memory per job the same at ten times the jobs.

    python run.py bench farm
"""

from __future__ import annotations

import heapq
import random
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

from dev.farm.run import run
from dev.farm.schedule import Schedule
from dev.farm.study import Job
from dev.server import Server, host_from_environment

from .measure import table

JOBS, ROUNDS, MODELS, WORKERS = 8, 2, 30, 1000


def graph(seed: int) -> dict[str, Any]:
    """A clip of the tiny model, measured and saved."""
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("VCD_TinyModel", {}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a man waving on the beach"}),
        "3": ("VCD_NoisePriorLatent",
              {"width": 128, "height": 128, "frames": 16, "gamma": 0.1, "seed": seed, "layout": "comfy"}),
        "4": ("KSampler",
              {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0], "seed": seed,
               "steps": 12, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}),
        "5": ("VAEDecode", {"samples": ["4", 0], "vae": ["1", 2]}),
        "6": ("VCD_Evaluate", {"images": ["5", 0]}),
        "7": ("SaveImage", {"images": ["5", 0], "filename_prefix": "farm/still"}),
    }  # fmt: skip
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def overhead() -> float:
    """The time of jobs on the farm over that by hand."""
    from dev.farm.pool import RayPool

    pool = RayPool(1)
    pool.nodes()
    spent = {"farm": 0.0, "by hand": 0.0}
    host = host_from_environment()
    with Server(host, arguments=("--disable-api-nodes",)) as server, tempfile.TemporaryDirectory() as at:
        server.run(graph(0))
        run([Job(0, {}, graph(0))], Path(at) / "first", pool, lambda text: None)
        for turn in range(ROUNDS):
            seeds = range(1 + turn * JOBS, 1 + (turn + 1) * JOBS)
            start = time.perf_counter()
            for prompt in [server.queue(graph(seed)) for seed in seeds]:
                server.wait(prompt)
            spent["by hand"] += time.perf_counter() - start
            start = time.perf_counter()
            run([Job(seed, {}, graph(seed)) for seed in seeds], Path(at) / str(turn), pool, lambda text: None)
            spent["farm"] += time.perf_counter() - start
    pool.close()
    each = {name: seconds / ROUNDS / JOBS for name, seconds in spent.items()}
    table(["a job", "seconds"], [[name, f"{seconds:.2f}"] for name, seconds in each.items()])
    return spent["farm"] / spent["by hand"]


def simulated(jobs: int, seed: int = 0) -> tuple[float, float]:
    """Busy time over all time of the workers, and the schedule's bytes at its most for each job."""
    rng = random.Random(seed)
    length = [rng.lognormvariate(0, 0.5) for _ in range(jobs)]
    tracemalloc.start()
    schedule = Schedule([(i, f"model {i % MODELS}") for i in range(jobs)])
    events: list[tuple[float, int, int, bool]] = []
    at: dict[int, str] = {}
    now, finished = 0.0, 0

    def begin(worker: int) -> None:
        if (job := schedule.take(worker)) is None:
            return
        took = length[job] + (0.5 if at.get(worker) != schedule.models[job] else 0.0)
        at[worker] = schedule.models[job]
        dies = rng.random() < 0.002
        heapq.heappush(events, (now + took * (rng.random() if dies else 1), worker, job, dies))

    for worker in range(WORKERS):
        begin(worker)
    while events:
        now, worker, job, dies = heapq.heappop(events)
        if dies:
            given_up = schedule.lost(worker)
            assert not given_up
            at.pop(worker)
        else:
            schedule.done(worker, job)
            finished += 1
        begin(worker)
    assert finished == jobs
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return sum(length) / (WORKERS * now), peak / jobs


def main() -> int:
    sizes = (10_000, 100_000, 1_000_000)
    found = [simulated(jobs) for jobs in sizes]
    rows = [[f"{jobs:,}", f"{busy:.1%}", f"{memory:.0f}"] for jobs, (busy, memory) in zip(sizes, found, strict=True)]
    table([f"jobs on {WORKERS} workers", "busy", "bytes of the schedule for each job"], rows)
    print()
    ratio = overhead()
    print(f"\na job on the farm over one by hand: {ratio:.3f}; target under 1.03")
    good = ratio < 1.03 and found[1][0] >= 0.95 and found[2][1] < 1.2 * found[1][1]
    print("targets held" if good else "A TARGET WAS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
