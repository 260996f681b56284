"""``python -m dev.fuzz [seconds] [target ...]``: files and texts from outside, by the million, until something breaks.

The targets are those of ``tests/harden/targets.py``, each in a process of its own, which share the time (600 seconds).
Atheris finds inputs by what they reach in the code; where it is not installed, whole ones are changed at random.  An
input that breaks something is written to ``tests/harden/corpus/<target>/``, where the tests take it up; the exit status
is then 1.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .host import ROOT

TESTS = ROOT / "tests" / "harden"
CORPUS = TESTS / "corpus"
HANG = 20  # seconds for one input
MEMORY = 6000  # MB of a process, torch and all
LONGEST = 4096  # bytes of an input
PATIENCE = 120  # seconds that a process may take longer than it should
FOLLOWED = ["vcd_core", "dev.farm.study", "dev.graph", "PIL", "yaml"]  # whose branches atheris counts
BY_CHANCE = "--by-chance"
_RUNS = re.compile(r"stat::number_of_executed_units:\s*(\d+)|^#(\d+)\s", re.MULTILINE)


@dataclass(frozen=True)
class Told:
    """What came of a target: how many inputs it had, and those that broke something."""

    target: str
    seconds: int
    inputs: int
    found: list[Path]
    last: str  # what the process said at its end, if that was no good one

    def __str__(self) -> str:
        broken = f"  broken by {', '.join(path.name for path in self.found)}" if self.found else ""
        return f"{self.target:22}{self.seconds:5} s {self.inputs:10,} inputs{broken}"


@functools.cache
def targets() -> Any:
    """The module with the targets; what it tests is followed by atheris where that is there."""
    import torch  # noqa: F401  (what is imported before is not followed)

    sys.path[:0] = [str(ROOT), str(TESTS)]
    following = contextlib.nullcontext()
    if _has_atheris():
        import atheris

        following = atheris.instrument_imports(include=FOLLOWED)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), following:  # it names each module
        return importlib.import_module("targets")


def run_all(names: list[str], seconds: float) -> list[Told]:
    """Every target for its share of the time, as many at once as there are cores."""
    known = targets().TARGETS
    workers = os.cpu_count() or 1
    shared = sum(known[name].share for name in names)
    times = {name: max(1, round(seconds * workers * known[name].share / shared)) for name in names}
    waiting, running, told = sorted(names, key=lambda name: times[name]), list[Run](), list[Told]()
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop()
            running.append(Run(name, times[name]))
        time.sleep(0.1)
        for run in [run for run in running if run.has_ended()]:
            running.remove(run)
            told.append(run.told())
            print(told[-1], flush=True)
    return told


class Run:
    """One target in a process of its own, forked from this one, which has the libraries."""

    def __init__(self, name: str, seconds: int) -> None:
        self.name, self.seconds, self.found = name, seconds, CORPUS / name
        self.found.mkdir(parents=True, exist_ok=True)
        self.before = set(self.found.iterdir())
        self.folder = tempfile.TemporaryDirectory(prefix="vcd-fuzz-")
        self.end = time.monotonic() + seconds + PATIENCE
        context: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
        self.process = context.Process(target=_run, args=(name, seconds, self.folder.name))
        self.process.start()

    def has_ended(self) -> bool:
        """Whether it has; one that hangs is ended."""
        if time.monotonic() > self.end:
            self.process.kill()
            self.process.join()
        return self.process.exitcode is not None

    def told(self) -> Told:
        """What came of it."""
        status = self.process.exitcode
        said = Path(self.folder.name, "log").read_text(errors="replace")
        current = Path(self.folder.name, "current")
        if status and current.is_file() and set(self.found.iterdir()) == self.before:
            data = current.read_bytes()
            (self.found / f"crash-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
        new = sorted(set(self.found.iterdir()) - self.before)
        if not any(self.found.iterdir()):
            self.found.rmdir()
        self.folder.cleanup()
        count = max((int(a or b) for a, b in _RUNS.findall(said)), default=0)
        return Told(self.name, self.seconds, count, new, _ending(status, said) if status else "")


def _ending(status: int | None, said: str) -> str:
    """What a process said at its end; libFuzzer writes whole inputs."""
    return "\n".join([f"It ended with {status}.", *(line[:200] for line in said.splitlines()[-40:])])


def _run(name: str, seconds: int, folder: str) -> None:
    log = os.open(Path(folder, "log"), os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    (by_coverage if _has_atheris() else by_chance)(name, seconds, Path(folder))


def _has_atheris() -> bool:
    return importlib.util.find_spec("atheris") is not None and BY_CHANCE not in sys.argv


def by_coverage(name: str, seconds: int, folder: Path) -> None:
    """A target by atheris, which ends the process."""
    import atheris

    target = targets().TARGETS[name]
    target.first()

    def kept(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            (folder / "current").write_bytes(data)
            raise

    begun, words = folder / "begun", folder / "words"
    begun.mkdir()
    for i, seed in enumerate(target.seeds()):
        (begun / f"{i:03}").write_bytes(seed)
    words.write_text("".join(f'"{_escaped(word.encode())}"\n' for word in target.words))
    options = [
        f"-max_total_time={seconds}", f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}", f"-max_len={LONGEST}",
        f"-artifact_prefix={CORPUS / name}/", "-print_final_stats=1", "-report_slow_units=600",
    ]  # fmt: skip
    options += [f"-dict={words}"] if target.words else []
    atheris.Setup([sys.argv[0], *options, str(begun), str(CORPUS / name)], kept)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in word)


def by_chance(name: str, seconds: int, folder: Path) -> None:
    """A target without atheris; whoever started the process sees to it that it ends."""
    target, changed = targets().TARGETS[name], importlib.import_module("hostile").changed
    current, chance = folder / "current", random.Random(time.time_ns())
    seeds = target.seeds()
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = changed(chance.choice(seeds), seeds, target.words, chance)[:LONGEST]
        current.write_bytes(data)
        target(data)
        count += 1
        if count % 100 == 0:
            print(f"#{count} ", flush=True)
    print(f"stat::number_of_executed_units: {count}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=int, default=600)
    parser.add_argument("targets", nargs="*")
    parser.add_argument(BY_CHANCE, action="store_true", help="without atheris")
    given = parser.parse_args()
    began = time.monotonic()
    told = run_all(given.targets or list(targets().TARGETS), given.seconds)
    total = sum(one.inputs for one in told)
    importlib.import_module("tally").count("inputs tried", total)
    for one in told:
        if one.last:
            print(f"\n{one.target}: {one.last}")
    way = "by coverage (atheris)" if _has_atheris() else "by chance"
    broken = [path for one in told for path in one.found]
    print(f"\n{total:,} inputs in {time.monotonic() - began:.0f} s, {way}; {len(broken)} broke something.")
    for path in broken:
        print(path.relative_to(ROOT))
    return 1 if any(one.last for one in told) else 0


if __name__ == "__main__":
    sys.exit(main())
