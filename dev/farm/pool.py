"""Workers on a Ray cluster: each an actor that holds one ComfyUI."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import ray

from ..host import ROOT
from ..server import host_from_environment
from .study import Job
from .worker import Worker, message_of

ENVIRONMENT = ("VCD_COMFY", "VCD_BASE", "VCD_FRONT_END")
THREADS = "OMP_NUM_THREADS"


class Actor:
    """A worker in a process of its own, on whichever machine Ray finds room; its ComfyUI ends with it."""

    def __init__(self, threads: str | None) -> None:
        """``threads``: of ComfyUI on the CPU; Ray would leave it with one.  None: what torch takes."""
        os.environ.pop(THREADS, None)
        if threads:
            os.environ[THREADS] = threads
        self.worker = Worker(host_from_environment())

    def do(self, prompt: dict[str, Any], files: dict[str, Any]) -> tuple[str, Any]:
        """A job: "done" with figures and files, or "failed" with the node's message.  ``files`` are kept in Ray's
        object store."""
        try:
            content: dict[str, Any] = {name: partial(ray.get, kept) for name, kept in files.items()}
            return "done", self.worker.do(prompt, content)
        except Exception as error:  # whatever it is, the next job may do better
            if self.worker.server.process is None or self.worker.server.process.poll() is not None:
                os._exit(1)  # without its ComfyUI it is of no use: Ray tells the driver that it is lost
            return "failed", message_of(error)

    def nodes(self) -> dict[str, Any]:
        """Which nodes and widgets its ComfyUI has."""
        return self.worker.nodes()

    def process(self) -> int:
        """The number of its process on its machine."""
        return os.getpid()

    def stop(self) -> None:
        """Stop its ComfyUI."""
        self.worker.stop()


class RayPool:
    """As many workers as asked for; one that is lost is replaced.

    Args:
        workers: how many; 0 for one for each GPU of the cluster, or one for each two cores where it has none.
        address: of a cluster that runs (``ray://...``); None starts one on this machine.

    Raises:
        ValueError: more workers than there are GPUs, or cores without any: those would never begin.
    """

    def __init__(self, workers: int = 0, address: str | None = None) -> None:
        dashboard = False if address is None else None  # of a cluster that runs it is not ours to say
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        ray.init(
            address, runtime_env={"env_vars": environment}, log_to_driver=False, ignore_reinit_error=True,
            include_dashboard=dashboard,
        )  # fmt: skip
        resources = ray.cluster_resources()
        self.gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.workers = workers or self.gpus or max(1, cores // 2)
        if self.workers > (self.gpus or cores):
            ray.shutdown()
            raise ValueError(f"{workers} workers are too many: the cluster has {self.gpus} GPUs and {cores} cores.")
        self.threads = os.environ.get(THREADS) or (None if self.gpus else str(max(1, cores // self.workers)))
        self.ready: set[int] = set()
        self.stored: dict[Path, Any] = {}
        self.running: dict[Any, tuple[int, int | None]] = {}
        self.actors = [self._new(worker) for worker in range(self.workers)]

    def nodes(self) -> dict[str, Any]:
        """Which nodes and widgets the workers' ComfyUI has."""
        found: dict[str, Any] = ray.get(self.actors[0].nodes.remote())
        return found

    def start(self, worker: int, job: Job) -> None:
        files = {name: self._stored(path) for name, path in job.files.items()}
        self.running[self.actors[worker].do.remote(job.prompt, files)] = worker, job.number

    def next(self) -> tuple[int, int, str, Any]:
        (ready, *_), _ = ray.wait(list(self.running), num_returns=1)
        worker, number = self.running.pop(ready)
        try:
            what = ray.get(ready)
            self.ready.add(worker)
            return (worker, -1, "ready", what) if number is None else (worker, number, *what)
        except ray.exceptions.RayError as error:
            self.running = {one: at for one, at in self.running.items() if at[0] != worker}
            self.ready.discard(worker)
            self.actors[worker] = self._new(worker)
            return worker, -1, "lost", str(error).splitlines()[0]

    def close(self) -> None:
        """Stop the workers and let go of the cluster."""
        ray.wait([actor.stop.remote() for actor in self.actors], num_returns=len(self.actors), timeout=30)
        ray.shutdown()

    def _stored(self, path: Path) -> Any:
        """A file in Ray's object store, which brings it to each machine once."""
        if path not in self.stored:
            self.stored[path] = ray.put(path.read_bytes())
        return self.stored[path]

    def _new(self, worker: int) -> Any:
        """A new actor in a worker's place; it is ready when it says which process it is."""
        options = {"num_gpus": 1} if self.gpus else {"num_cpus": 1}
        remote: Any = ray.remote  # its types know no options that are made at run time
        made = remote(max_concurrency=1, max_restarts=0, **options)(Actor).remote(self.threads)
        self.running[made.process.remote()] = worker, None
        return made
