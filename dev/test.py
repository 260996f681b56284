"""``python run.py test``: what CI runs - ruff, mypy, and all tests.  Further arguments go to pytest.

With ``--quick`` the maths and what a conditioning is cut to, without a server or a page: a verdict within minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch

from .host import PACK, ROOT, step
from .server import host_from_environment

QUICK = "--quick"
FIRST = ["tests/core", "tests/host/test_cut.py"]


def main() -> int:
    wanted = os.environ.get("VCD_DEVICE") or "cpu"
    if wanted != "cpu" and not getattr(torch, wanted).is_available():
        print(f"There is no {wanted} device that PyTorch {torch.__version__} can use here.", file=sys.stderr)
        return 1
    quick = QUICK in sys.argv
    only = [argument for argument in sys.argv[1:] if argument != QUICK]
    if quick or not only:
        step("Style (ruff) and types (mypy)", "20 s")
        link = host_from_environment().base / "custom_nodes"
        config = ["--config-file", str(ROOT / "pyproject.toml")]
        checks = [
            (["ruff", "check", "."], ROOT),
            (["ruff", "format", "--check", "."], ROOT),
            # under the pack's own name, since the nodes import vcd_core relative to it
            (["mypy", *config, "-p", f"{PACK}.nodes", "-p", f"{PACK}.vcd_core"], link),
            (["mypy", *config, "--explicit-package-bases", "run.py", "dev", "benchmarks"], ROOT),
        ]
        for command, folder in checks:
            if subprocess.run([sys.executable, "-m", *command], cwd=folder).returncode:
                return 1
    if quick:
        step("Tests: the maths", "2 minutes")
    else:
        step("Tests: the maths, the real server, the real page", "30 minutes")
    tests = [] if any(a.startswith("tests") for a in only) else FIRST if quick else ["tests"]
    # with a thread for each core, whatever runs beside makes tiny models five times slower: threads wait for each other
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    workers = [] if only else ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadscope", "--no-loadscope-reorder"]
    command = [sys.executable, "-m", "pytest", "--durations=25", *workers, *tests, *only]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
