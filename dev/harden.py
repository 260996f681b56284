"""``python run.py harden [part ...]``: all that tries to break the pack, and the figures.

Parts: ``tests`` (tests/harden at their full size), ``fuzz`` (ten minutes), ``offline`` (the host tests without a
network), ``hosts`` (README's table).  Without a name all of them, within the hour.
"""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .host import ROOT, step

PYTEST = [sys.executable, "-m", "pytest", "-q", "-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadscope"]
PARTS = {
    "tests": ([*PYTEST, "tests/harden"], "35 minutes"),
    "fuzz": ([sys.executable, "-m", "dev.fuzz", "600"], "10 minutes"),
    "offline": ([sys.executable, "-m", "dev.no_network", *PYTEST, "tests/host"], "12 minutes"),
    "hosts": ([sys.executable, "-m", "dev.hosts"], "25 minutes"),
}


def main() -> int:
    names = sys.argv[1:] or list(PARTS)
    unknown = set(names) - set(PARTS)
    if unknown:
        print(f"No part {', '.join(sorted(unknown))}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    tally = Path(tempfile.mkdtemp()) / "tally"
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "VCD_HARDEN": "whole", "VCD_TALLY": str(tally)}
    broken, began = [], time.monotonic()
    for name in names:
        command, usually = PARTS[name]
        step(name, usually)
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            broken.append(name)
    for kind, number in figures(tally).items():
        print(f"{kind}: {number:,}")
    print(f"minutes: {(time.monotonic() - began) / 60:.0f}")
    print(f"lost: {', '.join(broken) or 'nothing'}")
    return 1 if broken else 0


def figures(tally: Path) -> dict[str, int]:
    """What the parts have counted, added up."""
    found: collections.Counter[str] = collections.Counter()
    for line in tally.read_text().splitlines() if tally.is_file() else ():
        kind, number = json.loads(line)
        found[kind] += number
    return dict(found)


if __name__ == "__main__":
    sys.exit(main())
