"""Ratios inside one run: this is for machines whose speed changes from minute to minute."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence


def interleaved(cases: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The median seconds of each case, the cases taken in turn so that a slow minute hits all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for call in cases.values():
        call()
    for _ in range(repeats):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(code: str) -> float:
    """The peak resident memory in MiB of a fresh Python that runs ``code``."""
    script = f"{code}\nimport resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / (2**20 if sys.platform == "darwin" else 2**10)


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval around a mean (Student's t), for two values or more."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / len(values) ** 0.5


def interval(values: Sequence[float], digits: int = 3) -> str:
    """A mean with its 95 % interval.

    Example:
        >>> interval([1.0, 2.0, 3.0], 2)
        '2.00 ± 2.48'
    """
    return f"{statistics.fmean(values):.{digits}f} ± {half_width(values):.{digits}f}"


def table(head: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * w for w in widths], *rows]:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")
