"""``python run.py demo``: run a bundled graph on a real server and say where its video lies."""

from __future__ import annotations

import asyncio
import json
import sys
import time

from .graph import to_api
from .host import ROOT, step
from .server import Server, host_from_environment

GRAPH = ROOT / "workflows" / "00_noise_prior.json"


def main() -> int:
    step("Starting ComfyUI", "10 s")
    with Server(host_from_environment()) as server:
        prompt = to_api(json.loads(GRAPH.read_text(encoding="utf-8")), server.get("/object_info"))
        step(f"Running {GRAPH.name}", "10 s")
        start = time.monotonic()
        entry = asyncio.run(server.watch(prompt, show))
        print(f"\ndone in {time.monotonic() - start:.1f} s")
        for path in server.outputs(entry):
            if path.parts[-2] != "temp":
                print(f"  {path}")
    return 0


def show(node: str, value: int, maximum: int) -> None:
    line = f"  {node}" + (f" {value}/{maximum}" if maximum else "")
    print(f"\r{line:<60}", end="" if sys.stdout.isatty() else "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
