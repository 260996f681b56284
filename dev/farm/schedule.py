"""Who does what next: jobs go where their models are loaded, and are done again where a worker is lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Job = TypeVar("Job", bound=Hashable)


class Schedule(Generic[Job]):
    """Jobs by the models that they need, and the workers that have them loaded.

    A worker goes on with its own models while there are such jobs; then it takes those with the most jobs for each
    worker that is at them.  Each step takes time in proportion to the number of different models, whatever the number
    of jobs and workers.

    Args:
        jobs: pairs of a job and its models.
        retries: how often a job is given again after its worker was lost with it, before it counts as failed.

    Example:
        >>> schedule = Schedule([("a1", "a"), ("b1", "b"), ("a2", "a")])
        >>> schedule.take("first"), schedule.take("second"), schedule.take("first")
        ('a1', 'b1', 'a2')
        >>> schedule.lost("second"), schedule.take("first")
        ([], 'b1')
    """

    def __init__(self, jobs: Iterable[tuple[Job, str]], retries: int = 2) -> None:
        self.waiting: dict[str, deque[Job]] = {}
        self.models = dict(jobs)
        for job, models in self.models.items():
            self.waiting.setdefault(models, deque()).append(job)
        self.retries = retries
        self.at: dict[Hashable, str] = {}  # which models each worker has
        self.crowd: dict[str, int] = {}  # how many workers have them
        self.running: dict[Hashable, list[Job]] = {}
        self.losses: dict[Job, int] = {}

    def take(self, worker: Hashable) -> Job | None:
        """The next job of a worker; None where none waits."""
        models = self.at.get(worker)
        if models is None or not self.waiting.get(models):
            left = [name for name, jobs in self.waiting.items() if jobs]
            if not left:
                return None
            models = max(left, key=lambda name: len(self.waiting[name]) / (self.crowd.get(name, 0) + 1))
            self._move(worker, models)
        job = self.waiting[models].popleft()
        self.running.setdefault(worker, []).append(job)
        return job

    def done(self, worker: Hashable, job: Job) -> None:
        """A worker has done a job."""
        self.running[worker].remove(job)

    def lost(self, worker: Hashable) -> list[Job]:
        """A worker is gone: its jobs wait again, first of all. Those that were lost too often are given back."""
        failed = []
        for job in reversed(self.running.pop(worker, [])):
            self.losses[job] = self.losses.get(job, 0) + 1
            if self.losses[job] > self.retries:
                failed.append(job)
            else:
                self.waiting.setdefault(self.models[job], deque()).appendleft(job)
        self._move(worker, None)
        return failed

    @property
    def unstarted(self) -> int:
        """How many jobs wait."""
        return sum(map(len, self.waiting.values()))

    @property
    def left(self) -> int:
        """How many jobs wait or run."""
        return self.unstarted + sum(map(len, self.running.values()))

    def _move(self, worker: Hashable, models: str | None) -> None:
        if (before := self.at.pop(worker, None)) is not None:
            self.crowd[before] -= 1
        if models is not None:
            self.at[worker] = models
            self.crowd[models] = self.crowd.get(models, 0) + 1
