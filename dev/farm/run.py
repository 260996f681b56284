"""Run a study: its jobs over workers, its results into a folder, again where it was cut off.

Each finished job is a folder, written beside and renamed, so that what is there is whole.  A study that is run again
does only what is missing; ``figures.json`` holds what all jobs found, and is the same bytes however often, and on
however many workers, it came about.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .schedule import Schedule
from .study import Job
from .worker import File

RESULT = "result.json"


class Pool(Protocol):
    """Workers that can be asked: a farm's, or stand-ins in tests."""

    workers: int
    ready: set[int]  # which of them take jobs

    def start(self, worker: int, job: Job) -> None:
        """Let a worker begin a job, behind the one it has."""

    def next(self) -> tuple[int, int, str, Any]:
        """Wait for a worker: which, its job's number, and what became of it: "done" with figures and files, "failed"
        with a message, "lost" with the worker itself, which another then replaces, or of no job "ready".  ``ready``
        follows it."""


def finished_in(folder: Path) -> set[str]:
    """The keys of a folder's finished jobs."""
    return {path.parent.name for path in folder.glob(f"jobs/*/{RESULT}")}


def result_of(folder: Path, job: Job) -> dict[str, Any]:
    """What a finished job found: its ``figures`` by node and its ``files``."""
    found: dict[str, Any] = json.loads((folder / "jobs" / job.key / RESULT).read_text(encoding="utf-8"))
    return found


def run(jobs: list[Job], folder: Path, pool: Pool, tell: Callable[[str], object] = print, ahead: int = 2) -> list[str]:
    """Do the jobs that the folder does not have yet.

    Args:
        ahead: how many jobs a worker is given at once, so that it need not wait for the next.

    Returns:
        What failed: for each such job a line with its values and the reason.
    """
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    for left in folder.glob("jobs/.*"):
        shutil.rmtree(left)
    have = finished_in(folder)
    by_number = {job.number: job for job in jobs}
    first = {job.key: job for job in reversed(jobs)}  # jobs of one graph are done once
    todo = [job for job in jobs if first[job.key] is job and job.key not in have]
    schedule = Schedule([(job.number, job.models) for job in todo])
    failed: dict[str, str] = {}
    started, finished = time.monotonic(), 0

    def feed(worker: int) -> None:
        at_once = ahead if schedule.unstarted > pool.workers else 1  # at the end nothing waits behind another job
        while len(schedule.running.get(worker, ())) < at_once and (number := schedule.take(worker)) is not None:
            pool.start(worker, by_number[number])

    while schedule.left:
        for one in pool.ready:
            feed(one)
        worker, number, how, what = pool.next()
        if how == "lost":
            for gone in schedule.lost(worker):
                failed[by_number[gone].key] = f"its worker was lost {schedule.losses[gone]} times: {what}"
        elif how != "ready":
            schedule.done(worker, number)
            finished += 1
            if how == "done":
                keep(folder, by_number[number], *what)
            else:
                failed[by_number[number].key] = str(what)
            seconds = time.monotonic() - started
            tell(_progress(len(jobs) - len(todo) + finished, len(jobs), schedule.left, finished, seconds))
    write_figures(jobs, folder)
    return [f"{_values(job)}: {failed[job.key]}" for job in jobs if job.key in failed]


def keep(folder: Path, job: Job, figures: dict[str, Any], files: list[File]) -> None:
    """Put a job's files and figures into the folder, whole or not at all."""
    beside = folder / "jobs" / f".{job.key}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, content in files:
        path = beside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    result = {"values": job.values, "figures": figures, "files": sorted(name for name, _ in files)}
    (beside / RESULT).write_text(_as_json(result) + "\n", encoding="utf-8")
    beside.replace(folder / "jobs" / job.key)


def write_figures(jobs: list[Job], folder: Path) -> None:
    """Write what all finished jobs found, in the study's order, one after the other."""
    have, part = finished_in(folder), folder / "figures.json.part"
    with part.open("w", encoding="utf-8") as file:
        before = "[\n"
        for job in (job for job in jobs if job.key in have):
            found = result_of(folder, job)
            row = {"job": job.key, "values": job.values, "figures": found["figures"], "files": found["files"]}
            file.write(before + _as_json(row))
            before = ",\n"
        file.write("[]\n" if before == "[\n" else "\n]\n")
    part.replace(folder / "figures.json")


def _as_json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True)


def _values(job: Job) -> str:
    return ", ".join(f"{name} {value}" for name, value in job.values.items()) or f"job {job.number}"


def _progress(done: int, of: int, left: int, finished: int, seconds: float) -> str:
    rest = f", about {seconds / finished * left:.0f} s left" if finished and left else ""
    return f"{done} of {of}{rest}"
