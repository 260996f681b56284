"""A process that runs nodes in copies of itself, each of which may be killed at a chosen point: see test_killed.

It has the host's classes and the models already, so that a copy costs no start. It reads lines of JSON: keyword
arguments of ``run``. To each it answers with a line of its own.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from dev import random_models

ANSWER = "answer: "


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_half_written(path, content):
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    die()


def run(rig, base, node, point="", at=0, after=False, value=0.01, **changes):
    """Run a node with its files below ``base``; what it gives and how often it came by each point go to files there."""
    import rig as rigs

    if node == "save":
        changes["id"] = rig.identity(value, torch.full((16, 16, 3), value))
    with rigs.folders(Path(base)), rigs.counted(rig) as faults:
        if point:
            fault = faults[point]
            fault.what, fault.at, fault.after = die_half_written if point == "write" else die, at, after
        found = getattr(rig, node)(**changes)
    torch.save(found, Path(base) / "found.pt")
    (Path(base) / "times").write_text(json.dumps({name: fault.times for name, fault in faults.items()}))


def serve(comfy, custom_nodes, pack):
    random_models.enter_host(Path(comfy))
    sys.path[:0] = [str(Path(__file__).parent), custom_nodes]
    import rig as rigs

    torch.set_num_threads(1)

    def module(name):
        return importlib.import_module(f"{pack}.{name}")

    with rigs.short(module):
        rig = rigs.Rig(module)
        print(ANSWER, "ready", flush=True)
        for line in sys.stdin:
            child = os.fork()
            if not child:
                try:
                    run(rig, **json.loads(line))
                    os._exit(0)
                finally:
                    sys.excepthook(*sys.exc_info())
                    sys.stderr.flush()
                    os._exit(1)
            print(ANSWER, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
